package sim

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/scripts/fleetsim/internal/host"
)

// long is how long bans last that outlive the run.
const long = time.Hour

// scenario is one course of events. It returns what it made and wants measured; bans of before are not.
type scenario struct {
	name, help string
	play       func(context.Context, *fleet, *Part) error
}

// scenarios in the order that "all" plays them.
var scenarios = []scenario{
	{nameSingle, "one ban after the other, each when every host has acknowledged the one before", single},
	{"steady", "bans now and then, some short, some lifted by an operator or on the host", steady},
	{"storm", "many bans at once", storm},
	{"wave", "the same addresses seen by many hosts within moments", wave},
	{"reconnect", "a replica is killed, then every connection is cut", reconnect},
	{"kill", "every host is on one replica, which is killed", kill},
	{"events", "some hosts tell of events as fast as they are acknowledged", events},
	{"slow", "a tenth of the hosts take in what they are sent slowly, while many bans are made", slow},
	{"flap", "a fifth of the hosts lose their connection again and again", flap},
	{"churn", "hosts restart, forget what they held, leave and join; replicas restart one after the other", churn},
}

// made is what a scenario measures.
type made struct {
	mu       sync.Mutex
	prefixes []netip.Prefix
	receipts []time.Duration
}

// ban makes a measured ban: by a host where its rate allows that, else by the operator.
func (f *fleet) ban(ctx context.Context, m *made, d time.Duration) (p netip.Prefix, by *host.Host, err error) {
	p = f.prefix()
	m.mu.Lock()
	m.prefixes = append(m.prefixes, p)
	m.mu.Unlock()
	if h := f.any(); f.budget.take(h.Number) {
		f.world.Made(p, h.Number)
		f.observe(h, jailOne, p, d, nil)
		return p, h, nil
	}
	f.world.Made(p, -1)
	_, err = f.order(ctx, d, p)
	return p, nil, err
}

// background makes n bans spread over a time, some of them short and some of them lifted before their end.
func (f *fleet) background(ctx context.Context, m *made, n int, over time.Duration) error {
	var calls sync.WaitGroup
	var failed error
	var once sync.Once
	run := func(work func() error) {
		calls.Go(func() {
			if err := work(); err != nil {
				once.Do(func() { failed = err })
			}
		})
	}
	began := time.Now()
	each := over / time.Duration(n)
	for i := range n {
		sleep(ctx, time.Until(began.Add(time.Duration(i)*each)))
		if ctx.Err() != nil {
			break
		}
		switch chance := f.random(100); {
		case chance < 10: // short, and fail2ban says that it ran out
			run(func() error {
				d := 2*time.Second + time.Duration(f.random(1500))*time.Millisecond
				p, by, err := f.ban(ctx, m, d)
				if by != nil {
					f.timers.Go(func() {
						sleep(context.WithoutCancel(ctx), d+50*time.Millisecond)
						f.unban(by, jailOne, p, fleetbanv1.UnbanCause_UNBAN_CAUSE_EXPIRED)
					})
				}
				return err
			})
		case chance < 20: // a person on the host lifts it, once it is the fleet's
			h := f.any()
			if !f.budget.take(h.Number) {
				run(func() error { _, _, err := f.ban(ctx, m, long); return err })
				continue
			}
			p := f.prefix()
			f.world.Made(p, h.Number)
			f.observe(h, jailOne, p, long, func() { f.unban(h, jailOne, p, fleetbanv1.UnbanCause_UNBAN_CAUSE_PERSON) })
		case chance < 30: // an operator lifts it
			h, p := f.any(), f.prefix()
			f.world.Made(p, h.Number)
			jail := jailOne
			if !f.budget.take(h.Number) {
				jail = jailLocal
			}
			f.observe(h, jail, p, long, func() {
				if err := f.lift(context.WithoutCancel(ctx), p); err != nil {
					once.Do(func() { failed = err })
				}
			})
		case chance < 40: // an operator bans, and waits until it is everywhere
			run(func() error {
				p := f.prefix()
				f.world.Made(p, -1)
				begun := time.Now()
				cursor, err := f.order(ctx, long, p)
				if err != nil {
					return err
				}
				bounded, cancel := context.WithTimeout(ctx, retryFor)
				defer cancel()
				if last, err := f.receipts(bounded, cursor); err == nil && last.GetEnforced() == last.GetInScope() {
					m.mu.Lock()
					m.receipts = append(m.receipts, time.Since(begun))
					m.prefixes = append(m.prefixes, p)
					m.mu.Unlock()
				}
				return nil
			})
		default:
			run(func() error { _, _, err := f.ban(ctx, m, long); return err })
		}
	}
	calls.Wait()
	return failed
}

