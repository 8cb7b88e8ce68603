package hosts

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/hosts/commandlog"
	"github.com/fleetban/fleetban/controlplane/internal/sets"
	"github.com/fleetban/fleetban/controlplane/internal/store"
	"github.com/fleetban/fleetban/controlplane/internal/store/redistest"
	"github.com/fleetban/fleetban/controlplane/internal/testwait"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

const org = "01JORG"

// recorder keeps what Hosts tells the fleet.
type recorder struct {
	mu     sync.Mutex
	events []sets.FleetEvent
	given  map[string][]netip.Prefix
}

func (r *recorder) AppendEvent(_ context.Context, _ string, e sets.FleetEvent) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
	return nil
}

func (r *recorder) PutHostAddresses(_ context.Context, _, id string, addresses []netip.Prefix) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.given == nil {
		r.given = map[string][]netip.Prefix{}
	}
	r.given[id] = addresses
	return nil
}

func (r *recorder) count(kind operatorv1.FleetEventKind) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, e := range r.events {
		if e.Kind == kind {
			n++
		}
	}
	return n
}

type fixture struct {
	*Hosts
	t      *testing.T
	server *redistest.Server
	fleet  *recorder
}

func start(t *testing.T) *fixture {
	t.Helper()
	server := redistest.Start(t)
	fleet := &recorder{}
	return &fixture{Hosts: New(server.Open(), fleet, nil), t: t, server: server, fleet: fleet}
}

func key(n byte) []byte {
	k := make([]byte, 32)
	k[0] = n
	return k
}

func (f *fixture) enrol(name string, n byte, tags map[string]string) Identity {
	f.t.Helper()
	id, err := f.Enrol(f.t.Context(), org, name, key(n), tags, fleetbanv1.HostFacts_builder{Hostname: name}.Build())
	if err != nil {
		f.t.Fatal(err)
	}
	return id
}

func (f *fixture) attach(id Identity, n byte, instance string) Fence {
	f.t.Helper()
	a, err := f.Attach(f.t.Context(), org, id.ID, instance, "replica-1", key(n), nil, time.Time{})
	if err != nil {
		f.t.Fatal(err)
	}
	return a.Fence
}

func (f *fixture) presence(id Identity) operatorv1.Presence {
	f.t.Helper()
	h, err := f.Get(f.t.Context(), org, id.ID)
	if err != nil {
		f.t.Fatal(err)
	}
	return h.GetPresence()
}

// TestAttachTellsWhatIsStored: with its fence a stream is told how far its host's events are stored, for no older one stores any after that.
func TestAttachTellsWhatIsStored(t *testing.T) {
	t.Parallel()
	f := start(t)
	id := f.enrol("web", 1, nil)
	for _, want := range []string{"", "spool 7"} {
		if want != "" {
			if err := f.store.Client().HSet(t.Context(), store.Key(org, "hw"), id.ID, want).Err(); err != nil {
				t.Fatal(err)
			}
		}
		a, err := f.Attach(t.Context(), org, id.ID, "one", "replica-1", key(1), nil, time.Time{})
		if err != nil || a.Stored != want {
			t.Errorf("stored is %q, %v, want %q", a.Stored, err, want)
		}
	}
}

func TestEnrol(t *testing.T) {
	t.Parallel()
	f := start(t)
	a := f.enrol("web", 1, map[string]string{"team": "web"})
	if again := f.enrol("other", 1, nil); again != a {
		t.Errorf("the same key made %+v beside %+v", again, a)
	}
	b, c := f.enrol("WEB", 2, nil), f.enrol("web", 3, nil)
	if a.Name != "web" || b.Name != "WEB-2" || c.Name != "web-3" {
		t.Errorf("names %q %q %q", a.Name, b.Name, c.Name)
	}
	if found, err := f.FindWithin(t.Context(), org, "Web-3", nil); err != nil || found != c {
		t.Errorf("find by name: %+v, %v", found, err)
	}
	if _, err := f.FindWithin(t.Context(), "01JOTHER", "web", nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("another organisation sees it: %v", err)
	}
	if n := f.fleet.count(operatorv1.FleetEventKind_FLEET_EVENT_KIND_HOST_ENROLLED); n != 3 {
		t.Errorf("%d enrolments told, want 3", n)
	}
	if f.presence(a) != operatorv1.Presence_PRESENCE_NEW {
		t.Errorf("a host that never connected is %v", f.presence(a))
	}
}

