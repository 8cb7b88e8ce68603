package sets_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/sets"
	"github.com/fleetban/fleetban/controlplane/internal/store"
	"github.com/fleetban/fleetban/controlplane/internal/testwait"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/banset"
)

func address(n int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18 + byte(n>>16), byte(n >> 8), byte(n)}), 32)
}

// host holds a set as an agent does: each prefix's last record, and the version that brought it.
type host struct {
	set    string // empty: all
	cursor sets.Cursor
	held   map[netip.Prefix]sets.Record
	at     map[netip.Prefix]uint64
}

func (h *host) follow(t testing.TB, f *fixture) {
	t.Helper()
	if h.held == nil {
		h.held, h.at = map[netip.Prefix]sets.Record{}, map[netip.Prefix]uint64{}
	}
	set := cmp.Or(h.set, banset.All)
	for _, d := range must(f.Log(context.Background(), org, set, h.cursor.Version, 1<<20))(t) {
		for _, r := range d.Records {
			h.held[r.Prefix], h.at[r.Prefix] = r, d.Version
			if r.Kind == fleetbanv1.RecordKind_RECORD_KIND_EXPIRED {
				delete(h.held, r.Prefix)
			}
		}
		h.cursor = sets.Cursor{Set: set, Epoch: d.Epoch, Version: d.Version, Digest: d.Digest}
	}
}

// merge takes a partial snapshot: what it doesn't name stays.
func (h *host) merge(snap *sets.Snapshot) {
	for _, r := range snap.Records {
		h.held[r.Prefix], h.at[r.Prefix] = r, snap.State.Cursor.Version
	}
	h.cursor = snap.State.Cursor
}

func (h *host) holds(p netip.Prefix) bool {
	r, ok := h.held[p]
	return ok && r.Kind == fleetbanv1.RecordKind_RECORD_KIND_PRESENT
}

func (h *host) above(version uint64) (out []sets.Record) {
	for p, r := range h.held {
		if h.at[p] > version {
			out = append(out, r)
		}
	}
	return out
}

// TestRewind restores Redis to an earlier state while hosts hold later ones, in random order and lagging by random
// amounts: what was acknowledged later is back after they offered it, unbans included.
func TestRewind(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	ctx := context.Background()
	for round := range 4 {
		random := rand.New(rand.NewPCG(uint64(round), 1)) //nolint:gosec // repeatable
		hosts := make([]*host, 4)
		for i := range hosts {
			hosts[i] = &host{}
		}
		mutate := func() {
			p := address(random.IntN(12))
			switch random.IntN(4) {
			case 0:
				must(f.Unban(ctx, org, sets.UnbanInput{Prefixes: []netip.Prefix{p}, Actor: "alice"}))(t)
			default:
				must(f.Ban(ctx, org, sets.BanInput{Prefixes: []netip.Prefix{p}, Set: banset.All, Duration: time.Duration(1+random.IntN(20)) * time.Hour, Actor: "alice"}))(t)
			}
			f.advance(time.Second)
		}
		for range 10 {
			mutate()
		}
		for _, h := range hosts {
			h.follow(t, f)
		}
		restore := f.redis.Backup()
		kept := must(f.States(ctx, org))(t)
		for range 15 {
			mutate()
			hosts[random.IntN(len(hosts))].follow(t, f)
		}
		hosts[0].follow(t, f)
		newest := hosts[0]
		lost := newest.cursor
		restore()

		r := must(f.Resume(ctx, org, lost))(t)
		if r.Action != sets.ResumeOffer || r.After != kept.Set(banset.All).Cursor.Version || !r.Partial {
			t.Fatalf("resume of %+v: %+v, kept %+v", lost, r, kept)
		}
		if r.State.Cursor.Epoch <= kept.Epoch {
			t.Fatalf("epoch %d after %d", r.State.Cursor.Epoch, kept.Epoch)
		}
		// What the new epoch brings isn't lost to what is offered.
		fresh := address(100 + round)
		must(f.Ban(ctx, org, sets.BanInput{Prefixes: []netip.Prefix{fresh}, Set: banset.All, Duration: time.Hour, Actor: "alice"}))(t)
		for _, i := range random.Perm(len(hosts)) {
			h := hosts[i]
			r := must(f.Resume(ctx, org, h.cursor))(t)
			if r.Action == sets.ResumeOffer {
				offer := h.above(r.After)
				must(f.Offer(ctx, org, banset.All, offer))(t)
				must(f.Offer(ctx, org, banset.All, offer))(t) // twice changes nothing
			}
		}
		if err := f.CloseRebuild(ctx, org); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Offer(ctx, org, banset.All, newest.above(0)); !errors.Is(err, sets.ErrNotRebuilding) {
			t.Fatalf("an offer after the rebuild: %v", err)
		}
		snap := must(f.Snapshot(ctx, org, banset.All))(t)
		got := map[netip.Prefix]sets.Record{}
		for _, r := range snap.Records {
			got[r.Prefix] = r
		}
		for p, want := range newest.held {
			have, ok := got[p]
			present := ok && have.Kind == fleetbanv1.RecordKind_RECORD_KIND_PRESENT
			banned := want.Kind == fleetbanv1.RecordKind_RECORD_KIND_PRESENT
			if banned && (!present || have.Expires < want.Expires) {
				t.Errorf("round %d: %s was banned until %d, now %+v", round, p, want.Expires, have)
			}
			if !banned && present {
				t.Errorf("round %d: %s was unbanned at %d and rose again: %+v", round, p, want.Since, have)
			}
		}
		if _, ok := got[fresh]; !ok {
			t.Errorf("round %d: a ban of the new epoch is gone", round)
		}
		f.check(t)
	}
}

