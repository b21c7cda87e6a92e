package main

import (
	"errors"
	"fmt"
	"net"
	"strings"
)

// target is one thing to reach: a protocol, an address or name, and a port
// unless the protocol is icmp.
type target struct {
	protocol string
	host     string
	port     string
}

// newTarget reads "ADDR PORT" as given on the command line.
func newTarget(protocol string, args []string) (target, error) {
	want := 2
	switch protocol {
	case "tcp", "udp":
	case "icmp":
		want = 1
	default:
		return target{}, fmt.Errorf("unknown protocol %q", protocol)
	}
	if len(args) != want {
		return target{}, fmt.Errorf("%s takes %d arguments, not %d", protocol, want, len(args))
	}
	t := target{protocol: protocol, host: unbracket(args[0])}
	if want == 2 {
		t.port = args[1]
	}
	return t, nil
}

// parseTarget reads "tcp:10.0.0.1:80", "udp:[fd00::1]:53" or "icmp:fd00::1".
func parseTarget(text string) (target, error) {
	protocol, rest, found := strings.Cut(text, ":")
	if !found {
		return target{}, errors.New("want PROTOCOL:ADDRESS[:PORT]")
	}
	if protocol == "icmp" {
		return newTarget(protocol, []string{rest})
	}
	// The last colon starts the port, so brackets are welcome but not needed.
	colon := strings.LastIndex(rest, ":")
	if colon < 0 {
		return target{}, errors.New("port is missing")
	}
	return newTarget(protocol, []string{rest[:colon], rest[colon+1:]})
}

func unbracket(host string) string {
	return strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
}

func (t target) address() string {
	return net.JoinHostPort(t.host, t.port)
}

// dialer sends from source, when one is given.
func dialer(protocol, source string) (*net.Dialer, error) {
	d := &net.Dialer{}
	if source == "" {
		return d, nil
	}
	ip := net.ParseIP(unbracket(source))
	if ip == nil {
		return nil, fmt.Errorf("source %q is no address", source)
	}
	if protocol == "tcp" {
		d.LocalAddr = &net.TCPAddr{IP: ip}
	} else {
		d.LocalAddr = &net.UDPAddr{IP: ip}
	}
	return d, nil
}