func TestListPages(t *testing.T) {
	t.Parallel()
	f := start(t)
	for i := range 7 {
		f.enrol(fmt.Sprintf("host-%d", i), byte(i+1), nil)
	}
	var names []string
	token := ""
	for {
		page, next, err := f.List(t.Context(), org, 3, token)
		if err != nil || len(page) > 3 {
			t.Fatal(err, len(page))
		}
		for _, h := range page {
			names = append(names, h.GetName())
		}
		if token = next; token == "" {
			break
		}
	}
	if want := "[host-0 host-1 host-2 host-3 host-4 host-5 host-6]"; fmt.Sprint(names) != want {
		t.Errorf("%v", names)
	}
}

func TestFence(t *testing.T) {
	t.Parallel()
	f := start(t)
	ctx := t.Context()
	id := f.enrol("web", 1, nil)
	old := f.attach(id, 1, "one")
	next := f.attach(id, 1, "one")
	if next.N <= old.N {
		t.Fatalf("fence went from %d to %d", old.N, next.N)
	}
	ack := fleetbanv1.Ack_builder{Cursors: []*fleetbanv1.SetCursor{fleetbanv1.SetCursor_builder{Set: "all", Epoch: 1, Version: 9}.Build()}}.Build()
	if stale, err := f.StoreAcks(ctx, org, []AckWrite{ackOf(old, ack)}); err != nil || len(stale) != 1 {
		t.Errorf("stale ack: %v, %v", stale, err)
	}
	if h, _ := f.Get(ctx, org, "web"); h.GetSets()[0].GetAcknowledged() != 0 {
		t.Error("a stale acknowledgement was stored")
	}
	if err := f.SetHealth(ctx, old, &fleetbanv1.Health{}); !errors.Is(err, ErrStaleFence) {
		t.Errorf("stale health: %v", err)
	}
	if state, err := f.Touch(ctx, org, []Fence{old}); err != nil || state[id.ID] != StateStale {
		t.Errorf("stale touch: %v, %v", state, err)
	}
	if err := f.Detach(ctx, old, "gone"); err != nil || f.presence(id) != operatorv1.Presence_PRESENCE_ONLINE {
		t.Errorf("a stale stream took the host offline: %v", err)
	}
	if err := f.Detach(ctx, next, "gone"); err != nil || f.presence(id) != operatorv1.Presence_PRESENCE_OFFLINE {
		t.Errorf("detach: %v", err)
	}
	if on, off := f.fleet.count(operatorv1.FleetEventKind_FLEET_EVENT_KIND_HOST_ONLINE), f.fleet.count(operatorv1.FleetEventKind_FLEET_EVENT_KIND_HOST_OFFLINE); on != 1 || off != 1 {
		t.Errorf("told online %d times, offline %d times", on, off)
	}
	if _, err := f.Attach(ctx, org, id.ID, "one", "r", key(2), nil, time.Time{}); !errors.Is(err, ErrWrongKey) {
		t.Errorf("another key: %v", err)
	}
}

func TestClone(t *testing.T) {
	t.Parallel()
	f := start(t)
	ctx := t.Context()
	id := f.enrol("web", 1, nil)
	f.attach(id, 1, "one")
	second := f.attach(id, 1, "two") // a restarted agent looks the same: no harm yet
	_, err := f.Attach(ctx, org, id.ID, "one", "replica-1", key(1), nil, time.Time{})
	var quarantined *QuarantinedError
	if !errors.As(err, &quarantined) || !quarantined.New {
		t.Fatalf("the displaced instance came back: %v", err)
	}
	if state, err := f.Touch(ctx, org, []Fence{second}); err != nil || state[id.ID] != StateQuarantined {
		t.Errorf("the other half: %v, %v", state, err)
	}
	for _, instance := range []string{"one", "two", "three"} {
		if _, err := f.Attach(ctx, org, id.ID, instance, "replica-1", key(1), nil, time.Time{}); !errors.As(err, &quarantined) || quarantined.New {
			t.Errorf("%s in quarantine: %v", instance, err)
		}
	}
	if f.presence(id) != operatorv1.Presence_PRESENCE_QUARANTINED || f.fleet.count(operatorv1.FleetEventKind_FLEET_EVENT_KIND_HOST_CLONED) != 1 {
		t.Errorf("shown as %v, told %d times", f.presence(id), f.fleet.count(operatorv1.FleetEventKind_FLEET_EVENT_KIND_HOST_CLONED))
	}
	if released, err := f.Release(ctx, org, "web", "alice"); err != nil || !released {
		t.Fatal(released, err)
	}
	f.attach(id, 1, "one")
}

