package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"regexp"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/skel"
)

const selectionAnnotation = "k8s.v1.cni.cncf.io/networks"

// element is one network that a pod asks for.
type element struct {
	Name      string   `json:"name"`
	Namespace string   `json:"namespace"`
	Interface string   `json:"interface"`
	IPs       []string `json:"ips"`
	MAC       string   `json:"mac"`
}

var label = regexp.MustCompile("^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")

// parseSelection reads the annotation in either of its forms; Multus tells
// them apart like this, too.
func parseSelection(text, namespace string) ([]element, error) {
	parse := parseShort
	if strings.ContainsAny(text, "[{\"") {
		parse = parseJSON
	}
	elements, err := parse(text)
	if err != nil {
		return nil, err
	}
	for i := range elements {
		e := &elements[i]
		if e.Namespace == "" {
			e.Namespace = namespace
		}
		if err := e.check(); err != nil {
			return nil, err
		}
	}
	return elements, nil
}

// parseShort reads [NAMESPACE/]NAME[@INTERFACE],…
func parseShort(text string) ([]element, error) {
	var elements []element
	for item := range strings.SplitSeq(text, ",") {
		e := element{Name: strings.TrimSpace(item)}
		if namespace, name, found := strings.Cut(e.Name, "/"); found {
			e.Namespace, e.Name = strings.TrimSpace(namespace), name
		}
		if name, device, found := strings.Cut(e.Name, "@"); found {
			e.Name, e.Interface = strings.TrimSpace(name), strings.TrimSpace(device)
		}
		elements = append(elements, e)
	}
	return elements, nil
}

func parseJSON(text string) ([]element, error) {
	decoder := json.NewDecoder(bytes.NewBufferString(text))
	// Multus knows more; a test that asks for it shall not pass by chance.
	decoder.DisallowUnknownFields()
	var elements []element
	if err := decoder.Decode(&elements); err != nil {
		return nil, fmt.Errorf("it cannot be read: %w", err)
	}
	return elements, nil
}

func (e *element) check() error {
	for _, name := range []string{e.Namespace, e.Name} {
		if !label.MatchString(name) {
			return fmt.Errorf("%q is not a name", name)
		}
	}
	if len(e.Interface) > 15 || strings.ContainsAny(e.Interface, " \t\n\v\f\r/@") {
		return fmt.Errorf("%q is not the name of an interface", e.Interface)
	}
	for _, ip := range e.IPs {
		address, _, _ := strings.Cut(ip, "/")
		if net.ParseIP(address) == nil {
			return fmt.Errorf("%q is not an address", ip)
		}
	}
	if e.MAC != "" {
		if _, err := net.ParseMAC(e.MAC); err != nil {
			return err
		}
	}
	return nil
}

// request is what libcni gives to the plugins and keeps in its cache. Order and
// values of the arguments are those of Multus: pkg/types/conf.go,
// createRuntimeConf, and pkg/multus/multus.go, DelegateAdd.
func (e *element) request(args *skel.CmdArgs, p *pod, name string) *libcni.RuntimeConf {
	request := &libcni.RuntimeConf{
		ContainerID: args.ContainerID,
		NetNS:       args.Netns,
		IfName:      name,
		Args: [][2]string{
			{"IgnoreUnknown", "true"},
			{"K8S_POD_NAMESPACE", p.namespace},
			{"K8S_POD_NAME", p.name},
			{"K8S_POD_INFRA_CONTAINER_ID", p.sandbox},
			{"K8S_POD_UID", p.uid},
		},
		CapabilityArgs: map[string]any{},
	}
	if e.MAC != "" {
		request.Args = append(request.Args, [2]string{"MAC", e.MAC})
		request.CapabilityArgs["mac"] = e.MAC
	}
	if len(e.IPs) > 0 {
		request.Args = append(request.Args, [2]string{"IP", strings.Join(e.IPs, ",")})
		request.CapabilityArgs["ips"] = e.IPs
	}
	return request
}
