package hosts

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fleetban/fleetban/controlplane/internal/sets"
	"github.com/fleetban/fleetban/controlplane/internal/store"
	"github.com/fleetban/fleetban/controlplane/internal/testwait"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// ackOf is an acknowledgement as a stream sends it.
func ackOf(f Fence, ack *fleetbanv1.Ack) AckWrite {
	w := AckWrite{Fence: f, Inert: ack.GetInert()}
	for _, c := range ack.GetCursors() {
		w.Cursors = append(w.Cursors, sets.CursorFrom(c))
	}
	if ack.GetExceptionsChanged() {
		w.Exceptions = ack
	}
	return w
}

func redisZ(score float64, member string) redis.Z { return redis.Z{Score: score, Member: member} }

func cursor(set string, version uint64) *fleetbanv1.SetCursor {
	return fleetbanv1.SetCursor_builder{Set: set, Epoch: 7, Version: version}.Build()
}

func (f *fixture) ack(fence Fence, b fleetbanv1.Ack_builder) {
	f.t.Helper()
	if stale, err := f.StoreAcks(f.t.Context(), fence.Org, []AckWrite{ackOf(fence, b.Build())}); err != nil || len(stale) != 0 {
		f.t.Fatal(stale, err)
	}
}

func (f *fixture) receipts(c *fleetbanv1.SetCursor, prefixes ...[]byte) string {
	f.t.Helper()
	r, err := f.Receipts(f.t.Context(), org, c, prefixes)
	if err != nil {
		f.t.Fatal(err)
	}
	return fmt.Sprintf("in scope %d enforced %d inert %d refused %d offline %d missing %d complete %v",
		r.GetInScope(), r.GetEnforced(), r.GetInert(), r.GetRefused(), r.GetOffline(), len(r.GetMissing()), r.GetComplete())
}

func TestReceipts(t *testing.T) {
	t.Parallel()
	f := start(t)
	prefix := []byte{203, 0, 113, 9, 32}
	web, db := map[string]string{"role": "web"}, map[string]string{"role": "db"}
	var fences []Fence
	for i, tags := range []map[string]string{web, web, db, db} {
		fences = append(fences, f.attach(f.enrol(fmt.Sprintf("h%d", i), byte(i+1), tags), byte(i+1), "one"))
	}
	f.enrol("never", 9, web)
	want := func(got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("\ngot  %s\nwant %s", got, want)
		}
	}
	want(f.receipts(cursor("all", 5)), "in scope 4 enforced 0 inert 0 refused 0 offline 1 missing 5 complete false")
	f.ack(fences[0], fleetbanv1.Ack_builder{Cursors: []*fleetbanv1.SetCursor{cursor("all", 5), cursor("tag:role=web", 1)}})
	f.ack(fences[1], fleetbanv1.Ack_builder{Cursors: []*fleetbanv1.SetCursor{cursor("all", 6)}, Inert: fleetbanv1.Inert_INERT_OFF})
	exception := fleetbanv1.SetException_builder{Set: "all", Prefix: prefix, Refusal: fleetbanv1.Refusal_REFUSAL_SSH_PEER}.Build()
	f.ack(fences[2], fleetbanv1.Ack_builder{
		Cursors: []*fleetbanv1.SetCursor{cursor("all", 5)}, Exceptions: []*fleetbanv1.SetException{exception}, ExceptionsTotal: 1, ExceptionsChanged: true,
	})
	f.ack(fences[3], fleetbanv1.Ack_builder{Cursors: []*fleetbanv1.SetCursor{cursor("all", 4)}})
	want(f.receipts(cursor("all", 5), prefix), "in scope 4 enforced 1 inert 1 refused 1 offline 1 missing 4 complete false")
	want(f.receipts(cursor("all", 4), prefix), "in scope 4 enforced 2 inert 1 refused 1 offline 1 missing 3 complete true")
	want(f.receipts(cursor("all", 4), []byte{203, 0, 113, 10, 32}), "in scope 4 enforced 3 inert 1 refused 0 offline 1 missing 2 complete true")
	want(f.receipts(cursor("tag:role=web", 1)), "in scope 2 enforced 1 inert 0 refused 0 offline 1 missing 2 complete false")
	// An old epoch's version is no answer for a new epoch's.
	other := cursor("all", 5)
	other.SetEpoch(8)
	want(f.receipts(other), "in scope 4 enforced 0 inert 0 refused 0 offline 1 missing 5 complete false")
	h, err := f.Get(t.Context(), org, "h2")
	if err != nil || h.GetExceptionsTotal() != 1 || h.GetExceptions()[0].GetRefusal() != fleetbanv1.Refusal_REFUSAL_SSH_PEER {
		t.Errorf("%v, %v", h, err)
	}
	// The list is cleared, and an ack that says nothing of it leaves it.
	f.ack(fences[2], fleetbanv1.Ack_builder{})
	want(f.receipts(cursor("all", 5), prefix), "in scope 4 enforced 1 inert 1 refused 1 offline 1 missing 4 complete false")
	f.ack(fences[2], fleetbanv1.Ack_builder{ExceptionsChanged: true})
	f.ack(fences[1], fleetbanv1.Ack_builder{})
	want(f.receipts(cursor("all", 5), prefix), "in scope 4 enforced 3 inert 0 refused 0 offline 1 missing 2 complete false")
}

