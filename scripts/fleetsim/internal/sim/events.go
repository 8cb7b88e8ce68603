package sim

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	"github.com/fleetban/fleetban/scripts/fleetsim/internal/host"
)

const (
	// tellers is how many hosts tell of events at most, unacknowledged how many each has under way.
	tellers, unacknowledged = 100, 50
	// aRound is how many events are told of before the history is read: it keeps 10,000, and each is to be found in it once.
	aRound = 8000
	// mostEvents bounds what is kept of what was told.
	mostEvents = 500_000
)

// events has hosts ban in a jail that stays theirs, as fast as it is acknowledged: what is, is durable, for Redis syncs first. They do so in
// rounds; what a round takes is counted until its last acknowledgement, and not how long people wait until they see it.
func events(ctx context.Context, f *fleet, p *Part) error {
	m := &made{}
	// One that becomes the fleet's, for those take another way.
	if _, _, err := f.ban(ctx, m, long); err != nil {
		return err
	}
	t := &telling{f: f, hosts: f.members(), round: int64(min(aRound, 100*f.o.Bans)), took: host.Histogram()}
	t.hosts = t.hosts[:min(len(t.hosts), tellers)]
	var took time.Duration
	var spent cpu
	n := int64(0)
	for began := time.Now(); (n == 0 || time.Since(began) < f.o.Duration) && n+t.round <= mostEvents; n += t.round {
		before, seen := f.cpu(), f.watcher.observed()
		last, err := t.play(ctx)
		if err != nil {
			return err
		}
		took += last
		s := f.cpu().since(before)
		spent = cpu{spent.replicas + s.replicas, spent.redis + s.redis, spent.self + s.self}
		if err := f.watcher.await(ctx, seen+int(t.round), f.o.SettleWithin); err != nil {
			return err
		}
	}
	each := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 / float64(n) }
	p.hist("event -> acknowledged, and durable", t.took)
	p.row("hosts that told", float64(len(t.hosts)), "")
	p.row("events acknowledged", float64(n), "")
	p.row("events acknowledged a second", float64(n)/took.Seconds(), "")
	p.row("CPU of the replicas, an event", each(spent.replicas), "µs")
	p.row("CPU of Redis, an event", each(spent.redis), "µs")
	p.row("CPU of the simulator, an event", each(spent.self), "µs")
	return f.finish(ctx, p, m)
}

// telling is hosts that tell of events.
type telling struct {
	f     *fleet
	hosts []*host.Host
	round int64

	mu   sync.Mutex
	took *hdrhistogram.Histogram
}

// play has hosts tell of a round's events and returns how long that took until the last was acknowledged.
func (t *telling) play(ctx context.Context) (took time.Duration, err error) {
	var begun, acked atomic.Int64
	done := make(chan time.Time, 1)
	var tell func(h *host.Host)
	tell = func(h *host.Host) {
		if begun.Add(1) > t.round {
			return
		}
		a := t.f.prefix()
		t.f.ledger.event(eventKey{h.ID, operatorv1.FleetEventKind_FLEET_EVENT_KIND_OBSERVED, a, jailLocal})
		sent := time.Now()
		h.Ban(jailLocal, a, long, func(at time.Time) {
			t.mu.Lock()
			host.Observe(t.took, at.Sub(sent))
			t.mu.Unlock()
			if acked.Add(1) == t.round {
				done <- at
			}
			tell(h)
		})
	}
	began := time.Now()
	var first sync.WaitGroup
	for _, h := range t.hosts {
		first.Go(func() {
			for range unacknowledged {
				tell(h)
			}
		})
	}
	first.Wait()
	ctx, cancel := context.WithTimeout(ctx, t.f.o.SettleWithin)
	defer cancel()
	select {
	case at := <-done:
		return at.Sub(began), nil
	case <-ctx.Done():
		return 0, fmt.Errorf("%w: %d of %d events were acknowledged", errNotSettled, acked.Load(), t.round)
	}
}