// An agent that is killed and started again and again is one host, not a clone; nor is one whose stream ended in order.
func TestRestartsAreNoClone(t *testing.T) {
	t.Parallel()
	f := start(t)
	id := f.enrol("web", 1, nil)
	for i := range 10 {
		f.attach(id, 1, fmt.Sprintf("run-%d", i))
	}
	fence := f.attach(id, 1, "x")
	if err := f.Detach(t.Context(), fence, "closed"); err != nil {
		t.Fatal(err)
	}
	fence = f.attach(id, 1, "y")
	if err := f.Detach(t.Context(), fence, "closed"); err != nil {
		t.Fatal(err)
	}
	f.attach(id, 1, "x")
}

func TestDeletedStaysDeleted(t *testing.T) {
	t.Parallel()
	f := start(t)
	ctx := t.Context()
	id := f.enrol("web", 1, nil)
	fence := f.attach(id, 1, "one")
	if err := f.Delete(ctx, org, "web", "alice"); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Attach(ctx, org, id.ID, "one", "r", key(1), nil, time.Time{}); !errors.Is(err, ErrDeleted) {
		t.Errorf("attach: %v", err)
	}
	if _, err := f.Adopt(ctx, org, Lost{ID: id.ID, Name: "web", PublicKey: key(1), Granted: time.Now()}); !errors.Is(err, ErrDeleted) {
		t.Errorf("adopt: %v", err)
	}
	if state, err := f.Touch(ctx, org, []Fence{fence}); err != nil || state[id.ID] != StateDeleted {
		t.Errorf("touch: %v, %v", state, err)
	}
	if stale, err := f.StoreAcks(ctx, org, []AckWrite{ackOf(fence, &fleetbanv1.Ack{})}); err != nil || len(stale) != 1 {
		t.Errorf("ack: %v, %v", stale, err)
	}
	if err := f.Delete(ctx, org, "web", "alice"); !errors.Is(err, ErrNotFound) {
		t.Errorf("twice: %v", err)
	}
	if again := f.enrol("web", 1, nil); again.ID == id.ID || again.Name != "web" {
		t.Errorf("enrolled anew as %+v", again)
	}
}

func TestAdoptAfterLoss(t *testing.T) {
	t.Parallel()
	f := start(t)
	ctx := t.Context()
	id := f.enrol("web", 1, map[string]string{"team": "web"})
	old := f.attach(id, 1, "one")
	f.server.Empty()
	f.retry(func() error { return f.store.Ping(ctx) })
	if state, err := f.Touch(ctx, org, []Fence{old}); err != nil || state[id.ID] != StateLost {
		t.Fatalf("%v, %v", state, err)
	}
	if _, err := f.Attach(ctx, org, id.ID, "one", "r", key(1), nil, time.Time{}); !errors.Is(err, ErrMissing) {
		t.Fatal(err)
	}
	if got, err := f.Adopt(ctx, org, Lost{ID: id.ID, Name: "web", PublicKey: key(1), Tags: map[string]string{"team": "web"}, Granted: time.UnixMilli(5)}); err != nil || got != id {
		t.Fatal(got, err)
	}
	next := f.attach(id, 1, "one")
	if next.N <= old.N {
		t.Errorf("fence %d after %d: a stream from before the loss could write", next.N, old.N)
	}
	if h, err := f.Get(ctx, org, "web"); err != nil || h.GetTags()["team"] != "web" || h.GetEnrolledUnixMs() != 5 {
		t.Errorf("%v, %v", h, err)
	}
}

func (f *fixture) retry(try func() error) {
	f.t.Helper()
	testwait.Until(f.t, "it succeeds", try)
}

