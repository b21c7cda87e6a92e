// Secondary-networks is a CNI plugin that gives pods further networks, in the
// way and with the traces of Multus, which needs an image: it reads the pod's
// annotation, attaches what its NetworkAttachmentDefinitions say as net1,
// net2, …, and writes the pod's network-status.
//
// Unlike Multus it is one of the plugins of the pods' own network, after those
// that make eth0, and a pod that asks for nothing gets no network-status.
//
// What Multus does was read in k8snetworkplumbingwg/multus-cni (pkg/multus/multus.go,
// pkg/types/conf.go, pkg/k8sclient/k8sclient.go) and in
// k8snetworkplumbingwg/network-attachment-definition-client (pkg/utils/net-attach-def.go,
// pkg/utils/cniconfig.go, pkg/apis/k8s.cni.cncf.io/v1/types.go).
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
)

// config is the plugin's entry in the list. Keys and defaults are those of
// Multus: pkg/types/conf.go, GetDefaultNetConf.
type config struct {
	types.PluginConf
	Kubeconfig string `json:"kubeconfig"`
	// CNIDir has libcni's cache of what is attached, in results/. Multus keeps
	// it apart from that of the container runtime.
	CNIDir string `json:"cniDir"`
	// ConfDir has the networks whose definitions have no configuration.
	ConfDir string `json:"confDir"`
}

// pod is whom the container runtime calls for.
type pod struct {
	namespace string
	name      string
	uid       string
	sandbox   string
}

// newPod reads CNI_ARGS, in which each argument has its field's name.
func newPod(text string) (*pod, error) {
	args := struct {
		types.CommonArgs
		K8S_POD_NAMESPACE          types.UnmarshallableString
		K8S_POD_NAME               types.UnmarshallableString
		K8S_POD_UID                types.UnmarshallableString
		K8S_POD_INFRA_CONTAINER_ID types.UnmarshallableString
	}{}
	if err := types.LoadArgs(text, &args); err != nil {
		return nil, err
	}
	if args.K8S_POD_NAME == "" {
		return nil, errors.New("the arguments name no pod")
	}
	return &pod{
		namespace: string(args.K8S_POD_NAMESPACE),
		name:      string(args.K8S_POD_NAME),
		uid:       string(args.K8S_POD_UID),
		sandbox:   string(args.K8S_POD_INFRA_CONTAINER_ID),
	}, nil
}

func main() {
	skel.PluginMainFuncs(skel.CNIFuncs{
		Add:    whole(add),
		Del:    whole(del),
		Check:  whole(check),
		GC:     whole(gc),
		Status: whole(status),
	}, version.All, "secondary networks for pods, as Multus makes them")
}

// whole makes one error of what went wrong: of a chain with the error of a
// plugin that we called, only that one would be printed.
func whole(command func(*skel.CmdArgs) error) func(*skel.CmdArgs) error {
	return func(args *skel.CmdArgs) error {
		if err := command(args); err != nil {
			return errors.New(err.Error())
		}
		return nil
	}
}

func load(args *skel.CmdArgs) (*config, error) {
	c := &config{CNIDir: "/var/lib/cni/multus", ConfDir: "/etc/cni/multus/net.d"}
	if err := json.Unmarshal(args.StdinData, c); err != nil {
		return nil, fmt.Errorf("the configuration cannot be read: %w", err)
	}
	return c, nil
}

func add(args *skel.CmdArgs) error {
	c, err := load(args)
	if err != nil {
		return err
	}
	if err := version.ParsePrevResult(&c.PluginConf); err != nil {
		return err
	}
	if c.PrevResult == nil {
		return errors.New("there is no result of a plugin before this one")
	}
	p, err := newPod(args.Args)
	if err != nil {
		return err
	}
	if err := join(context.Background(), c, args, p); err != nil {
		return fmt.Errorf("secondary networks of %s/%s: %w", p.namespace, p.name, err)
	}
	return types.PrintResult(c.PrevResult, c.CNIVersion)
}