// hand is a doorbell that the test rings.
type hand struct {
	mu        sync.Mutex
	callbacks []func(store.Bell)
}

func (h *hand) Listen(callback func(store.Bell)) func() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.callbacks = append(h.callbacks, callback)
	return func() {}
}

func (h *hand) ring() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range h.callbacks {
		c(store.Bell{Kind: store.BellAcks})
	}
}

func TestWatchReceipts(t *testing.T) {
	t.Parallel()
	f := start(t)
	fence := f.attach(f.enrol("web", 1, nil), 1, "one")
	bell, got := &hand{}, make(chan *operatorv1.WatchReceiptsResponse, 10)
	done := make(chan error, 1)
	go func() {
		done <- f.WatchReceipts(t.Context(), org, cursor("all", 3), nil, bell, func(r *operatorv1.WatchReceiptsResponse) error {
			got <- r
			return nil
		})
	}()
	if r := <-got; r.GetComplete() || r.GetMissing()[0].GetState() != operatorv1.EnforcementState_ENFORCEMENT_STATE_PENDING {
		t.Fatalf("%v", r)
	}
	f.ack(fence, fleetbanv1.Ack_builder{Cursors: []*fleetbanv1.SetCursor{cursor("all", 3)}})
	bell.ring()
	if r := <-got; !r.GetComplete() || r.GetEnforced() != 1 {
		t.Fatalf("%v", r)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := f.WatchReceipts(ctx, org, cursor("all", 4), nil, bell, func(*operatorv1.WatchReceiptsResponse) error { return nil }); !errors.Is(err, context.Canceled) && err == nil {
		t.Fatal(err)
	}
}

// A watch outlives a Redis that is slow, or gone and back, and misses no answer; it doesn't outlive one that stays away.
func TestWatchReceiptsWithRedisAway(t *testing.T) {
	t.Parallel()
	f := start(t)
	f.patience = time.Minute
	fences := []Fence{f.attach(f.enrol("web", 1, nil), 1, "one"), f.attach(f.enrol("db", 2, nil), 2, "one")}
	bell, got, done := &hand{}, make(chan *operatorv1.WatchReceiptsResponse, 100), make(chan error, 1)
	watch := func(ctx context.Context, version uint64) {
		done <- f.WatchReceipts(ctx, org, cursor("all", version), nil, bell, func(r *operatorv1.WatchReceiptsResponse) error {
			got <- r
			return nil
		})
	}
	go watch(t.Context(), 3)
	if r := <-got; r.GetInScope() != 2 || r.GetEnforced() != 0 {
		t.Fatalf("at first %v", r)
	}
	f.server.Kill()
	// Each ring has it look, and fail.
	for range 10 {
		bell.ring()
		if _, err := f.Receipts(t.Context(), org, cursor("all", 3), nil); !away(err) {
			t.Fatalf("with Redis away: %v", err)
		}
	}
	select {
	case err := <-done:
		t.Fatalf("it ended with %v", err)
	default:
	}
	f.server.Start()
	for _, fence := range fences {
		testwait.Until(t, "the answer is stored", func() error {
			_, err := f.StoreAcks(t.Context(), org, []AckWrite{ackOf(fence, fleetbanv1.Ack_builder{Cursors: []*fleetbanv1.SetCursor{cursor("all", 3)}}.Build())})
			return err
		})
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	close(got)
	var last *operatorv1.WatchReceiptsResponse
	for last = range got {
	}
	if !last.GetComplete() || last.GetEnforced()+last.GetOffline() != 2 {
		t.Errorf("the end says %v", last)
	}
	f.server.Kill()
	f.patience = 2 * time.Second
	began := time.Now()
	got = make(chan *operatorv1.WatchReceiptsResponse)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if watch(ctx, 4); !away(<-done) || time.Since(began) < f.patience || ctx.Err() != nil {
		t.Errorf("with Redis away for good it ended after %s", time.Since(began))
	}
}

// The message that scripts ring with is the one that package store parses.
func TestBells(t *testing.T) {
	t.Parallel()
	f := start(t)
	sub := f.store.Client().SSubscribe(t.Context(), store.BellChannel(org))
	defer func() { _ = sub.Close() }()
	if _, err := sub.Receive(t.Context()); err != nil {
		t.Fatal(err)
	}
	id := f.enrol("web", 1, nil)
	fence := f.attach(id, 1, "one")
	f.ack(fence, fleetbanv1.Ack_builder{})
	if _, err := f.QueueCommand(t.Context(), org, id.ID, &fleetbanv1.Command{}, ""); err != nil {
		t.Fatal(err)
	}
	if err := f.Delete(t.Context(), org, id.ID, ""); err != nil {
		t.Fatal(err)
	}
	for _, want := range []store.BellKind{store.BellKick, store.BellAcks, store.BellCommand, store.BellKick} {
		message, err := sub.ReceiveMessage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if b, err := store.ParseBell(message.Payload); err != nil || b.Kind != want || want != store.BellAcks && b.Host != id.ID {
			t.Errorf("%q: %+v, %v; want %s", message.Payload, b, err, want)
		}
	}
}

func TestReceiptsOf5000(t *testing.T) {
	t.Parallel()
	f := start(t)
	const n = 5000
	writes := make([]AckWrite, 0, n)
	for i := range n {
		k := key(byte(i))
		k[1] = byte(i >> 8)
		id, err := f.Enrol(t.Context(), org, fmt.Sprintf("h%d", i), k, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		a, err := f.Attach(t.Context(), org, id.ID, "one", "r", k, nil, time.Time{})
		if err != nil {
			t.Fatal(err)
		}
		writes = append(writes, ackOf(a.Fence, fleetbanv1.Ack_builder{Cursors: []*fleetbanv1.SetCursor{cursor("all", 5)}}.Build()))
	}
	// A machine that is busy takes so long for them that the first would count as gone.
	for i := 0; i < n; i += 500 {
		fences := make([]Fence, 0, 500)
		for _, w := range writes[i : i+500] {
			fences = append(fences, w.Fence)
		}
		if states, err := f.Touch(t.Context(), org, fences); err != nil || len(states) != 0 {
			t.Fatal(states, err)
		}
	}
	began := time.Now()
	for i := 0; i < n; i += 500 {
		if stale, err := f.StoreAcks(t.Context(), org, writes[i:i+500]); err != nil || len(stale) != 0 {
			t.Fatal(stale, err)
		}
	}
	t.Logf("5,000 acknowledgements stored in %s", time.Since(began))
	for range 3 {
		began = time.Now()
		if got := f.receipts(cursor("all", 5)); got != "in scope 5000 enforced 5000 inert 0 refused 0 offline 0 missing 0 complete true" {
			t.Fatal(got)
		}
		t.Logf("receipts of 5,000 hosts read in %s", time.Since(began))
	}
}

// A watch of more hosts than it probes ends when the last one has answered, counts those that go offline or come anew, and takes
// no answer twice.
func TestWatchReceiptsOfMany(t *testing.T) {
	t.Parallel()
	f := start(t)
	const hosts = 3 * receiptProbe
	fences := make([]Fence, hosts)
	for i := range fences {
		fences[i] = f.attach(f.enrol(fmt.Sprintf("h%02d", i), byte(i+1), nil), byte(i+1), "one")
	}
	bell, got := &hand{}, make(chan *operatorv1.WatchReceiptsResponse, 1000)
	done := make(chan error, 1)
	go func() {
		done <- f.WatchReceipts(t.Context(), org, cursor("all", 3), nil, bell, func(r *operatorv1.WatchReceiptsResponse) error {
			got <- r
			return nil
		})
	}()
	if r := <-got; r.GetInScope() != hosts || r.GetEnforced() != 0 {
		t.Fatalf("%v", r)
	}
	late := f.attach(f.enrol("late", 200, nil), 200, "one")
	for _, fence := range append(fences, late) {
		f.ack(fence, fleetbanv1.Ack_builder{Cursors: []*fleetbanv1.SetCursor{cursor("all", 3)}})
		bell.ring()
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	close(got)
	enforced := uint32(0)
	var last *operatorv1.WatchReceiptsResponse
	for r := range got {
		if last = r; r.GetEnforced() < enforced {
			t.Errorf("%d hosts after %d", r.GetEnforced(), enforced)
		}
		enforced = r.GetEnforced()
	}
	if !last.GetComplete() || last.GetEnforced() != hosts+1 || last.GetInScope() != hosts+1 || len(last.GetMissing()) != 0 {
		t.Errorf("the end says %v", last)
	}
}