func TestPresenceLapses(t *testing.T) {
	t.Parallel()
	f := start(t)
	ctx := t.Context()
	id := f.enrol("web", 1, nil)
	fence := f.attach(id, 1, "one")
	if n, err := f.SweepPresence(ctx, org); err != nil || n != 0 {
		t.Fatalf("a fresh host swept: %d, %v", n, err)
	}
	// As a host looks that was heard a minute ago.
	past := float64(time.Now().Add(-PresenceTTL - time.Second).UnixMilli())
	lapse := func() {
		if err := f.store.Client().ZAdd(ctx, store.Key(org, "live"), redisZ(past, id.ID)).Err(); err != nil {
			t.Fatal(err)
		}
	}
	lapse()
	if h, err := f.Get(ctx, org, "web"); err != nil || h.GetPresence() != operatorv1.Presence_PRESENCE_OFFLINE || h.GetCause() == "" || h.GetSinceUnixMs() != int64(past) {
		t.Fatalf("before the sweep: %v, %v", h, err)
	}
	if n, err := f.SweepPresence(ctx, org); err != nil || n != 1 {
		t.Fatalf("sweep: %d, %v", n, err)
	}
	if n := f.fleet.count(operatorv1.FleetEventKind_FLEET_EVENT_KIND_HOST_OFFLINE); n != 1 {
		t.Fatalf("told %d times", n)
	}
	if n, err := f.SweepPresence(ctx, org); err != nil || n != 0 {
		t.Fatalf("swept twice: %d, %v", n, err)
	}
	// The replica was cut off from Redis and is back; the stream stood all the while.
	if state, err := f.Touch(ctx, org, []Fence{fence}); err != nil || state[id.ID] != StateBack || f.presence(id) != operatorv1.Presence_PRESENCE_ONLINE {
		t.Fatalf("back: %v, %v", state, err)
	}
}

func TestReplay(t *testing.T) {
	t.Parallel()
	f := start(t)
	other := New(f.server.Open(), f.fleet, nil)
	if err := f.UseAssertion(t.Context(), org, "H", "jti", time.Minute); err != nil {
		t.Fatal(err)
	}
	if err := other.UseAssertion(t.Context(), org, "H", "jti", time.Minute); !errors.Is(err, ErrReplayed) {
		t.Fatalf("on another replica: %v", err)
	}
}

func TestCommands(t *testing.T) {
	t.Parallel()
	f := start(t)
	ctx := t.Context()
	id := f.enrol("web", 1, nil)
	order := func() *fleetbanv1.Command {
		return fleetbanv1.Command_builder{UnbanInJails: fleetbanv1.UnbanInJails_builder{Prefixes: [][]byte{{203, 0, 113, 9, 32}}}.Build()}.Build()
	}
	if _, err := f.QueueCommand(ctx, org, "01JNOBODY", order(), "alice"); !errors.Is(err, ErrNotFound) {
		t.Fatalf("unknown host: %v", err)
	}
	first, err := f.QueueCommand(ctx, org, id.ID, order(), "alice")
	if err != nil {
		t.Fatal(err)
	}
	late := order()
	late.SetNotAfterUnixMs(1)
	if _, err := f.QueueCommand(ctx, org, id.ID, late, "alice"); err != nil {
		t.Fatal(err)
	}
	pending, err := f.Pending(ctx, org, id.ID)
	if err != nil || len(pending) != 1 || pending[0].GetCommandId() != first.GetCommand().GetCommandId() {
		t.Fatalf("%v, %v", pending, err)
	}
	fence := f.attach(id, 1, "one")
	result := func(outcome fleetbanv1.CommandOutcome) error {
		return f.Result(ctx, fence, fleetbanv1.CommandResult_builder{CommandId: first.GetCommand().GetCommandId(), Outcome: outcome}.Build())
	}
	if err := errors.Join(result(fleetbanv1.CommandOutcome_COMMAND_OUTCOME_DONE), result(fleetbanv1.CommandOutcome_COMMAND_OUTCOME_UNKNOWN)); err != nil {
		t.Fatal(err)
	}
	all, err := f.Commands(ctx, org, id.ID)
	if err != nil || len(all) != 2 || all[1].GetResult().GetOutcome() != fleetbanv1.CommandOutcome_COMMAND_OUTCOME_DONE || all[1].GetActor() != "alice" {
		t.Fatalf("%v, %v", all, err)
	}
	if pending, err := f.Pending(ctx, org, id.ID); err != nil || len(pending) != 0 {
		t.Fatalf("%v, %v", pending, err)
	}
	for i := range commandlog.Kept {
		if _, err := f.QueueCommand(ctx, org, id.ID, order(), "alice"); err != nil && (i < commandlog.Kept-2 || !errors.Is(err, ErrTooManyCommands)) {
			t.Fatal(i, err)
		}
	}
	if all, err := f.Commands(ctx, org, id.ID); err != nil || len(all) > commandlog.Kept {
		t.Fatalf("%d are kept, %v", len(all), err)
	}
	if _, err := f.QueueCommand(ctx, org, id.ID, order(), "alice"); !errors.Is(err, ErrTooManyCommands) {
		t.Fatalf("too many: %v", err)
	}
}
