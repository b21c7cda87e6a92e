package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// result is what came of one attempt, in the words the tests compare.
type result struct {
	verdict string
	name    string
	seen    string
	rtt     time.Duration
}

const (
	open        = "open"
	timeout     = "timeout"
	refused     = "refused"
	unreachable = "unreachable"
)

func (r result) String() string {
	if r.verdict != open {
		return r.verdict
	}
	return fmt.Sprintf("%s %s %s", r.verdict, r.name, r.rtt.Round(time.Microsecond))
}

// failed names the verdict behind an error of the network.
func failed(err error) result {
	switch {
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET):
		return result{verdict: refused}
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return result{verdict: timeout}
	}
	var netErr net.Error
	if errors.As(err, &netErr) && netErr.Timeout() {
		return result{verdict: timeout}
	}
	// No route, prohibited by a firewall, an unknown name.
	return result{verdict: unreachable}
}

// attempt reaches for a target once.
func attempt(ctx context.Context, t target, source string, limit time.Duration) (result, error) {
	if t.protocol == "icmp" {
		return ping(t.host, source, limit)
	}
	d, err := dialer(t.protocol, source)
	if err != nil {
		return result{}, err
	}
	start := time.Now()
	ctx, cancel := context.WithDeadline(ctx, start.Add(limit))
	defer cancel()

	conn, err := d.DialContext(ctx, t.protocol, t.address())
	if err != nil {
		return failed(err), nil
	}
	defer conn.Close()
	connected := time.Since(start)
	conn.SetDeadline(start.Add(limit))

	if t.protocol == "tcp" {
		// A server that is not ours is open all the same, but nameless.
		line, _ := bufio.NewReader(conn).ReadString('\n')
		return opened(line, connected), nil
	}
	if _, err := conn.Write([]byte("hello")); err != nil {
		return failed(err), nil
	}
	buffer := make([]byte, 2048)
	n, err := conn.Read(buffer)
	if err != nil {
		return failed(err), nil
	}
	return opened(string(buffer[:n]), time.Since(start)), nil
}

// opened reads the server's "NAME CLIENT".
func opened(greeting string, rtt time.Duration) result {
	words := append(strings.Fields(greeting), "-", "-")
	return result{verdict: open, name: words[0], seen: words[1], rtt: rtt}
}

func once(ctx context.Context, protocol string, args []string) error {
	flags := flag.NewFlagSet(protocol, flag.ExitOnError)
	limit := flags.Duration("timeout", time.Second, "how long to wait for an answer")
	source := flags.String("source", "", "address to send from")
	seen := flags.Bool("seen", false, "print the address that the server saw as well")
	rest, err := parse(flags, args)
	if err != nil {
		return err
	}
	t, err := newTarget(protocol, rest)
	if err != nil {
		return err
	}
	r, err := attempt(ctx, t, *source, *limit)
	if err != nil {
		return err
	}
	if *seen && r.verdict == open {
		fmt.Println(r, r.seen)
	} else {
		fmt.Println(r)
	}
	if r.verdict != open {
		return errNotOpen
	}
	return nil
}

// many tries all targets at the same time, so that a matrix full of timeouts
// takes as long as one of them.
func many(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("many", flag.ExitOnError)
	limit := flags.Duration("timeout", time.Second, "how long to wait for each answer")
	source := flags.String("source", "", "address to send from")
	texts, err := parse(flags, args)
	if err != nil {
		return err
	}
	if len(texts) == 1 && texts[0] == "-" {
		if texts, err = lines(os.Stdin); err != nil {
			return err
		}
	}
	targets := make([]target, len(texts))
	for i, text := range texts {
		if targets[i], err = parseTarget(text); err != nil {
			return fmt.Errorf("%s: %w", text, err)
		}
	}

	results := make([]string, len(targets))
	var all sync.WaitGroup
	for i, t := range targets {
		all.Go(func() {
			r, err := attempt(ctx, t, *source, *limit)
			if err != nil {
				r.verdict = unreachable
				fmt.Fprintln(os.Stderr, "probe:", texts[i], err)
			}
			results[i] = r.String()
		})
	}
	all.Wait()
	for i, text := range texts {
		fmt.Println(text, results[i])
	}
	return nil
}

func lines(file *os.File) ([]string, error) {
	var all []string
	scanner := bufio.NewScanner(file)
	for scanner.Scan() {
		if text := strings.TrimSpace(scanner.Text()); text != "" {
			all = append(all, text)
		}
	}
	return all, scanner.Err()
}
