package main

import (
	"encoding/binary"
	"math/rand/v2"
	"net"
	"time"
)

// family is how one version of ICMP looks on the wire.
type family struct {
	network     string
	request     byte
	reply       byte
	unreachable byte
	// checksum says whether the sender computes it; for ICMPv6 the kernel does.
	checksum bool
	// quoted is where the echo request starts inside an error about it.
	quoted func(packet []byte) int
}

const headerLength = 8

var (
	icmp4 = family{"ip4:icmp", 8, 0, 3, true, func(packet []byte) int {
		return headerLength + int(packet[headerLength]&0x0f)*4
	}}
	icmp6 = family{"ip6:ipv6-icmp", 128, 129, 1, false, func([]byte) int {
		return headerLength + 40
	}}
)

// pinger is one flow of echo requests: one identifier, many numbers.
type pinger struct {
	family
	conn *net.IPConn
	to   *net.IPAddr
	id   uint16
}

func newPinger(host, source string) (*pinger, error) {
	to, err := net.ResolveIPAddr("ip", host)
	if err != nil {
		return nil, err
	}
	f := icmp6
	if to.IP.To4() != nil {
		f = icmp4
	}
	var local *net.IPAddr
	if source != "" {
		if local, err = net.ResolveIPAddr("ip", unbracket(source)); err != nil {
			return nil, err
		}
	}
	// Not connected: an error comes from a router, which a connected socket
	// would not hear.
	conn, err := net.ListenIP(f.network, local)
	if err != nil {
		return nil, err
	}
	return &pinger{family: f, conn: conn, to: to, id: uint16(rand.Uint32())}, nil
}

func (p *pinger) send(number uint16) error {
	packet := make([]byte, headerLength+8)
	packet[0] = p.request
	binary.BigEndian.PutUint16(packet[4:], p.id)
	binary.BigEndian.PutUint16(packet[6:], number)
	if p.checksum {
		binary.BigEndian.PutUint16(packet[2:], internetChecksum(packet))
	}
	_, err := p.conn.WriteToIP(packet, p.to)
	return err
}

// receive waits for what belongs to this flow; a raw socket hears every flow.
func (p *pinger) receive() (verdict string, err error) {
	buffer := make([]byte, 2048)
	for {
		n, _, err := p.conn.ReadFromIP(buffer)
		if err != nil {
			return "", err
		}
		packet := buffer[:n]
		switch {
		case n < headerLength:
		case packet[0] == p.reply && p.mine(packet):
			return open, nil
		case packet[0] == p.unreachable && n > headerLength:
			if at := p.quoted(packet); n >= at+headerLength && p.mine(packet[at:]) {
				return unreachable, nil
			}
		}
	}
}

func (p *pinger) mine(echo []byte) bool {
	return binary.BigEndian.Uint16(echo[4:]) == p.id
}

func internetChecksum(packet []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(packet); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(packet[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

func ping(host, source string, limit time.Duration) (result, error) {
	p, err := newPinger(host, source)
	if err != nil {
		return result{}, err
	}
	defer p.conn.Close()
	start := time.Now()
	if err := p.send(1); err != nil {
		return failed(err), nil
	}
	p.conn.SetReadDeadline(start.Add(limit))
	verdict, err := p.receive()
	if err != nil {
		return failed(err), nil
	}
	return result{verdict: verdict, name: "-", rtt: time.Since(start)}, nil
}