// TestEmptied: an empty Redis begins an epoch later than any before, and is filled from what hosts hold.
func TestEmptied(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	ctx := context.Background()
	f.ban(t, time.Hour, "203.0.113.9/32", "203.0.113.10/32")
	h := &host{}
	h.follow(t, f)
	must(f.Unban(ctx, org, sets.UnbanInput{Prefixes: []netip.Prefix{pfx("203.0.113.10/32")}, Actor: "alice"}))(t)
	h.follow(t, f)
	f.events(t, "H1", jailBan(1, "sshd", "203.0.113.11/32", time.Hour))
	f.redis.Empty()
	f.advance(time.Millisecond)
	r := must(f.Resume(ctx, org, h.cursor))(t)
	if r.Action != sets.ResumeOffer || r.After != 0 || r.State.Cursor.Epoch <= h.cursor.Epoch {
		t.Fatalf("%+v", r)
	}
	if got := must(f.Offer(ctx, org, banset.All, h.above(0)))(t); got.Recovered != 2 {
		t.Fatalf("%+v", got)
	}
	// The host sends what it kept again: it takes the place of nothing twice.
	f.events(t, "H1", jailBan(1, "sshd", "203.0.113.11/32", time.Hour))
	e := f.explain(t, "203.0.113.9/32")
	if len(e.Entries) != 1 || e.Entries[0].Claims[0].Source != operatorv1.ClaimSource_CLAIM_SOURCE_RECOVERED {
		t.Fatalf("%+v", e)
	}
	if e := f.explain(t, "203.0.113.10/32"); e.Entries[0].Expires != 0 || len(e.Entries[0].Tombstones) != 1 {
		t.Fatalf("%+v", e)
	}
	f.check(t)
	// Over by time: what isn't offered by then is lost, and told as a snapshot.
	f.advance(2 * time.Minute)
	if r := must(f.Resume(ctx, org, sets.Cursor{Set: banset.All, Epoch: 1, Version: 99, Digest: 1}))(t); r.Action != sets.ResumeSnapshot || r.Partial {
		t.Fatalf("%+v", r)
	}
}

// TestEpochsAfterLosses: a Redis that loses everything, again and again, begins a later epoch each time; nothing there says which was before.
func TestEpochsAfterLosses(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	var last uint64
	for range 8 {
		is := must(f.States(t.Context(), org))(t).Epoch
		if is <= last {
			t.Fatalf("epoch %d after %d", is, last)
		}
		last = is
		f.redis.Empty()
		f.advance(time.Millisecond)
	}
}

// TestRestartCostsNoSnapshot: Redis restarts with all it had, many times; a host far behind resumes by digest.
func TestRestartCostsNoSnapshot(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	ctx := context.Background()
	h := &host{}
	f.ban(t, time.Hour, "203.0.113.1/32")
	h.follow(t, f)
	for n := range 3 {
		f.redis.Kill()
		f.redis.Start()
		f.advance(time.Second)
		if r := must(f.Resume(ctx, org, h.cursor))(t); n == 0 && r.Action != sets.ResumeCurrent || n > 0 && r.Action != sets.ResumeDeltas {
			t.Fatalf("restart %d: %+v", n, r)
		}
		f.ban(t, time.Hour, fmt.Sprintf("203.0.113.%d/32", 10+n))
	}
	h.follow(t, f)
	if r := must(f.Resume(ctx, org, h.cursor))(t); r.Action != sets.ResumeCurrent {
		t.Fatalf("%+v", r)
	}
	f.check(t)
}

