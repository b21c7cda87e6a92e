package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"
)

// pushFor is how long a stream goes on after the client's last datagram.
const pushFor = 2 * time.Minute

// server answers with its name and the client's address as it sees it.
type server struct {
	name string
	push time.Duration

	mu      sync.Mutex
	clients map[string]time.Time // pushed to, each until then
}

func serve(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("serve", flag.ExitOnError)
	name := flags.String("name", "probe", "what to call itself")
	tcp := flags.String("tcp", "", "ports, separated by commas")
	udp := flags.String("udp", "", "ports, separated by commas")
	push := flags.Duration("push", 0, "keep sending to each UDP client at this interval")
	rest, err := parse(flags, args)
	if err != nil {
		return err
	}
	if len(rest) > 0 {
		return fmt.Errorf("unexpected %q", rest)
	}
	s := &server{name: *name, push: *push, clients: map[string]time.Time{}}
	// One socket for each family: a socket for both would show IPv4 clients
	// under mapped addresses.
	for _, family := range []string{"4", "6"} {
		for _, port := range ports(*tcp) {
			if err := s.listenTCP("tcp"+family, port); err != nil {
				return err
			}
		}
		for _, port := range ports(*udp) {
			if err := s.listenUDP("udp"+family, port); err != nil {
				return err
			}
		}
	}
	<-ctx.Done()
	return nil
}

func ports(list string) []string {
	return strings.FieldsFunc(list, func(r rune) bool { return r == ',' })
}

func (s *server) greeting(client net.Addr) string {
	host, _, _ := net.SplitHostPort(client.String())
	return s.name + " " + host
}

func (s *server) listenTCP(network, port string) error {
	listener, err := net.Listen(network, ":"+port)
	if err != nil {
		return err
	}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				continue
			}
			go s.echo(conn)
		}
	}()
	return nil
}

func (s *server) echo(conn net.Conn) {
	defer conn.Close()
	fmt.Fprintln(conn, s.greeting(conn.RemoteAddr()))
	for in := bufio.NewScanner(conn); in.Scan(); {
		if _, err := fmt.Fprintln(conn, in.Text()); err != nil {
			return
		}
	}
}

func (s *server) listenUDP(network, port string) error {
	packets, err := net.ListenPacket(network, ":"+port)
	if err != nil {
		return err
	}
	conn := packets.(*net.UDPConn)
	if err := conn.SetReadBuffer(roomy); err != nil {
		return err
	}
	if err := wantDestination(conn, network); err != nil {
		return err
	}
	go func() {
		buffer, control := make([]byte, 2048), make([]byte, 128)
		for {
			n, c, _, client, err := conn.ReadMsgUDP(buffer, control)
			if err != nil {
				continue
			}
			// Handing the control message back makes the answer leave from
			// the address that was asked, which matters to conntrack when a
			// host has several.
			asked := bytes.Clone(control[:c])
			reply := func(payload string) {
				// A firewall may refuse one datagram and let the next pass.
				conn.WriteMsgUDP([]byte(s.greeting(client)+" "+payload), asked, client)
			}
			reply(string(buffer[:n]))
			if s.push > 0 && s.renew(client) {
				go s.pushTo(client, reply)
			}
		}
	}()
	return nil
}

// wantDestination asks the kernel to tell each datagram's destination.
func wantDestination(conn *net.UDPConn, network string) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	level, option := syscall.IPPROTO_IP, syscall.IP_PKTINFO
	if network == "udp6" {
		level, option = syscall.IPPROTO_IPV6, syscall.IPV6_RECVPKTINFO
	}
	var failure error
	err = raw.Control(func(fd uintptr) {
		failure = syscall.SetsockoptInt(int(fd), level, option, 1)
	})
	return errors.Join(err, failure)
}

// renew says whether the client is new, and extends its time in any case.
func (s *server) renew(client *net.UDPAddr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, known := s.clients[client.String()]
	s.clients[client.String()] = time.Now().Add(pushFor)
	return !known
}

func (s *server) expired(client *net.UDPAddr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Now().Before(s.clients[client.String()]) {
		return false
	}
	delete(s.clients, client.String())
	return true
}

func (s *server) pushTo(client *net.UDPAddr, reply func(payload string)) {
	ticker := time.NewTicker(s.push)
	defer ticker.Stop()
	for number := 1; !s.expired(client); number++ {
		<-ticker.C
		reply(fmt.Sprintf("push %d", number))
	}
}
