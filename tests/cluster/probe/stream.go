package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"
)

// grace is how long after the last message its echo still counts.
const grace = 300 * time.Millisecond

// roomy is more than the kernel gives a socket for what was not read yet: on
// a busy machine a program may get no processor for a second or two, and what
// is thrown away then was not lost by the network. It gives as much as it may.
const roomy = 16 << 20

// flow is one long-lived exchange of numbered messages.
type flow interface {
	send(number int) error
	// receive waits for one message and returns its number.
	receive() (int, error)
	// close ends a receive that is waiting.
	close() error
}

// tally counts what arrives and measures the longest silence.
type tally struct {
	mu           sync.Mutex
	received     int
	first        int
	last         int
	longest      time.Duration
	longestSince time.Time
	previous     time.Time
}

func (t *tally) add(number int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.received == 0 {
		t.first = number
	}
	t.received++
	t.last = max(t.last, number)
	t.silence()
}

// silence closes the gap since the previous message.
func (t *tally) silence() {
	now := time.Now()
	if gap := now.Sub(t.previous); gap > t.longest {
		t.longest, t.longestSince = gap, t.previous
	}
	t.previous = now
}

// stop closes the last gap: a flow that died is silent to the very end.
func (t *tally) stop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.silence()
}

func stream(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("stream", flag.ExitOnError)
	interval := flags.Duration("interval", 10*time.Millisecond, "between two messages")
	duration := flags.Duration("duration", 5*time.Second, "how long to send")
	oneway := flags.Bool("oneway", false, "send one datagram and count what is pushed")
	source := flags.String("source", "", "address to send from")
	rest, err := parse(flags, args)
	if err != nil {
		return err
	}
	if len(rest) < 2 {
		return fmt.Errorf("stream takes a protocol and an address")
	}
	t, err := newTarget(rest[0], rest[1:])
	if err != nil {
		return err
	}
	if *oneway && t.protocol != "udp" {
		return fmt.Errorf("--oneway is for udp")
	}
	f, err := openFlow(ctx, t, *source, *oneway)
	if err != nil {
		fmt.Println(failed(err))
		return errNotOpen
	}

	ctx, cancel := context.WithTimeout(ctx, *duration)
	defer cancel()
	count := &tally{previous: time.Now()}
	broken := make(chan struct{})
	go listen(f, t.protocol, count, broken)

	sent := talk(ctx, f, *interval, *oneway, broken)
	count.stop()
	select {
	case <-broken:
	case <-time.After(grace):
	}
	report(count, sent, *oneway, broken)
	return f.close()
}

// talk sends until the time is over or the connection broke, and returns how
// many messages it sent.
func talk(ctx context.Context, f flow, interval time.Duration, oneway bool, broken <-chan struct{}) int {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for sent := 0; ; {
		if !oneway || sent == 0 {
			sent++
			// A refused message is a lost one; the flow goes on.
			f.send(sent)
		}
		select {
		case <-ctx.Done():
			return sent
		case <-broken:
			return sent
		case <-ticker.C:
		}
	}
}

// listen counts messages until the flow is closed. Only TCP can break: to the
// others an error is one more message that did not arrive.
func listen(f flow, protocol string, count *tally, broken chan<- struct{}) {
	for {
		number, err := f.receive()
		switch {
		case err == nil:
			count.add(number)
		case protocol == "tcp" || errors.Is(err, net.ErrClosed):
			close(broken)
			return
		}
	}
}

func report(count *tally, sent int, oneway bool, broken <-chan struct{}) {
	count.mu.Lock()
	defer count.mu.Unlock()
	lost := sent - count.received
	if oneway {
		// What the numbers between the first and the last push leave out.
		lost = 0
		if count.received > 0 {
			lost = count.last - count.first + 1 - count.received
		}
	}
	suffix := ""
	select {
	case <-broken:
		suffix = " broken"
	default:
	}
	fmt.Printf("sent %d received %d lost %d longest-gap-ms %d since %s%s\n",
		sent, count.received, lost, count.longest.Milliseconds(), count.longestSince.Format("15:04:05.000"), suffix)
}

func openFlow(ctx context.Context, t target, source string, oneway bool) (flow, error) {
	if t.protocol == "icmp" {
		p, err := newPinger(t.host, source)
		return icmpFlow{p}, err
	}
	d, err := dialer(t.protocol, source)
	if err != nil {
		return nil, err
	}
	d.Timeout = time.Second
	conn, err := d.DialContext(ctx, t.protocol, t.address())
	if err != nil {
		return nil, err
	}
	if udp, ok := conn.(*net.UDPConn); ok {
		return udpFlow{conn, oneway}, udp.SetReadBuffer(roomy)
	}
	in := bufio.NewReader(conn)
	conn.SetReadDeadline(time.Now().Add(time.Second))
	if _, err := in.ReadString('\n'); err != nil {
		return nil, err
	}
	conn.SetReadDeadline(time.Time{})
	return tcpFlow{conn, in}, nil
}

type tcpFlow struct {
	conn net.Conn
	in   *bufio.Reader
}

func (f tcpFlow) send(number int) error {
	// A connection that was cut takes messages only until the buffer is full.
	f.conn.SetWriteDeadline(time.Now().Add(grace))
	_, err := fmt.Fprintln(f.conn, number)
	return err
}

func (f tcpFlow) receive() (number int, err error) {
	_, err = fmt.Fscanln(f.in, &number)
	return number, err
}

func (f tcpFlow) close() error { return f.conn.Close() }

// udpFlow counts what is pushed or what is echoed, never both: a server that
// pushes does so besides its echoes.
type udpFlow struct {
	conn   net.Conn
	pushed bool
}

func (f udpFlow) send(number int) error {
	_, err := fmt.Fprint(f.conn, number)
	return err
}

// receive takes the last word: the number that was sent or pushed.
func (f udpFlow) receive() (number int, err error) {
	buffer := make([]byte, 2048)
	for {
		n, err := f.conn.Read(buffer)
		if err != nil {
			return 0, err
		}
		text := string(buffer[:n])
		if strings.Contains(text, " push ") == f.pushed {
			_, err = fmt.Sscan(text[strings.LastIndexByte(text, ' ')+1:], &number)
			return number, err
		}
	}
}

func (f udpFlow) close() error { return f.conn.Close() }

type icmpFlow struct{ *pinger }

func (f icmpFlow) send(number int) error { return f.pinger.send(uint16(number)) }

func (f icmpFlow) receive() (int, error) {
	for {
		verdict, err := f.pinger.receive()
		if err != nil || verdict == open {
			return 0, err
		}
	}
}

func (f icmpFlow) close() error { return f.conn.Close() }