// finish waits until all hosts are in sync and writes down what was measured.
func (f *fleet) finish(ctx context.Context, p *Part, m *made) error {
	err := f.settle(ctx, f.o.SettleWithin)
	p.Bans = len(m.prefixes)
	live, late := f.world.Latencies()
	p.hist(histAcked, f.o.report.takeAcked())
	p.hist(histLive, live[host.Ordinary])
	p.hist(histSlow, live[host.Slow])
	p.hist(histLate, late)
	p.hist(histLast, f.world.Last(m.prefixes, len(f.members())-1))
	receipts := host.Histogram()
	for _, d := range m.receipts {
		host.Observe(receipts, d)
	}
	p.hist(histReceipts, receipts)
	f.world.Close(m.prefixes)
	return err
}

func steady(ctx context.Context, f *fleet, p *Part) error {
	m := &made{}
	if err := f.background(ctx, m, f.o.Bans, f.o.Duration); err != nil {
		return err
	}
	return f.finish(ctx, p, m)
}

// single measures a ban by itself. An operator orders it, for how long a host's word takes to become the fleet's is another
// figure.
func single(ctx context.Context, f *fleet, p *Part) error {
	m := &made{}
	before, began := f.cpu(), time.Now()
	for len(m.prefixes) < f.o.Bans && (time.Since(began) < f.o.Duration || len(m.prefixes) < 3) && ctx.Err() == nil {
		a := f.prefix()
		f.world.Made(a, -1)
		begun := time.Now()
		cursor, err := f.order(ctx, long, a)
		if err != nil {
			return err
		}
		bounded, cancel := context.WithTimeout(ctx, retryFor)
		last, err := f.receipts(bounded, cursor)
		cancel()
		if err != nil {
			return fmt.Errorf("wait for %d receipts: %w", last.GetInScope(), err)
		}
		m.receipts = append(m.receipts, time.Since(begun))
		m.prefixes = append(m.prefixes, a)
	}
	f.spentEach(p, before, int64(len(m.prefixes)*len(f.members())))
	return f.finish(ctx, p, m)
}

func storm(ctx context.Context, f *fleet, p *Part) error {
	return f.storm(ctx, p, &made{})
}

// storm makes all bans as fast as they are taken, a fifth of them by hosts where their rates allow it.
func (f *fleet) storm(ctx context.Context, p *Part, m *made) error {
	const callers = 8
	applied, began, cpu := f.world.Applied.Load(), time.Now(), f.cpu()
	n := f.o.Bans
	for range n / 5 {
		h := f.any()
		if !f.budget.take(h.Number) {
			continue
		}
		a := f.prefix()
		m.prefixes = append(m.prefixes, a)
		f.world.Made(a, h.Number)
		f.observe(h, jailOne, a, long, nil)
		n--
	}
	batch := min(max(n/(4*callers), 1), 100)
	var left atomic.Int64
	left.Store(int64(n))
	var wg sync.WaitGroup
	var failed error
	var once sync.Once
	for range callers {
		wg.Go(func() {
			for {
				size := min(int64(batch), left.Add(-int64(batch))+int64(batch))
				if size <= 0 || ctx.Err() != nil {
					return
				}
				prefixes := make([]netip.Prefix, size)
				for i := range prefixes {
					prefixes[i] = f.prefix()
					f.world.Made(prefixes[i], -1)
				}
				m.mu.Lock()
				m.prefixes = append(m.prefixes, prefixes...)
				m.mu.Unlock()
				if _, err := f.order(ctx, long, prefixes...); err != nil {
					once.Do(func() { failed = err })
					return
				}
			}
		})
	}
	wg.Wait()
	if failed != nil {
		return failed
	}
	taken := time.Since(began)
	err := f.finish(ctx, p, m)
	took := time.Since(began)
	p.row("bans taken a second", float64(len(m.prefixes))/taken.Seconds(), "")
	p.row(rowDelivered, float64(f.world.Applied.Load()-applied)/took.Seconds(), "")
	f.spentEach(p, cpu, f.world.Applied.Load()-applied)
	return err
}

