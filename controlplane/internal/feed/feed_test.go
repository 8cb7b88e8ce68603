package feed_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	redis9 "github.com/redis/go-redis/v9"
	"google.golang.org/protobuf/proto"

	"github.com/fleetban/fleetban/controlplane/internal/feed"
	"github.com/fleetban/fleetban/controlplane/internal/sets"
	"github.com/fleetban/fleetban/controlplane/internal/store"
	"github.com/fleetban/fleetban/controlplane/internal/store/redistest"
	"github.com/fleetban/fleetban/controlplane/internal/testwait"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/banset"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

const org = "01TESTORGANISATION00000000"

// replica is one control plane's sets and feeds.
type replica struct {
	store *store.Store
	sets  *sets.Sets
	feeds *feed.Feeds
}

func sign(org, set string, r sets.Record) []byte {
	return fmt.Appendf(nil, "%.4s%.4s%08d", org, set, r.Expires%1e8)[:16]
}

func newReplica(t testing.TB, redis *redistest.Server, window time.Duration) *replica {
	t.Helper()
	return newReplicaOn(t, redis.Open(), window, 100*time.Millisecond)
}

// newReplicaOn makes one on a store. probe 0 is as it is in earnest.
func newReplicaOn(t testing.TB, st *store.Store, window, probe time.Duration) *replica {
	t.Helper()
	r := &replica{store: st}
	r.sets = sets.New(r.store, sets.Options{RebuildWindow: window})
	r.feeds = feed.New(feed.Options{Store: r.store, Sets: r.sets, Sign: sign, Probe: probe})
	t.Cleanup(func() {
		r.feeds.Close()
		r.sets.Close()
	})
	return r
}

func (r *replica) ban(t testing.TB, d time.Duration, prefixes ...netip.Prefix) sets.Cursor {
	t.Helper()
	done, err := r.sets.Ban(t.Context(), org, sets.BanInput{Prefixes: prefixes, Set: banset.All, Duration: d, Actor: "alice"})
	if err != nil {
		t.Fatal(err)
	}
	return done.Cursor
}

func addr(n int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(n >> 8), byte(n)}), 32)
}

// holder does with frames what an agent does.
type holder struct {
	t      testing.TB
	sub    *feed.Subscription
	cursor map[string]sets.Cursor
	held   map[string]map[netip.Prefix]sets.Record
	pages  map[string]map[netip.Prefix]sets.Record

	mu                      sync.Mutex
	snapshots, syncs, delta int
	offers                  []uint64
}

func newHolder(t testing.TB) *holder {
	return &holder{t: t, cursor: map[string]sets.Cursor{}, held: map[string]map[netip.Prefix]sets.Record{}, pages: map[string]map[netip.Prefix]sets.Record{}}
}

// follow connects the holder to a replica with what it holds, until the returned func is called.
func (h *holder) follow(r *replica, names ...string) (leave func()) {
	f, release := r.feeds.Acquire(org)
	cursors := make([]sets.Cursor, 0, len(names))
	for _, set := range names {
		c := h.cursor[set]
		c.Set = set
		cursors = append(cursors, c)
	}
	h.sub = f.Subscribe(cursors, nil)
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-h.sub.Ready():
			}
			for {
				frames, err := h.sub.Next(ctx, 3)
				if err != nil {
					if ctx.Err() != nil {
						return
					}
					retry := time.NewTimer(20 * time.Millisecond)
					select {
					case <-retry.C:
					case <-ctx.Done():
					}
					continue
				}
				if len(frames) == 0 {
					break
				}
				h.mu.Lock()
				for _, frame := range frames {
					h.apply(frame)
				}
				h.mu.Unlock()
			}
		}
	})
	return func() {
		cancel()
		done.Wait()
		h.sub.Close()
		release()
	}
}

func record(r *fleetbanv1.Record) sets.Record {
	p, err := prefix.Unpack(r.GetPrefix())
	if err != nil {
		panic(err)
	}
	return sets.Record{Prefix: p, Kind: r.GetKind(), Since: r.GetSinceUnixMs(), Expires: r.GetExpiresUnixMs()}
}

