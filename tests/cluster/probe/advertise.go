package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"syscall"
)

// advertise says once, as a router does, to all who listen that it is their
// router, and that addresses of a prefix are for the taking.
func advertise(_ context.Context, args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("advertise takes a prefix")
	}
	_, prefix, err := net.ParseCIDR(args[0])
	if err != nil {
		return err
	}
	const lifetime = 1800
	advertisement := make([]byte, 16+32)
	advertisement[0] = 134
	advertisement[4] = 64 // Hop limit.
	binary.BigEndian.PutUint16(advertisement[6:], lifetime)
	// A prefix: on this link, and to make addresses of.
	option := advertisement[16:]
	length, _ := prefix.Mask.Size()
	option[0], option[1], option[2], option[3] = 3, 4, byte(length), 0xc0
	binary.BigEndian.PutUint32(option[4:], lifetime)
	binary.BigEndian.PutUint32(option[8:], lifetime)
	copy(option[16:], prefix.IP)

	conn, err := net.ListenIP("ip6:ipv6-icmp", nil)
	if err != nil {
		return err
	}
	defer conn.Close()
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var failure error
	err = raw.Control(func(fd uintptr) {
		// Who comes from afar is not believed.
		failure = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_IPV6, syscall.IPV6_MULTICAST_HOPS, 255)
	})
	if err := errors.Join(err, failure); err != nil {
		return err
	}
	_, err = conn.WriteToIP(advertisement, &net.IPAddr{IP: net.ParseIP("ff02::1"), Zone: "eth0"})
	return err
}
