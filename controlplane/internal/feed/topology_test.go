package feed_test

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/sets"
	"github.com/fleetban/fleetban/controlplane/internal/store"
	"github.com/fleetban/fleetban/controlplane/internal/store/redistest"
	"github.com/fleetban/fleetban/controlplane/internal/testwait"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/banset"
)

// writer bans one address after another, whatever happens to Redis meanwhile.
type writer struct {
	t    *testing.T
	done sync.WaitGroup
	stop context.CancelFunc

	mu      sync.Mutex
	banned  []netip.Prefix // and acknowledged
	refused int
	unknown int
}

func (r *replica) write(t *testing.T) *writer {
	ctx, stop := context.WithCancel(t.Context())
	w := &writer{t: t, stop: stop}
	w.done.Go(func() {
		for n := 10_000; ctx.Err() == nil; n++ {
			_, err := r.sets.Ban(context.WithoutCancel(ctx), org, sets.BanInput{Prefixes: []netip.Prefix{addr(n)}, Set: banset.All, Duration: time.Hour, Actor: "writer"})
			w.mu.Lock()
			switch {
			case err == nil:
				w.banned = append(w.banned, addr(n))
			case errors.Is(err, store.ErrUnavailable):
				w.refused++
			case errors.Is(err, store.ErrOutcomeUnknown):
				w.unknown++
			default:
				t.Errorf("ban: %v", err)
			}
			w.mu.Unlock()
			pause := time.NewTimer(2 * time.Millisecond)
			select {
			case <-pause.C:
			case <-ctx.Done():
			}
		}
	})
	t.Cleanup(func() {
		stop()
		w.done.Wait()
	})
	return w
}

// more waits until n more are acknowledged.
func (w *writer) more(n int) {
	w.t.Helper()
	before := w.count(nil)
	testwait.For(w.t, "more bans are acknowledged", func() bool { return w.count(nil) >= before+n })
}

func (w *writer) count(of *int) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	if of == nil {
		return len(w.banned)
	}
	return *of
}

// finish ends it, and sees that the holder holds everything that was acknowledged.
func (w *writer) finish(r *replica, h *holder) {
	w.t.Helper()
	w.stop()
	w.done.Wait()
	h.awaitCursor(r.ban(w.t, time.Hour, addr(9999)))
	h.mu.Lock()
	defer h.mu.Unlock()
	lost := 0
	for _, p := range w.banned {
		if h.held[banset.All][p].Kind != fleetbanv1.RecordKind_RECORD_KIND_PRESENT {
			lost++
		}
	}
	w.t.Logf("%d acknowledged, %d of them lost; %d refused, %d unknown", len(w.banned), lost, w.refused, w.unknown)
	if lost > 0 || len(w.banned) == 0 {
		w.t.Errorf("%d of %d acknowledged bans were lost", lost, len(w.banned))
	}
}

func (h *holder) epoch() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.cursor[banset.All].Epoch
}

// follows waits until the holder hears of what is acknowledged from now on, and returns how long that took.
func (h *holder) follows(w *writer) time.Duration {
	h.t.Helper()
	began := time.Now()
	w.more(1)
	w.mu.Lock()
	last := w.banned[len(w.banned)-1]
	w.mu.Unlock()
	testwait.For(h.t, "the doorbell is heard again", func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return h.held[banset.All][last].Kind == fleetbanv1.RecordKind_RECORD_KIND_PRESENT
	})
	return time.Since(began)
}

// An organisation's slot goes to another master while bans are written: what is half there is not taken for all there is.
func TestSlotMoves(t *testing.T) {
	t.Parallel()
	cluster := redistest.StartCluster(t)
	a, b := newReplica(t, &cluster.Server, time.Second), newReplica(t, &cluster.Server, time.Second)
	h := newHolder(t)
	leave := h.follow(b, banset.All)
	defer leave()
	h.awaitCursor(a.ban(t, time.Hour, addr(1)))
	epoch, w := h.epoch(), a.write(t)
	w.more(50)
	key := store.Key(org, "meta")
	for _, with := range []bool{false, true} {
		cluster.Move(key, with, func() {
			refused := w.count(&w.refused)
			testwait.For(t, "bans are refused while half of the keys are elsewhere", func() bool { return w.count(&w.refused) >= refused+20 })
		})
		w.more(50)
	}
	t.Log("heard again after", h.follows(w))
	w.finish(a, h)
	if h.epoch() <= epoch {
		t.Errorf("epoch %d at another server, it was %d", h.epoch(), epoch)
	}
	if n := h.count(&h.snapshots); n > 2 { // what it began with, during the first epoch's rebuild and after
		t.Errorf("%d snapshots, and nothing was lost", n)
	}
	for _, err := range cluster.Stray(key) {
		t.Error(err)
	}
}