// join gives the pod all networks that it asks for and says so, or none.
func join(ctx context.Context, c *config, args *skel.CmdArgs, p *pod) error {
	api, err := openAPI(c.Kubeconfig)
	if err != nil {
		return err
	}
	annotation, err := api.selection(ctx, p)
	if err != nil || annotation == "" {
		return err
	}
	elements, err := parseSelection(annotation, p.namespace)
	if err != nil {
		return fmt.Errorf("annotation %s: %w", selectionAnnotation, err)
	}

	statuses, err := describe(c.PrevResult, c.Name, true)
	if err != nil {
		return err
	}
	for i, e := range elements {
		var s []networkStatus
		if s, err = joinOne(ctx, c, api, args, p, e, fmt.Sprintf("net%d", i+1)); err != nil {
			err = fmt.Errorf("network %s/%s: %w", e.Namespace, e.Name, err)
			break
		}
		statuses = append(statuses, s...)
	}
	if err == nil {
		err = api.setStatus(ctx, p, statuses)
	}
	if err != nil {
		return errors.Join(err, leave(ctx, c, args))
	}
	return nil
}

func joinOne(ctx context.Context, c *config, api *api, args *skel.CmdArgs, p *pod, e element, name string) ([]networkStatus, error) {
	if e.Interface != "" {
		name = e.Interface
	}
	definition, err := api.definition(ctx, e.Namespace, e.Name)
	if err != nil {
		return nil, err
	}
	n, err := newNetwork(definition, e.Name, c.ConfDir)
	if err != nil {
		return nil, err
	}
	if n.name == c.Name {
		return nil, fmt.Errorf("%q is the name of the pods' own network", n.name)
	}
	result, err := n.attach(ctx, c.CNIDir, e.request(args, p, name))
	if err != nil {
		return nil, err
	}
	return describe(result, e.Namespace+"/"+e.Name, false)
}

// leave detaches what the cache knows of the container; the API server is not
// asked, and what is gone already is no failure.
func leave(ctx context.Context, c *config, args *skel.CmdArgs) error {
	attachments, err := c.attachments(args.ContainerID)
	if err != nil {
		return err
	}
	var failures []error
	// The last one first, as Multus does.
	for i := len(attachments) - 1; i >= 0; i-- {
		failures = append(failures, detach(ctx, c.CNIDir, attachments[i], args.Netns))
	}
	return errors.Join(failures...)
}

func del(args *skel.CmdArgs) error {
	c, err := load(args)
	if err != nil {
		return err
	}
	return leave(context.Background(), c, args)
}

func check(args *skel.CmdArgs) error {
	c, err := load(args)
	if err != nil {
		return err
	}
	attachments, err := c.attachments(args.ContainerID)
	if err != nil {
		return err
	}
	for _, a := range attachments {
		if err := verify(context.Background(), c.CNIDir, a, args.Netns); err != nil {
			return err
		}
	}
	return nil
}

// gc detaches containers that have left the pods' own network.
func gc(args *skel.CmdArgs) error {
	c, err := load(args)
	if err != nil {
		return err
	}
	alive := map[string]bool{}
	for _, a := range c.ValidAttachments {
		alive[a.ContainerID] = true
	}
	attachments, err := c.attachments("")
	if err != nil {
		return err
	}
	var failures []error
	for _, a := range attachments {
		if !alive[a.ContainerID] {
			failures = append(failures, detach(context.Background(), c.CNIDir, a, a.NetNS))
		}
	}
	return errors.Join(failures...)
}

// status only tells whether there is somebody to ask: pods that ask for
// nothing need no more.
func status(args *skel.CmdArgs) error {
	c, err := load(args)
	if err != nil {
		return err
	}
	_, err = openAPI(c.Kubeconfig)
	return err
}