func (h *holder) apply(frame *feed.Frame) {
	var m fleetbanv1.ConnectResponse
	if err := proto.Unmarshal(frame.Bytes, &m); err != nil {
		h.t.Errorf("frame: %v", err)
	}
	put := func(into map[netip.Prefix]sets.Record, set string, records []*fleetbanv1.Record) {
		for _, r := range records {
			rec := record(r)
			if want := sign(org, set, rec); !bytes.Equal(r.GetMac(), want) {
				h.t.Errorf("mac %x, want %x", r.GetMac(), want)
			}
			if rec.Kind == fleetbanv1.RecordKind_RECORD_KIND_EXPIRED {
				delete(into, rec.Prefix)
			} else {
				into[rec.Prefix] = rec
			}
		}
	}
	check := func(set string) {
		if got := digest(h.held[set]); got != h.cursor[set].Digest {
			h.t.Errorf("%s at version %d: digest %x, want %x", set, h.cursor[set].Version, got, h.cursor[set].Digest)
		}
	}
	switch {
	case m.HasDelta():
		d := m.GetDelta()
		set, at := d.GetSet(), h.cursor[d.GetSet()]
		h.delta++
		if at.Epoch != d.GetEpoch() || d.GetFromVersion() != at.Version {
			h.t.Errorf("delta of %s from %d/%d to %d at %d/%d", set, d.GetEpoch(), d.GetFromVersion(), d.GetVersion(), at.Epoch, at.Version)
		}
		if h.held[set] == nil {
			h.held[set] = map[netip.Prefix]sets.Record{}
		}
		put(h.held[set], set, d.GetRecords())
		h.cursor[set] = sets.Cursor{Set: set, Epoch: d.GetEpoch(), Version: d.GetVersion(), Digest: d.GetDigest()}
		check(set)
	case m.HasSnapshot():
		s := m.GetSnapshot()
		set := s.GetSet()
		if s.GetPage() == 0 {
			h.pages[set] = map[netip.Prefix]sets.Record{}
		}
		put(h.pages[set], set, s.GetRecords())
		if s.GetLast() {
			h.snapshots++
			if s.GetPartial() {
				for p, r := range h.held[set] {
					if _, ok := h.pages[set][p]; !ok {
						h.pages[set][p] = r
					}
				}
			}
			h.held[set] = h.pages[set]
			h.cursor[set] = sets.Cursor{Set: set, Epoch: s.GetEpoch(), Version: s.GetVersion(), Digest: s.GetDigest()}
			if !s.GetPartial() {
				check(set)
			}
		}
	case m.HasSetSync():
		h.syncs++
		c := sets.CursorFrom(m.GetSetSync().GetCursor())
		if at := h.cursor[c.Set]; at.Version != c.Version || at.Digest != c.Digest {
			h.t.Errorf("told to be current at %+v, holds %+v", c, at)
		}
		h.cursor[c.Set] = c
	case m.HasOfferRequest():
		h.offers = append(h.offers, m.GetOfferRequest().GetAboveVersion())
	}
}

func digest(held map[netip.Prefix]sets.Record) uint64 {
	records := make([]sets.Record, 0, len(held))
	for _, r := range held {
		records = append(records, r)
	}
	return sets.DigestOf(records)
}

func (h *holder) awaitCursor(want sets.Cursor) {
	h.t.Helper()
	testwait.For(h.t, fmt.Sprintf("a holder at %+v", want), func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return h.cursor[want.Set] == want
	})
}

func (h *holder) count(of *int) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return *of
}

func TestSnapshotDeltasAndResume(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t)
	a, b := newReplica(t, redis, time.Minute), newReplica(t, redis, time.Minute)
	var many []netip.Prefix
	for n := range 1000 {
		many = append(many, addr(n))
	}
	a.ban(t, time.Hour, many...)
	at := a.ban(t, time.Hour, addr(1000), addr(1001))

	h := newHolder(t)
	leave := h.follow(a, banset.All, banset.Allow)
	h.awaitCursor(at)
	if n := h.count(&h.snapshots); n == 0 {
		t.Fatal("a fresh host got no snapshot")
	}
	// Made by the other replica.
	at = b.ban(t, time.Hour, addr(2000))
	h.awaitCursor(at)
	if _, err := b.sets.Unban(t.Context(), org, sets.UnbanInput{Prefixes: []netip.Prefix{addr(2000)}, Actor: "alice"}); err != nil {
		t.Fatal(err)
	}
	at = b.ban(t, 2*time.Hour, addr(1))
	h.awaitCursor(at)
	leave()

	snapshots := h.count(&h.snapshots)
	for n := range 20 {
		at = b.ban(t, time.Hour, addr(3000+n))
	}
	leave = h.follow(b, banset.All, banset.Allow)
	h.awaitCursor(at)
	leave()
	leave = h.follow(b, banset.All, banset.Allow)
	testwait.For(t, "SetSync", func() bool { return h.count(&h.syncs) > 0 })
	leave()
	if got := h.count(&h.snapshots); got != snapshots {
		t.Errorf("a resume took %d snapshots", got-snapshots)
	}
}