// seenBy is how many hosts see each address of a wave.
const seenBy = 10

func wave(ctx context.Context, f *fleet, p *Part) error {
	m := &made{}
	addresses := max(f.o.Bans/seenBy, 1)
	events := 0
	for i := range addresses {
		a := f.prefix()
		jail := jailOne
		if i%2 == 1 {
			jail = jailTwo
		}
		f.world.Made(a, -1)
		hosts := f.members()
		promoted := 0
		for range min(seenBy, len(hosts)) {
			j := f.random(len(hosts))
			h := hosts[j]
			hosts = append(hosts[:j], hosts[j+1:]...)
			what := jail
			if !f.budget.take(h.Number) {
				what = jailLocal
			} else {
				promoted++
			}
			events++
			f.observe(h, what, a, long+time.Duration(f.random(60))*time.Second, nil)
		}
		if jail == jailOne && promoted > 0 || promoted > 1 {
			m.prefixes = append(m.prefixes, a)
		}
	}
	err := f.finish(ctx, p, m)
	p.row("events", float64(events), "")
	return err
}

func reconnect(ctx context.Context, f *fleet, p *Part) error {
	m := &made{}
	var background sync.WaitGroup
	var failed error
	background.Go(func() { failed = f.background(ctx, m, max(f.o.Bans/4, 1), f.o.Duration) })
	sleep(ctx, f.o.Duration/4)
	replicas := f.plane.Replicas()
	if len(replicas) > 1 {
		for _, r := range replicas[1:] {
			r.ResetPeak()
		}
		steady, snapshots := replicas[1].Usage().RSS, f.world.Snapshots.Load()
		scripts := f.scripts(ctx)
		moved := 0
		for _, h := range f.members() {
			if h.Status().Replica == replicas[0].Instance() {
				moved++
			}
		}
		began, connects := time.Now(), f.world.Connects.Load()
		replicas[0].Kill()
		up, inSync, err := f.back(ctx, began, connects+int64(moved))
		if err != nil {
			return err
		}
		p.row("replica killed: its streams", float64(moved), "")
		p.row("replica killed: all have a stream after", milliseconds(up), "ms")
		p.row("replica killed: all are in sync after", milliseconds(inSync), "ms")
		p.row("a survivor's peak RSS, times its RSS before", float64(replicas[1].Usage().Peak)/float64(max(steady, 1)), "")
		p.row("snapshots sent", float64(f.world.Snapshots.Load()-snapshots), "")
		p.row("scripts that Redis ran a stream that moved", (f.scripts(ctx)-scripts)/float64(max(moved, 1)), "")
		if err := replicas[0].Start(ctx); err != nil {
			return err
		}
	}
	snapshots, scripts, connects := f.world.Snapshots.Load(), f.scripts(ctx), f.world.Connects.Load()
	began := time.Now()
	for _, h := range f.members() {
		h.Cut()
	}
	up, inSync, err := f.back(ctx, began, connects+int64(len(f.members())))
	if err != nil {
		return err
	}
	again := f.world.Connects.Load() - connects
	p.row("every connection cut: all have a stream after", milliseconds(up), "ms")
	p.row("every connection cut: all are in sync after", milliseconds(inSync), "ms")
	p.row("snapshots sent", float64(f.world.Snapshots.Load()-snapshots), "")
	p.row("scripts that Redis ran a new stream", (f.scripts(ctx)-scripts)/float64(max(again, 1)), "")
	background.Wait()
	if failed != nil {
		return failed
	}
	return f.finish(ctx, p, m)
}

// back waits until there were so many streams and every host has one, and until all are in sync.
func (f *fleet) back(ctx context.Context, began time.Time, connects int64) (up, inSync time.Duration, err error) {
	deadline := began.Add(f.o.SettleWithin)
	n := len(f.members())
	for f.world.Connected() < n || f.world.Connects.Load() < connects {
		if time.Now().After(deadline) || ctx.Err() != nil {
			example := ""
			for _, h := range f.members() {
				if !h.Up() {
					example = h.Name + ": " + describe(h)
				}
			}
			return 0, 0, fmt.Errorf("%w: %d of %d hosts have a stream %s after they lost it; %s", errNotSettled, f.world.Connected(), n,
				time.Since(began).Round(time.Millisecond), example)
		}
		sleep(ctx, 5*time.Millisecond)
	}
	up = time.Since(began)
	for {
		// Bans go on: a host that was never seen current would be told by the check.
		state, err := f.current(ctx)
		if err != nil {
			return up, 0, err
		}
		if n, example := f.reached(state); n == 0 {
			return up, time.Since(began), nil
		} else if time.Now().After(deadline) {
			return up, 0, fmt.Errorf("%w: %d are behind %s after they lost their stream: %s", errNotSettled, n, time.Since(began).Round(time.Millisecond), example)
		}
		sleep(ctx, 10*time.Millisecond)
	}
}

