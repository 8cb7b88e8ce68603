// Package sim plays scenarios on a fleet of simulated hosts and a real control plane, measures what happens, and checks at
// the end that everything is true that must be.
//
// What is true is kept in a ledger that shares no code with the product: who banned what until when, and what of it was
// acknowledged. The check compares it with what each host holds, with what the control plane lists, with the history that
// people watch and with the receipts.
package sim

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	"github.com/fleetban/fleetban/scripts/fleetsim/internal/host"
	"github.com/fleetban/fleetban/scripts/fleetsim/internal/peer"
	"github.com/fleetban/fleetban/scripts/fleetsim/internal/plane"
)

// Options of Run.
type Options struct {
	// Scenario is one of Names, several with commas, or "all".
	Scenario string
	Hosts    int
	Replicas int
	// Bans is about how many each scenario makes; Duration about how long it goes on.
	Bans     int
	Duration time.Duration
	Seed     uint64
	TLS      bool
	// Addressed is how many hosts tell the fleet an address of theirs: each host holds those of all.
	Addressed int
	// Peers measures what something simpler takes for the same.
	Peers bool
	// BinDir has the control plane's program.
	BinDir string
	// Dir is kept when it is given; else a folder is made and removed.
	Dir string
	// SettleWithin is how long hosts may take to be in sync once nothing happens any more. Default 60 s.
	SettleWithin time.Duration
	// ProfileDir is where profiles of the processor go, one of this process and some of each replica for each scenario. Optional.
	ProfileDir string
	// Sabotage makes hosts faulty, one each: the check must find it. See Sabotages.
	Sabotage []string
	// Progress is told what is going on. Optional.
	Progress func(format string, args ...any)

	report *Report
}

// ErrViolated is returned by Run, with the report, where something isn't true that must be.
var ErrViolated = errors.New("invariants are violated")

// Names lists the scenarios with what they are.
func Names() (out []string) {
	for _, s := range scenarios {
		out = append(out, fmt.Sprintf("%-10s %s", s.name, s.help))
	}
	return append(out, fmt.Sprintf("%-10s %s", "all", "one after the other on the same fleet"))
}

func (o *Options) complete() ([]scenario, error) {
	var chosen []scenario
	for name := range strings.SplitSeq(o.Scenario, ",") {
		found := false
		for _, s := range scenarios {
			if name == s.name || name == "all" {
				chosen, found = append(chosen, s), true
			}
		}
		if !found {
			return nil, fmt.Errorf("there is no scenario %q", name)
		}
	}
	switch {
	case o.Hosts < 3 || o.Hosts > 19_500:
		return nil, errors.New("3 to 19,500 hosts are possible: a process may have 20,000 files open")
	case o.Replicas < 1 || o.Replicas > 16:
		return nil, errors.New("1 to 16 replicas are possible")
	case o.Bans < 10 || o.Bans > 1_000_000:
		return nil, errors.New("10 to 1,000,000 bans are possible")
	case o.Duration < time.Second || o.Duration > 24*time.Hour:
		return nil, errors.New("a scenario lasts 1 s to 24 h")
	}
	for _, s := range o.Sabotage {
		if !slices.Contains(Sabotages(), s) {
			return nil, fmt.Errorf("there is no sabotage %q", s)
		}
	}
	if o.Seed == 0 {
		o.Seed = uint64(time.Now().UnixNano())
	}
	if o.SettleWithin == 0 {
		o.SettleWithin = time.Minute
	}
	if o.Progress == nil {
		o.Progress = func(string, ...any) {}
	}
	return chosen, nil
}

