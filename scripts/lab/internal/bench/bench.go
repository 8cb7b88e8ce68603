// Package bench measures the way of one ban on real parts, and what the parts weigh. It prints figures beside what is
// promised; it is no test.
package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"time"

	"connectrpc.com/connect"

	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	"github.com/fleetban/fleetban/scripts/lab/internal/lab"
)

// Options of a benchmark.
type Options struct {
	Lab lab.Options
	// Bans is how many bans are measured, at most 200.
	Bans int
	// Idle is for how long the processes are watched at rest.
	Idle time.Duration
	Out  io.Writer
}

const (
	// Of a host, promotions bans are promoted at once, and one more every promotionEach. The first host only listens.
	promotions    = 30
	promotionEach = 2 * time.Second
	// apart is the least time between two bans: what fail2ban and its action do after the one is over before the next.
	apart   = 250 * time.Millisecond
	maxBans = 200
	// loaded is how many fleet bans the processes hold when they are weighed.
	loaded  = 10_000
	oneStep = time.Minute

	// What CrowdSec's local API to its firewall bouncer took on comparable hardware, to set the figures beside.
	crowdsecDefault, crowdsecPolled = 8800 * time.Millisecond, 580 * time.Millisecond
)

// Run makes a lab, measures and takes it down.
func Run(ctx context.Context, options Options) (err error) {
	if options.Bans < 1 || options.Bans > maxBans {
		return fmt.Errorf("1 to %d bans can be measured, not %d", maxBans, options.Bans)
	}
	if options.Lab.Hosts < 2 {
		return errors.New("at least 2 hosts are needed: one bans, the other is told")
	}
	options.Lab.Fleetban, options.Lab.Leased, options.Lab.Debug = true, true, true
	// One attempt is a ban: what is measured begins at fail2ban's line.
	options.Lab.Fail2ban = map[string]lab.Fail2ban{}
	for i := range options.Lab.Hosts {
		options.Lab.Fail2ban[string(rune('a'+i))] = lab.Fail2ban{MaxRetry: 1}
	}
	l, err := lab.Up(ctx, options.Lab)
	if err != nil {
		return err
	}
	defer func() {
		if downErr := l.Down(context.WithoutCancel(ctx)); err == nil {
			err = downErr
		}
	}()
	if err := measure(ctx, l, options); err != nil {
		return err
	}
	return weigh(ctx, l, options)
}

// measure measures from fail2ban's line on one host to the element in the kernel of another.
func measure(ctx context.Context, l *lab.Lab, options Options) error {
	all := l.Hosts()
	listener, banning := all[0], all[1:]
	kernel, err := listener.WatchKernel()
	if err != nil {
		return err
	}
	defer kernel.Close()
	var sockets []*lab.Fail2banSocket
	var lines []*lab.BanLines
	for _, h := range banning {
		socket, err := h.DialFail2ban(ctx)
		if err != nil {
			return err
		}
		defer socket.Close()
		watch, err := h.WatchBanLines()
		if err != nil {
			return err
		}
		defer watch.Close()
		sockets, lines = append(sockets, socket), append(lines, watch)
	}
	ways := make([]way, 0, options.Bans)
	pace := time.NewTicker(spacing(options.Bans, len(banning)))
	defer pace.Stop()
	for i := range options.Bans {
		select {
		case <-pace.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		at, addr := i%len(banning), lab.SourceAddr(i)
		kernel.Expect(addr)
		if err := sockets[at].Command("set", "sshd", "attempt", addr.String()); err != nil {
			return err
		}
		step, cancel := context.WithTimeout(ctx, oneStep)
		arrived, err := kernel.Await(step, addr)
		cancel()
		if err != nil {
			return fmt.Errorf("ban %d, made on %s: on %s %w", i+1, banning[at].Name, listener.Name, err)
		}
		line, ok := lines[at].At(addr)
		if !ok {
			return fmt.Errorf("%s was in the kernel of %s before its line was in the log of %s", addr, listener.Name, banning[at].Name)
		}
		ways = append(ways, way{addr: addr, from: banning[at], line: line, arrived: arrived})
	}
	took := make([]time.Duration, 0, len(ways))
	for _, w := range ways {
		took = append(took, w.arrived.Sub(w.line))
	}
	least, err := floor(ctx, l, kernel)
	if err != nil {
		return fmt.Errorf("measure the floor: %w", err)
	}
	p50, p99 := quantile(took, 0.50), quantile(took, 0.99)
	fmt.Fprintf(options.Out, "one ban's way: fail2ban's line on one host to the kernel of another, %d bans\n", len(took))
	print := func(name string, value, promised time.Duration) {
		fmt.Fprintf(options.Out, "  %-6s %9.2f ms   promised at most %3d ms%s\n", name, milliseconds(value), promised.Milliseconds(), miss(value, promised))
	}
	print("p50", p50, 10*time.Millisecond)
	print("p99", p99, 50*time.Millisecond)
	fmt.Fprintf(options.Out, "  max    %9.2f ms\n", milliseconds(slices.Max(took)))
	fmt.Fprintf(options.Out, "  a bare PUBLISH in the same Redis, its subscriber, nft: p50 %.2f ms, p99 %.2f ms; a ban takes %.1f times that\n",
		milliseconds(quantile(least, 0.50)), milliseconds(quantile(least, 0.99)), float64(p50)/float64(quantile(least, 0.50)))
	fmt.Fprintf(options.Out, "  CrowdSec, local API to firewall bouncer, medians measured elsewhere: its defaults %.0f times a ban, polled each second %.0f times\n\n",
		float64(crowdsecDefault)/float64(p50), float64(crowdsecPolled)/float64(p50))
	return printParts(options.Out, l, listener, ways)
}

// spacing is how far apart bans must be for all of them to be promoted.
func spacing(bans, hosts int) time.Duration {
	each := (bans + hosts - 1) / hosts
	if over := each - promotions; over > 0 {
		// A tenth more than the limit asks for, so that its rounding doesn't matter.
		return max(apart, time.Duration(over)*promotionEach*11/10/time.Duration(bans))
	}
	return apart
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func miss[T time.Duration | float64](value, promised T) string {
	if value <= promised {
		return ""
	}
	return fmt.Sprintf("   MISSED, %.1f times", float64(value)/float64(promised))
}

// quantile of values by nearest rank.
func quantile(values []time.Duration, q float64) time.Duration {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

// load makes fleet bans of addresses that nobody in the lab has, and waits until all hosts hold them.
func load(ctx context.Context, l *lab.Lab) error {
	operator := l.Operator()
	addr := netip.MustParseAddr("45.0.0.1")
	const chunk = 1000
	for range loaded / chunk {
		prefixes := make([]string, 0, chunk)
		for range chunk {
			prefixes = append(prefixes, addr.String())
			addr = addr.Next()
		}
		made, err := operator.Bans.Ban(ctx, connect.NewRequest(operatorv1.BanRequest_builder{
			Prefixes: prefixes, DurationS: 3600, Reason: "weight",
		}.Build()))
		if err != nil {
			return err
		}
		stream, err := operator.Bans.WatchReceipts(ctx, connect.NewRequest(operatorv1.WatchReceiptsRequest_builder{
			Cursor: made.Msg.GetCursor(),
		}.Build()))
		if err != nil {
			return err
		}
		for stream.Receive() && !stream.Msg().GetComplete() {
		}
		if err := stream.Err(); err != nil {
			return err
		}
		_ = stream.Close()
	}
	return nil
}