// TestAcknowledgedIsKept kills Redis while two replicas write at once: what was acknowledged stands.
func TestAcknowledgedIsKept(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.clock.Store(0)
	replicas := []*sets.Sets{f.Sets, f.replica()}
	ctx, cancel := context.WithCancel(context.Background())
	var mu sync.Mutex
	acknowledged := map[netip.Prefix]bool{}
	var writers sync.WaitGroup
	for w := range 16 {
		writers.Go(func() {
			for n := w; ctx.Err() == nil; n += 16 {
				_, err := replicas[w%2].Ban(ctx, org, sets.BanInput{Prefixes: []netip.Prefix{address(n)}, Set: banset.All, Duration: time.Hour, Actor: "alice"})
				switch {
				case err == nil:
					mu.Lock()
					acknowledged[address(n)] = true
					mu.Unlock()
				case errors.Is(err, store.ErrUnavailable), errors.Is(err, store.ErrOutcomeUnknown), ctx.Err() != nil:
				default:
					t.Errorf("ban: %v", err)
					return
				}
			}
		})
	}
	count := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(acknowledged)
	}
	for range 3 {
		until := count() + 200
		testwait.For(t, "bans are acknowledged", func() bool { return count() >= until })
		f.redis.Kill()
		f.redis.Start()
	}
	cancel()
	writers.Wait()
	// After many failures to connect, the pool looks once a second.
	testwait.Until(t, "Redis is found again", func() error { return f.store.Ping(context.Background()) })
	snap := must(f.Snapshot(context.Background(), org, banset.All))(t)
	for _, r := range snap.Records {
		delete(acknowledged, r.Prefix)
	}
	if len(acknowledged) > 0 {
		t.Fatalf("%d acknowledged bans are gone", len(acknowledged))
	}
	f.check(t)
}

// TestBatch: one mutation of a batch that is refused doesn't harm the others, and they share a version.
func TestBatch(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	ctx := context.Background()
	if err := f.PutHostAddresses(ctx, org, "H1", []netip.Prefix{address(7)}); err != nil {
		t.Fatal(err)
	}
	f.redis.Pause() // all queue behind the first
	var callers sync.WaitGroup
	results := make([]error, 50)
	cursors := make([]sets.Cursor, 50)
	for n := range 50 {
		if n == 1 {
			testwait.For(t, "the first is on its way", func() bool { n, flying := f.Waiting(org); return flying && n == 0 })
		}
		callers.Go(func() {
			r, err := f.Ban(ctx, org, sets.BanInput{Prefixes: []netip.Prefix{address(n)}, Set: banset.All, Duration: time.Hour, Actor: "alice"})
			results[n], cursors[n] = err, r.Cursor
		})
	}
	testwait.For(t, "all others wait for the first", func() bool { n, _ := f.Waiting(org); return n == 49 })
	f.redis.Resume()
	callers.Wait()
	var last uint64
	for n, err := range results {
		var protected *sets.ProtectedError
		if n == 7 && !errors.As(err, &protected) || n != 7 && err != nil {
			t.Errorf("%d: %v", n, err)
		}
		last = max(last, cursors[n].Version)
	}
	if last > 25 {
		t.Errorf("%d versions for 50 bans at once", last)
	}
	if s := f.check(t).Set(banset.All); s.Records != 49 {
		t.Errorf("%+v", s)
	}
}

// TestFull: with Redis at maxmemory bans are refused whole, and unbans work.
func TestFull(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	ctx := context.Background()
	f.ban(t, time.Hour, "203.0.113.9/32")
	f.redis.Set("maxmemory", "1")
	if _, err := f.Ban(ctx, org, sets.BanInput{Prefixes: []netip.Prefix{address(1)}, Set: banset.All, Duration: time.Hour}); !errors.Is(err, sets.ErrFull) {
		t.Fatalf("ban: %v", err)
	}
	u := must(f.Unban(ctx, org, sets.UnbanInput{Prefixes: []netip.Prefix{pfx("203.0.113.9/32")}, Actor: "alice"}))(t)
	if len(u.Prefixes[0].Retracted) != 1 {
		t.Fatalf("%+v", u)
	}
	must(f.Sweep(ctx, org))(t)
	f.check(t)
}

// TestSnapshotWhileWritten takes snapshots while two writers change the set.
func TestSnapshotWhileWritten(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	ctx, cancel := context.WithCancel(context.Background())
	var writers sync.WaitGroup
	for w := range 2 {
		writers.Go(func() {
			random := rand.New(rand.NewPCG(uint64(w), 2)) //nolint:gosec // repeatable
			for ctx.Err() == nil {
				p := []netip.Prefix{address(random.IntN(200))}
				if random.IntN(3) == 0 {
					_, _ = f.Unban(ctx, org, sets.UnbanInput{Prefixes: p, Actor: "alice"})
				} else {
					_, _ = f.Ban(ctx, org, sets.BanInput{Prefixes: p, Set: banset.All, Duration: time.Duration(1+random.IntN(100)) * time.Hour, Actor: "alice"})
				}
			}
		})
	}
	moved := uint64(0)
	for range 15 {
		before := must(f.States(ctx, org))(t).Set(banset.All).Cursor.Version
		snap := must(f.Snapshot(ctx, org, banset.All))(t)
		moved += snap.State.Cursor.Version - before
	}
	cancel()
	writers.Wait()
	if moved == 0 {
		t.Error("nothing changed during the snapshots: this showed nothing")
	}
}