// Run plays scenarios. With ErrViolated comes a report too.
func Run(ctx context.Context, o Options) (*Report, error) {
	chosen, err := o.complete()
	if err != nil {
		return nil, err
	}
	o.report = &Report{Hosts: o.Hosts, Replicas: o.Replicas, TLS: o.TLS, Seed: o.Seed, Acked: host.Histogram(), Violations: []string{}}
	dir := o.Dir
	if dir == "" {
		if dir, err = os.MkdirTemp("", "fleetsim"); err != nil {
			return nil, err
		}
		defer func() { _ = os.RemoveAll(dir) }()
	}
	o.Progress("starting Redis and %d replicas", o.Replicas)
	control, err := plane.Start(ctx, plane.Options{
		BinDir: o.BinDir, Dir: dir, Replicas: o.Replicas, TLS: o.TLS, Drain: min(max(o.Duration/8, 250*time.Millisecond), 5*time.Second),
	})
	defer control.Stop()
	if err != nil {
		return nil, err
	}
	f := &fleet{
		o: o, plane: control, api: control.API(), world: host.NewWorld(), ledger: newLedger(), budget: newBudget(), gone: map[string]bool{},
		rng: rand.New(rand.NewPCG(o.Seed, 1)), //nolint:gosec // it is to be repeated
	}
	defer f.api.Close()
	f.world.OnCommand = f.commanded
	if err := f.begin(ctx); err != nil {
		return nil, err
	}
	defer f.stop()
	v := &violations{}
	for _, s := range chosen {
		o.Progress("%s: %d bans", s.name, o.Bans)
		part := &Part{Name: s.name}
		o.report.Scenarios = append(o.report.Scenarios, part)
		began := time.Now()
		before := f.cpu()
		profiled := f.profile(ctx, s.name)
		if err := s.play(ctx, f, part); err != nil {
			if ctx.Err() != nil {
				return o.report, ctx.Err()
			}
			v.add(invScenario, "%s: %v", s.name, err)
		}
		part.TookMS = milliseconds(time.Since(began))
		f.spent(part, before, began)
		profiled()
	}
	o.Progress("checking")
	f.timers.Wait()
	if err := f.sabotage(ctx); err != nil {
		return nil, err
	}
	found := f.check(ctx)
	o.report.Violations = append(v.lines(), found.lines()...)
	o.report.Calls = o.report.Retried.Load()
	o.report.Checked = ctx.Err() == nil
	f.watcher.stop()
	f.stop()
	if ctx.Err() != nil {
		return o.report, ctx.Err()
	}
	if o.Peers {
		o.Progress("measuring what something simpler takes")
		control.Stop()
		for _, p := range peer.All() {
			m, err := p.Measure(ctx, dir, o.Hosts, min(o.Bans, 500))
			if err != nil {
				return o.report, fmt.Errorf("measure %s: %w", p.Name, err)
			}
			took := Peer{Name: p.Name, Last: distribution("last delivery", m.Last), PerSecond: m.PerSecond}
			if m.Answered.TotalCount() > 0 {
				answered := distribution("last answer", m.Answered)
				took.Answered = &answered
			}
			o.report.Peers = append(o.report.Peers, took)
		}
	}
	if len(o.report.Violations) > 0 {
		return o.report, ErrViolated
	}
	return o.report, nil
}

// heartbeat is how often both sides of a stream speak when nothing happens.
const heartbeat = 20 * time.Second

// dialling is how many hosts may be connecting when a run begins.
const dialling = 250

