package main

import (
	"context"
	"flag"
	"fmt"
	"sync"
	"time"
)

// hammer opens a new connection each interval, whether or not the earlier
// ones have been answered, and counts what came of them.
func hammer(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("hammer", flag.ExitOnError)
	interval := flags.Duration("interval", 20*time.Millisecond, "between two attempts")
	duration := flags.Duration("duration", 5*time.Second, "how long to go on")
	limit := flags.Duration("timeout", time.Second, "how long to wait for each answer")
	source := flags.String("source", "", "address to send from")
	rest, err := parse(flags, args)
	if err != nil {
		return err
	}
	if len(rest) == 0 || rest[0] != "tcp" {
		return fmt.Errorf("hammer takes tcp, an address and a port")
	}
	t, err := newTarget(rest[0], rest[1:])
	if err != nil {
		return err
	}

	ctx, cancel := context.WithTimeout(ctx, *duration)
	defer cancel()
	var (
		all     sync.WaitGroup
		mu      sync.Mutex
		counts  = map[string]int{}
		tried   int
		success = tally{previous: time.Now()}
	)
	ticker := time.NewTicker(*interval)
	defer ticker.Stop()
	for ctx.Err() == nil {
		tried++
		all.Go(func() {
			// Attempts under way at the end are still waited for.
			r, err := attempt(context.WithoutCancel(ctx), t, *source, *limit)
			if err != nil {
				r.verdict = unreachable
			}
			mu.Lock()
			defer mu.Unlock()
			counts[r.verdict]++
			if r.verdict == open {
				success.silence()
			}
		})
		select {
		case <-ctx.Done():
		case <-ticker.C:
		}
	}
	all.Wait()
	success.stop()
	fmt.Printf("tried %d open %d timeout %d refused %d unreachable %d longest-gap-ms %d\n",
		tried, counts[open], counts[timeout], counts[refused], counts[unreachable], success.longest.Milliseconds())
	return nil
}
