package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
)

// network is one CNI configuration: a list of plugins, or a single one. libcni
// has functions of their own for each, and so has Multus.
type network struct {
	name   string
	list   *libcni.NetworkConfigList
	plugin *libcni.PluginConfig
}

// newNetwork takes the configuration of a definition. Where it has none, a file
// of the node with that network's name is meant; where that has no name, it is
// the definition's.
func newNetwork(definition, name, folder string) (*network, error) {
	config := []byte(definition)
	if definition == "" {
		var err error
		if config, err = fileOf(name, folder); err != nil {
			return nil, err
		}
	}
	var raw map[string]any
	if err := json.Unmarshal(config, &raw); err != nil {
		return nil, fmt.Errorf("its configuration cannot be read: %w", err)
	}
	// Text that has a name stays as it is: it will be in the cache.
	if raw["name"] == nil || raw["name"] == "" {
		raw["name"] = name
		config, _ = json.Marshal(raw)
	}
	return parseNetwork(config)
}

func parseNetwork(config []byte) (*network, error) {
	var head struct {
		Plugins []json.RawMessage `json:"plugins"`
	}
	if err := json.Unmarshal(config, &head); err != nil {
		return nil, err
	}
	if head.Plugins != nil {
		list, err := libcni.NetworkConfFromBytes(config)
		if err != nil {
			return nil, err
		}
		return &network{name: list.Name, list: list}, nil
	}
	plugin, err := libcni.NetworkPluginConfFromBytes(config)
	if err != nil {
		return nil, err
	}
	return &network{name: plugin.Network.Name, plugin: plugin}, nil
}

func fileOf(name, folder string) ([]byte, error) {
	files, err := libcni.ConfFiles(folder, []string{".conf", ".json", ".conflist"})
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		config, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		var head types.PluginConf
		if err := json.Unmarshal(config, &head); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		if head.Name == name {
			return config, nil
		}
	}
	return nil, fmt.Errorf("its definition has no configuration, and no file in %s is of that name", folder)
}

// runner calls the plugins that lie where this one does.
func runner(cache string) *libcni.CNIConfig {
	return libcni.NewCNIConfigWithCacheDir(filepath.SplitList(os.Getenv("CNI_PATH")), cache, nil)
}

func (n *network) attach(ctx context.Context, cache string, request *libcni.RuntimeConf) (types.Result, error) {
	var result types.Result
	var err error
	if n.list != nil {
		result, err = runner(cache).AddNetworkList(ctx, n.list, request)
	} else {
		result, err = runner(cache).AddNetwork(ctx, n.plugin, request)
	}
	if err != nil {
		// It is not in the cache, from which the others are detached. What the
		// plugins say to that, they have said already.
		_ = n.detach(ctx, cache, request)
		return nil, err
	}
	return result, nil
}

func (n *network) detach(ctx context.Context, cache string, request *libcni.RuntimeConf) error {
	if n.list != nil {
		return runner(cache).DelNetworkList(ctx, n.list, request)
	}
	return runner(cache).DelNetwork(ctx, n.plugin, request)
}

// attachments are those in the cache, but for that of the pods' own network,
// should the container runtime keep its cache in the same place: to undo that
// one would mean to call ourselves.
func (c *config) attachments(container string) ([]*libcni.NetworkAttachment, error) {
	all, err := runner(c.CNIDir).GetCachedAttachments(container)
	if err != nil {
		return nil, err
	}
	var attachments []*libcni.NetworkAttachment
	for _, a := range all {
		if a.Network != c.Name {
			attachments = append(attachments, a)
		}
	}
	return attachments, nil
}

func again(a *libcni.NetworkAttachment, netns string) (*network, *libcni.RuntimeConf, error) {
	n, err := parseNetwork(a.Config)
	if err != nil {
		return nil, nil, fmt.Errorf("network %s: the cached configuration: %w", a.Network, err)
	}
	return n, &libcni.RuntimeConf{
		ContainerID:    a.ContainerID,
		NetNS:          netns,
		IfName:         a.IfName,
		Args:           a.CniArgs,
		CapabilityArgs: a.CapabilityArgs,
	}, nil
}

func detach(ctx context.Context, cache string, a *libcni.NetworkAttachment, netns string) error {
	n, request, err := again(a, netns)
	if err != nil {
		return err
	}
	if err := n.detach(ctx, cache, request); err != nil {
		return fmt.Errorf("network %s: %w", a.Network, err)
	}
	return nil
}

func verify(ctx context.Context, cache string, a *libcni.NetworkAttachment, netns string) error {
	n, request, err := again(a, netns)
	if err != nil {
		return err
	}
	switch {
	case n.list == nil:
		// libcni refuses to ask plugins that are older than the question.
		if able, _ := version.GreaterThanOrEqualTo(n.plugin.Network.CNIVersion, "0.4.0"); !able {
			return nil
		}
		err = runner(cache).CheckNetwork(ctx, n.plugin, request)
	default:
		if able, _ := version.GreaterThanOrEqualTo(n.list.CNIVersion, "0.4.0"); !able {
			return nil
		}
		err = runner(cache).CheckNetworkList(ctx, n.list, request)
	}
	if err != nil {
		return fmt.Errorf("network %s: %w", a.Network, err)
	}
	return nil
}
