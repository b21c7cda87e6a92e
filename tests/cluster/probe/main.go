// Probe is both ends of the connections the cluster tests make: a server that
// says who it is and whom it sees, and clients that say in one line what came
// of an attempt. It is static and needs nothing of its image.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

const usage = `probe serve --name N [--tcp 80,443] [--udp 53] [--push 10ms]
probe tcp|udp ADDR PORT [--timeout 1s] [--source A] [--seen]
probe icmp ADDR [--timeout 1s] [--source A]
probe many [--timeout 1s] [--source A] tcp:10.0.0.1:80 udp:[fd00::1]:53 icmp:fd00::1 | -
probe stream tcp|udp ADDR PORT [--interval 10ms] [--duration 5s] [--oneway] [--source A]
probe stream icmp ADDR [--interval 10ms] [--duration 5s] [--source A]
probe hammer tcp ADDR PORT [--interval 20ms] [--duration 5s] [--timeout 1s] [--source A]
probe advertise PREFIX/64
probe sleep

Results: open NAME RTT [SEEN] | timeout | refused | unreachable
SEEN is the address that the server saw the client come from.
Exit status: 0 open, 1 any other result, 2 wrong usage
`

// errNotOpen is a result already printed that is not "open".
var errNotOpen = errors.New("not open")

var commands = map[string]func(ctx context.Context, args []string) error{
	"serve":     serve,
	"sleep":     sleep,
	"advertise": advertise,
	"many":      many,
	"stream":    stream,
	"hammer":    hammer,
	"tcp":       func(ctx context.Context, args []string) error { return once(ctx, "tcp", args) },
	"udp":       func(ctx context.Context, args []string) error { return once(ctx, "udp", args) },
	"icmp":      func(ctx context.Context, args []string) error { return once(ctx, "icmp", args) },
}

func main() {
	// Every command ends on the first signal, and stream and hammer still
	// print their last line.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()

	if len(os.Args) < 2 || commands[os.Args[1]] == nil {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	switch err := commands[os.Args[1]](ctx, os.Args[2:]); {
	case err == nil:
	case errors.Is(err, errNotOpen):
		os.Exit(1)
	default:
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(2)
	}
}

// parse lets flags stand anywhere among the arguments and returns the rest.
func parse(flags *flag.FlagSet, args []string) ([]string, error) {
	var rest []string
	for {
		if err := flags.Parse(args); err != nil {
			return nil, err
		}
		if flags.NArg() == 0 {
			return rest, nil
		}
		rest = append(rest, flags.Arg(0))
		args = flags.Args()[1:]
	}
}

// sleep is what a pod's sandbox runs: it waits, and as the first process of a
// shared pid namespace collects the orphans.
func sleep(ctx context.Context, _ []string) error {
	orphans := make(chan os.Signal, 1)
	signal.Notify(orphans, syscall.SIGCHLD)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-orphans:
			for {
				pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
				if pid <= 0 || err != nil {
					break
				}
			}
		}
	}
}