// TestSharedFrames: every stream sends the same bytes, encoded once.
func TestSharedFrames(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t)
	r := newReplica(t, redis, time.Minute)
	f, release := r.feeds.Acquire(org)
	defer release()
	var subs []*feed.Subscription
	for range 3 {
		s := f.Subscribe([]sets.Cursor{{Set: banset.All}}, nil)
		defer s.Close()
		subs = append(subs, s)
	}
	seen := map[*feed.Frame]int{}
	at := r.ban(t, time.Hour, addr(1))
	testwait.For(t, "all at the ban", func() bool {
		done := true
		for _, s := range subs {
			frames, err := s.Next(t.Context(), 100)
			if err != nil {
				t.Fatal(err)
			}
			for _, frame := range frames {
				seen[frame]++
			}
			done = done && s.Cursor(banset.All) == at
		}
		return done
	})
	// Those who come with nothing get the pages that were encoded for the ones before them, some seconds long.
	const newcomers = 20
	for range newcomers {
		s := f.Subscribe([]sets.Cursor{{Set: banset.All}}, nil)
		defer s.Close()
		subs = append(subs, s)
	}
	pages := map[*feed.Frame]int{}
	for _, s := range subs[3:] {
		testwait.For(t, "the snapshot to be there", func() bool {
			frames, err := s.Next(t.Context(), 100)
			if err != nil {
				t.Fatal(err)
			}
			for _, frame := range frames {
				pages[frame]++
			}
			return s.Cursor(banset.All) == at
		})
	}
	if len(pages) == 0 || len(pages) > newcomers/4 {
		t.Errorf("a snapshot of one page was encoded %d times for %d streams", len(pages), newcomers)
	}
	at = r.ban(t, time.Hour, addr(2))
	clear(seen)
	testwait.For(t, "all at the second ban", func() bool {
		done := true
		for _, s := range subs {
			frames, _ := s.Next(t.Context(), 100)
			for _, frame := range frames {
				seen[frame]++
			}
			done = done && s.Cursor(banset.All) == at
		}
		return done
	})
	if len(seen) != 1 {
		t.Fatalf("%d frames for one delta", len(seen))
	}
	for _, n := range seen {
		if n != len(subs) {
			t.Fatalf("sent %d times", n)
		}
	}
}

func TestRedisRestarted(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t)
	r := newReplica(t, redis, time.Minute)
	h := newHolder(t)
	at := r.ban(t, time.Hour, addr(1))
	leave := h.follow(r, banset.All)
	defer leave()
	h.awaitCursor(at)
	snapshots := h.count(&h.snapshots)
	redis.Kill()
	redis.Start()
	testwait.For(t, "a new epoch", func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return h.cursor[banset.All].Epoch > at.Epoch
	})
	next := r.ban(t, time.Hour, addr(2))
	h.awaitCursor(next)
	if next.Version != at.Version+1 || h.count(&h.snapshots) != snapshots || len(h.offers) != 0 {
		t.Fatalf("a clean restart cost snapshots: %d, offers: %v", h.count(&h.snapshots)-snapshots, h.offers)
	}
}