// The master of a cluster that holds the organisation is killed and its replica takes over. Redis is set to write with a
// replica at least: nothing that was acknowledged is missing.
func TestClusterMasterDies(t *testing.T) {
	t.Parallel()
	cluster := redistest.StartCluster(t)
	key := store.Key(org, "meta")
	master, replica := cluster.AddReplica(key)
	for _, n := range []*redistest.Node{master, replica} {
		n.Set("min-replicas-to-write", "1")
	}
	a, b := newReplica(t, &cluster.Server, time.Second), newReplica(t, &cluster.Server, time.Second)
	h := newHolder(t)
	leave := h.follow(b, banset.All)
	defer leave()
	h.awaitCursor(a.ban(t, time.Hour, addr(1)))
	epoch, w := h.epoch(), a.write(t)
	w.more(50)
	master.Kill()
	killed := time.Now()
	testwait.For(t, "its replica took over", func() bool {
		masters := cluster.Masters("")
		return len(masters) == 3 && cluster.Masters(key)[0] == replica
	})
	master.Start() // as a replica, which its successor is waiting for
	w.more(50)
	t.Log("bans flow again", time.Since(killed), "after the kill")
	t.Log("heard again after", h.follows(w))
	w.finish(a, h)
	if h.epoch() <= epoch {
		t.Errorf("epoch %d after the failover, it was %d", h.epoch(), epoch)
	}
}

// Sentinels replace a dead master, twice. The first time Redis is set to write with a replica at least, and nothing that was
// acknowledged is missing; the second time it isn't, the replicas lack the last ban, and a host that has it brings it back.
func TestSentinelFailover(t *testing.T) {
	t.Parallel()
	redis := redistest.StartSentinels(t, "--min-replicas-to-write", "1")
	a, b := newReplica(t, &redis.Server, time.Minute), newReplica(t, &redis.Server, time.Minute)
	h := newHolder(t)
	leave := h.follow(b, banset.All)
	defer leave()
	h.awaitCursor(a.ban(t, time.Hour, addr(1)))
	epoch, w := h.epoch(), a.write(t)
	w.more(50)
	first := redis.Nodes()[0]
	first.Kill()
	killed := time.Now()
	redis.Failed(first)
	w.more(50)
	t.Log("bans flow again", time.Since(killed), "after the kill")
	t.Log("heard again after", h.follows(w))
	w.finish(a, h)
	if h.epoch() <= epoch {
		t.Errorf("epoch %d after the failover, it was %d", h.epoch(), epoch)
	}

	second, third := redis.Pair(first)
	second.Set("min-replicas-to-write", "0")
	third.Set("min-replicas-to-write", "0")
	if _, err := a.store.Inspect(t.Context()); err != nil { // as readiness does every other second
		t.Fatal(err)
	}
	third.Pause()
	second.DropReplicas()
	tail := a.ban(t, time.Hour, addr(7))
	h.awaitCursor(tail)
	second.Kill()
	third.Resume()
	redis.Failed(second)
	testwait.For(t, "hosts are asked for what was lost", func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return len(h.offers) > 0
	})
	h.mu.Lock()
	above, offer := h.offers[len(h.offers)-1], []sets.Record{h.held[banset.All][addr(7)]}
	h.mu.Unlock()
	if above >= tail.Version {
		t.Errorf("asked for what is above version %d, and %d was lost", above, tail.Version)
	}
	if got, err := a.sets.Offer(t.Context(), org, banset.All, offer); err != nil || got.Recovered != 1 {
		t.Fatalf("%+v, %v", got, err)
	}
	h.sub.Offered(banset.All)
	late := newHolder(t)
	leaveLate := late.follow(a, banset.All)
	defer leaveLate()
	testwait.For(t, "another host has the ban that was lost", func() bool {
		late.mu.Lock()
		defer late.mu.Unlock()
		return late.held[banset.All][addr(7)].Kind == fleetbanv1.RecordKind_RECORD_KIND_PRESENT
	})
}
