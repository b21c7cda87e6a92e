package main

import (
	"encoding/json"
	"net"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
)

const statusAnnotation = "k8s.v1.cni.cncf.io/network-status"

// networkStatus is one element of the annotation, with the keys and their order
// in pkg/apis/k8s.cni.cncf.io/v1/types.go.
type networkStatus struct {
	Name      string   `json:"name"`
	Interface string   `json:"interface,omitempty"`
	IPs       []string `json:"ips,omitempty"`
	MAC       string   `json:"mac,omitempty"`
	MTU       int      `json:"mtu,omitempty"`
	Default   bool     `json:"default,omitempty"`
	DNS       dns      `json:"dns"`
	Gateway   []string `json:"gateway,omitempty"`
}

type dns struct {
	Nameservers []string `json:"nameservers,omitempty"`
	Domain      string   `json:"domain,omitempty"`
	Search      []string `json:"search,omitempty"`
	Options     []string `json:"options,omitempty"`
}

// describe has one element for each of the result's interfaces that are in the
// pod, like CreateNetworkStatuses in pkg/utils/net-attach-def.go.
func describe(r types.Result, name string, isDefault bool) ([]networkStatus, error) {
	result, err := current.NewResultFromResult(r)
	if err != nil {
		return nil, err
	}
	var gateways []string
	for _, route := range result.Routes {
		if toAll(route) {
			// Multus writes "<nil>", too, where the route names none.
			gateways = append(gateways, route.GW.String())
		}
	}
	var statuses []networkStatus
	at := map[int]int{}
	for i, device := range result.Interfaces {
		if device.Sandbox == "" {
			continue
		}
		at[i] = len(statuses)
		statuses = append(statuses, networkStatus{
			Name:      name,
			Interface: device.Name,
			MAC:       device.Mac,
			MTU:       device.Mtu,
			DNS:       dns(result.DNS),
			Gateway:   gateways,
		})
	}
	if len(statuses) == 0 {
		return nil, nil
	}
	// The default one is the first whose address has a gateway, or the first.
	first := -1
	for _, ip := range result.IPs {
		place := len(statuses) - 1
		if ip.Interface != nil {
			var inPod bool
			if place, inPod = at[*ip.Interface]; !inPod {
				continue
			}
			if first < 0 && ip.Gateway != nil {
				first = place
			}
		}
		statuses[place].IPs = append(statuses[place].IPs, ip.Address.IP.String())
	}
	statuses[max(first, 0)].Default = isDefault
	return statuses, nil
}

func toAll(route *types.Route) bool {
	return route.Dst.IP == nil && route.Dst.Mask == nil ||
		route.Dst.IP.Equal(net.IPv4zero) || route.Dst.IP.Equal(net.IPv6zero)
}

// annotate indents like Multus: readers who look for text find the same.
func annotate(statuses []networkStatus) (string, error) {
	var elements []string
	for _, s := range statuses {
		element, err := json.MarshalIndent(s, "", "    ")
		if err != nil {
			return "", err
		}
		elements = append(elements, string(element))
	}
	return "[" + strings.Join(elements, ",") + "]", nil
}