// slowBy is how long a slow host takes for each update.
const slowBy = 300 * time.Millisecond

func slow(ctx context.Context, f *fleet, p *Part) error {
	hosts := f.members()
	var chosen []*host.Host
	for i, h := range hosts {
		if i%10 == 0 {
			chosen = append(chosen, h)
			h.SetSlow(slowBy)
		}
	}
	for _, r := range f.plane.Replicas() {
		r.ResetPeak()
	}
	rss := f.rss()
	m := &made{}
	// They become quick again while there is much left to take in.
	timer := time.AfterFunc(f.o.Duration, func() {
		for _, h := range chosen {
			h.SetSlow(0)
		}
	})
	defer timer.Stop()
	err := f.storm(ctx, p, m)
	p.row("slow hosts", float64(len(chosen)), "")
	p.row("peak RSS of replicas, times that before", float64(f.peak())/float64(max(rss, 1)), "")
	for _, h := range chosen {
		h.ForgetSlow()
	}
	return err
}

func flap(ctx context.Context, f *fleet, p *Part) error {
	m := &made{}
	snapshots, deltas, connects := f.world.Snapshots.Load(), f.world.Deltas.Load(), f.world.Connects.Load()
	flapping, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	for i, h := range f.members() {
		if i%5 != 0 {
			continue
		}
		first, each := time.Duration(f.random(1000))*time.Millisecond, time.Duration(300+f.random(900))*time.Millisecond
		wg.Go(func() {
			for sleep(flapping, first); flapping.Err() == nil; sleep(flapping, each) {
				h.Cut()
			}
		})
	}
	err := f.background(ctx, m, max(f.o.Bans/2, 1), f.o.Duration)
	stop()
	wg.Wait()
	if err != nil {
		return err
	}
	err = f.finish(ctx, p, m)
	p.row("reconnects", float64(f.world.Connects.Load()-connects), "")
	p.row("snapshots sent", float64(f.world.Snapshots.Load()-snapshots), "")
	p.row("deltas sent", float64(f.world.Deltas.Load()-deltas), "")
	return err
}

func churn(ctx context.Context, f *fleet, p *Part) error {
	m := &made{}
	var wg sync.WaitGroup
	var once sync.Once
	var failed error
	note := func(err error) {
		if err != nil {
			once.Do(func() { failed = err })
		}
	}
	wg.Go(func() { note(f.background(ctx, m, max(f.o.Bans/2, 1), f.o.Duration)) })
	restarts, wipes, gone := 0, 0, 0
	wg.Go(func() {
		steps := 20
		for i := range steps {
			sleep(ctx, f.o.Duration/time.Duration(steps))
			if ctx.Err() != nil {
				return
			}
			h := f.any()
			switch i % 4 {
			case 0, 2:
				restarts++
				h.Stop()
				h.Start(ctx)
			case 1:
				wipes++
				h.Stop()
				h.Wipe()
				h.Start(ctx)
			case 3:
				// Only a host that has said everything: what is lost with a host that is thrown away is nobody's promise.
				if h.Waiting() > 0 || len(f.members()) < 3 {
					continue
				}
				gone++
				note(f.remove(ctx, h))
				h.Stop()
				added, err := f.enrol(ctx, 1)
				note(err)
				for _, h := range added {
					h.Start(ctx)
				}
			}
		}
	})
	wg.Go(func() {
		if len(f.plane.Replicas()) < 2 {
			return
		}
		for _, r := range f.plane.Replicas() {
			sleep(ctx, f.o.Duration/10)
			note(r.Term())
			note(r.Start(ctx))
		}
	})
	wg.Wait()
	if failed != nil {
		return failed
	}
	err := f.finish(ctx, p, m)
	p.row("restarts of hosts", float64(restarts), "")
	p.row("hosts that forgot what they held", float64(wipes), "")
	p.row("hosts that left, and that joined", float64(gone), "")
	return err
}