// Redis goes back to an earlier state of which no epoch tells: streams follow what it has, not what the replica remembers.
func TestRedisWentBack(t *testing.T) {
	t.Parallel()
	for name, after := range map[string][]netip.Prefix{"behind": nil, "elsewhere": {addr(5)}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			redis := redistest.Start(t)
			r := newReplica(t, redis, time.Minute)
			h := newHolder(t)
			r.ban(t, time.Hour, addr(1))
			raw, ctx := redis.Open().Client(), t.Context()
			if err := r.sets.CloseRebuild(ctx, org); err != nil {
				t.Fatal(err)
			}
			keys := func() []string {
				all, err := raw.Keys(ctx, store.Key(org, "*")).Result()
				if err != nil {
					t.Fatal(err)
				}
				return all
			}
			kept := keys()
			for _, key := range kept {
				if err := raw.Copy(ctx, key, "kept:"+key, 0, true).Err(); err != nil {
					t.Fatal(err)
				}
			}
			gone := r.ban(t, time.Hour, addr(2))
			leave := h.follow(r, banset.All)
			defer leave()
			h.awaitCursor(gone)
			now := keys()
			if _, err := raw.TxPipelined(ctx, func(p redis9.Pipeliner) error {
				p.Del(ctx, now...)
				for _, key := range kept {
					p.Copy(ctx, "kept:"+key, key, 0, true)
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			for _, prefix := range after {
				r.ban(t, time.Hour, prefix)
			}
			if err := raw.SPublish(ctx, store.BellChannel(org), "epoch "+strconv.FormatUint(gone.Epoch, 10)).Err(); err != nil {
				t.Fatal(err)
			}
			testwait.For(t, "the host holds what Redis has", func() bool {
				h.mu.Lock()
				defer h.mu.Unlock()
				_, stale := h.held[banset.All][addr(2)]
				return !stale && len(h.held[banset.All]) == 1+len(after)
			})
		})
	}
}

func TestRedisEmptied(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t)
	r := newReplica(t, redis, 5*time.Second)
	h := newHolder(t)
	r.ban(t, time.Hour, addr(1), addr(2))
	if _, err := r.sets.Unban(t.Context(), org, sets.UnbanInput{Prefixes: []netip.Prefix{addr(2)}, Actor: "alice"}); err != nil {
		t.Fatal(err)
	}
	at := r.ban(t, time.Hour, addr(3))
	leave := h.follow(r, banset.All)
	defer leave()
	h.awaitCursor(at)
	redis.Empty()
	testwait.For(t, "a request for offers", func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return len(h.offers) == 1 && h.offers[0] == 0
	})
	h.mu.Lock()
	var offer []sets.Record
	for _, rec := range h.held[banset.All] {
		offer = append(offer, rec)
	}
	snapshots := h.snapshots
	h.mu.Unlock()
	got, err := r.sets.Offer(t.Context(), org, banset.All, offer)
	if err != nil || got.Recovered != 2 { // a snapshot carries no tombstone of a prefix that is present, nor one that came before the host
		if got.Recovered != 3 {
			t.Fatalf("%+v, %v", got, err)
		}
	}
	h.sub.Offered(banset.All)
	testwait.For(t, "a partial and then a whole snapshot", func() bool { return h.count(&h.snapshots) >= snapshots+2 })
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range []netip.Prefix{addr(1), addr(3)} {
		if h.held[banset.All][p].Kind != fleetbanv1.RecordKind_RECORD_KIND_PRESENT {
			t.Errorf("%s was lost", p)
		}
	}
	if h.held[banset.All][addr(2)].Kind == fleetbanv1.RecordKind_RECORD_KIND_PRESENT {
		t.Errorf("%s rose again", addr(2))
	}
}

// TestSweep: what runs out is dropped with no one asking.
func TestSweep(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t)
	r := newReplica(t, redis, time.Minute)
	h := newHolder(t)
	leave := h.follow(r, banset.All)
	defer leave()
	r.ban(t, 50*time.Millisecond, addr(1))
	r.ban(t, time.Hour, addr(2))
	testwait.For(t, "one record left", func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		_, gone := h.held[banset.All][addr(1)]
		_, stays := h.held[banset.All][addr(2)]
		return !gone && stays && h.cursor[banset.All].Version == 3
	})
}

// mute forwards connections to Redis, and can go silent towards those that listen to the doorbell, without closing them:
// what a failover behind a balancer looks like.
type mute struct {
	address string
	silent  atomic.Bool
	muted   atomic.Int32
}