// begin enrols all hosts, starts them, waits until they are in sync, and weighs what that costs.
func (f *fleet) begin(ctx context.Context) error {
	o := f.o
	answer, err := f.api.JoinTokens.CreateJoinToken(ctx, connect.NewRequest(operatorv1.CreateJoinTokenRequest_builder{
		Uses: uint32(o.Hosts + 1000), Note: "fleetsim", //nolint:gosec // at most 20,000
	}.Build()))
	if err != nil {
		return fmt.Errorf("make a join token: %w", err)
	}
	f.token = answer.Msg.GetSecret()
	rss, self := f.rss(), plane.SelfUsage().RSS
	o.Progress("enrolling %d hosts", o.Hosts)
	began := time.Now()
	if _, err := f.enrol(ctx, o.Hosts); err != nil {
		return err
	}
	o.report.Enrolled = Figure{o.Hosts, milliseconds(time.Since(began))}
	o.Progress("connecting them")
	began = time.Now()
	arriving, profiled := f.cpu(), f.profile(ctx, "connect")
	for i, h := range f.members() {
		h.Start(ctx)
		// A fleet isn't switched on at once; how it comes back when it loses every stream is another scenario.
		for i-f.world.Connected() >= dialling && ctx.Err() == nil && time.Since(began) < 2*o.SettleWithin {
			sleep(ctx, time.Millisecond)
		}
	}
	if err := f.settle(ctx, 2*o.SettleWithin); err != nil {
		return err
	}
	o.report.Connected = Figure{o.Hosts, milliseconds(time.Since(began))}
	profiled()
	o.Progress("each took %s", f.cpu().since(arriving).each(int64(o.Hosts)))
	if f.watcher, err = watch(ctx, f.api); err != nil {
		return fmt.Errorf("watch: %w", err)
	}
	calm := min(max(o.Duration/4, 500*time.Millisecond), 5*time.Second)
	at := calm
	if o.Duration >= heartbeat {
		at = heartbeat // each host and the replica speak once; a shorter look may miss it
	}
	o.Progress("at rest for %s", calm+at)
	sleep(ctx, calm)
	cpu, since := f.cpu(), time.Now()
	profiled = f.profile(ctx, "rest")
	sleep(ctx, at)
	o.report.IdleCPU = 100 * (f.cpu().replicas - cpu.replicas).Seconds() / time.Since(since).Seconds()
	o.report.IdlePerStream = (f.rss() - rss) / int64(o.Hosts)
	profiled()
	o.report.SelfPerStream = (plane.SelfUsage().RSS - self) / int64(o.Hosts)
	return ctx.Err()
}

// stop ends all streams, many at a time.
func (f *fleet) stop() {
	hosts := f.members()
	var wg sync.WaitGroup
	var next atomic.Int64
	for range atOnce {
		wg.Go(func() {
			for i := next.Add(1) - 1; int(i) < len(hosts); i = next.Add(1) - 1 {
				hosts[i].Stop()
			}
		})
	}
	wg.Wait()
}

func (f *fleet) rss() (n int64) {
	for _, r := range f.plane.Replicas() {
		n += r.Usage().RSS
	}
	return n
}

func (f *fleet) peak() (n int64) {
	for _, r := range f.plane.Replicas() {
		n += r.Usage().Peak
	}
	return n
}

// cpu is what replicas, Redis and the simulator have used.
type cpu struct{ replicas, redis, self time.Duration }

func (c cpu) since(before cpu) cpu {
	return cpu{c.replicas - before.replicas, c.redis - before.redis, c.self - before.self}
}

// each says what each of n took.
func (c cpu) each(n int64) string {
	one := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 / float64(max(n, 1)) }
	return fmt.Sprintf("%.1f µs of the replicas, %.1f µs of Redis, %.1f µs of the simulator", one(c.replicas), one(c.redis), one(c.self))
}

func (f *fleet) cpu() (c cpu) {
	for _, r := range f.plane.Replicas() {
		c.replicas += r.Usage().CPU
	}
	c.redis, c.self = f.plane.RedisUsage().CPU, plane.SelfUsage().CPU
	return c
}

// spent writes down what was used since then. A replica that was started anew begins at nothing.
func (f *fleet) spent(p *Part, since cpu, began time.Time) {
	now, took := f.cpu(), time.Since(began).Seconds()
	share := func(d time.Duration) float64 { return 100 * max(d, 0).Seconds() / took }
	p.row("CPU of the replicas", share(now.replicas-since.replicas), "% of a core")
	p.row("CPU of Redis", share(now.redis-since.redis), "% of a core")
	p.row("CPU of the simulator", share(now.self-since.self), "% of a core")
}

// spentEach writes down what was used since then, for each of n.
func (f *fleet) spentEach(p *Part, before cpu, n int64) {
	spent, each := f.cpu().since(before), float64(max(n, 1))
	p.row(rowEach, float64(spent.replicas.Nanoseconds())/1000/each, "µs")
	p.row("CPU of Redis, a ban and host", float64(spent.redis.Nanoseconds())/1000/each, "µs")
	p.row("CPU of the simulator, a ban and host", float64(spent.self.Nanoseconds())/1000/each, "µs")
}