func newMute(t *testing.T, to string) *mute {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m := &mute{address: listener.Addr().String()}
	var all sync.WaitGroup
	var mu sync.Mutex
	var conns []net.Conn
	t.Cleanup(func() {
		_ = listener.Close()
		mu.Lock()
		for _, c := range conns {
			_ = c.Close()
		}
		mu.Unlock()
		all.Wait()
	})
	all.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("unix", to)
			if err != nil {
				_ = client.Close()
				continue
			}
			mu.Lock()
			conns = append(conns, client, server)
			mu.Unlock()
			var listens, dead atomic.Bool
			pump := func(from, to net.Conn, answers bool) {
				buf := make([]byte, 64<<10)
				for {
					n, err := from.Read(buf)
					if err != nil {
						_ = to.Close()
						return
					}
					if !answers && bytes.Contains(bytes.ToLower(buf[:n]), []byte("ssubscribe")) {
						listens.Store(true)
						dead.Store(false)
					}
					if answers && listens.Load() && m.silent.Load() && !dead.Swap(true) {
						m.muted.Add(1)
					}
					if answers && dead.Load() {
						continue
					}
					_, _ = to.Write(buf[:n])
				}
			}
			all.Go(func() { pump(client, server, false) })
			all.Go(func() { pump(server, client, true) })
		}
	})
	return m
}

// TestSilentDoorbell: a subscription that died without a word is noticed, and nothing is missed.
func TestSilentDoorbell(t *testing.T) {
	t.Parallel()
	redis := redistest.StartOne(t)
	m := newMute(t, strings.TrimPrefix(redis.URL(), "unix://"))
	writer := newReplica(t, redis, time.Minute)
	st, err := store.Open(store.Options{URL: "redis://" + m.address})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	r := &replica{store: st, sets: sets.New(st, sets.Options{})}
	r.feeds = feed.New(feed.Options{Store: st, Sets: r.sets, Sign: sign, Probe: 50 * time.Millisecond})
	t.Cleanup(r.feeds.Close)
	h := newHolder(t)
	leave := h.follow(r, banset.All)
	defer leave()
	h.awaitCursor(writer.ban(t, time.Hour, addr(1)))
	m.silent.Store(true)
	at := writer.ban(t, time.Hour, addr(2))
	testwait.For(t, "the doorbell to be muted", func() bool { return m.muted.Load() > 0 })
	m.silent.Store(false)
	h.awaitCursor(at)
	h.awaitCursor(writer.ban(t, time.Hour, addr(3)))
}

// TestLagging: a stream that reads nothing for long costs the reader nothing and ends where the others are.
func TestLagging(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t)
	r := newReplica(t, redis, time.Minute)
	f, release := r.feeds.Acquire(org)
	defer release()
	at := r.ban(t, time.Hour, addr(0))
	h := newHolder(t)
	h.sub = f.Subscribe([]sets.Cursor{{Set: banset.All}}, nil)
	defer h.sub.Close()
	drain := func(want sets.Cursor) {
		t.Helper()
		testwait.For(t, fmt.Sprintf("the stream at %+v", want), func() bool {
			frames, err := h.sub.Next(t.Context(), 50)
			if err != nil {
				t.Fatal(err)
			}
			for _, frame := range frames {
				h.apply(frame)
			}
			return h.cursor[banset.All] == want
		})
	}
	drain(at)
	// More records than a line keeps: the node that the stream holds is dropped.
	var many []netip.Prefix
	for n := range 1000 {
		many = append(many, addr(n))
	}
	for n := range 60 {
		at = r.ban(t, time.Duration(n+2)*time.Hour, many...)
	}
	drain(at)
	if len(h.held[banset.All]) != 1000 {
		t.Errorf("%d records", len(h.held[banset.All]))
	}
}

func TestListen(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t)
	a, b := newReplica(t, redis, time.Minute), newReplica(t, redis, time.Minute)
	f, release := a.feeds.Acquire(org)
	defer release()
	heard := make(chan store.Bell, 100)
	stop := f.Listen(func(b store.Bell) {
		select {
		case heard <- b:
		default:
		}
	})
	defer stop()
	want := store.Bell{Kind: store.BellKick, Host: "H1", Fence: 7}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(time.Minute)
	for {
		select {
		case got := <-heard:
			if got.Kind == want.Kind {
				if fmt.Sprint(got) != fmt.Sprint(want) {
					t.Fatalf("heard %+v, want %+v", got, want)
				}
				return
			}
		case <-tick.C:
			if err := b.store.Ring(t.Context(), org, want); err != nil {
				t.Fatal(err)
			}
		case <-deadline:
			t.Fatal("not heard within a minute")
		}
	}
}
