package agentapi_test

import (
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/fleetban/fleetban/controlplane/internal/agentapi"
	"github.com/fleetban/fleetban/controlplane/internal/testwait"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// Redis is killed and comes back: streams stand, what came meanwhile is stored once, in order.
func TestRedisKilledAndBack(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	one, two := f.replica("one"), f.replica("two")
	a, b := one.enrol("a", nil), one.enrol("b", nil)
	sa, sb := a.connect(one), b.connect(two)
	sa.ban(1, "sshd", "203.0.113.1", time.Hour)
	sb.ack(sb.delta("all", "203.0.113.1", present))
	f.server.Kill()
	sa.ban(2, "sshd", "203.0.113.2", time.Hour)
	sa.ban(3, "sshd", "203.0.113.3", time.Hour)
	_, err := b.dial(two, fleetbanv1.Hello_builder{})
	if err == nil {
		t.Fatal("a new stream began with Redis away")
	}
	f.server.Start()
	sa.eventAck(3)
	sb.delta("all", "203.0.113.2", present)
	sb.ack(sb.delta("all", "203.0.113.3", present))
	testwait.For(t, "the acknowledgement is stored", func() bool {
		got, err := one.hosts.Get(t.Context(), f.org, "b")
		return err == nil && got.GetPresence() == operatorv1.Presence_PRESENCE_ONLINE && got.GetSets()[0].GetAcknowledged() >= 3
	})
}

// Hosts are told that Redis is away and that it is back, long before a heartbeat is due; and so is who connects meanwhile.
func TestRedisAwayIsTold(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	one := f.replica("one")
	a, b, late := one.enrol("a", nil), one.enrol("b", nil), one.enrol("late", nil)
	streams := []*session{a.connect(one), b.connect(one)}
	told := func(what string, away bool) {
		t.Helper()
		for _, s := range streams {
			s.next(what, func(m *fleetbanv1.ConnectResponse) bool {
				return m.HasHeartbeat() && m.GetHeartbeat().GetStoreAway() == away
			})
		}
	}
	f.server.Kill()
	told("that Redis is away", true)
	_, err := late.dial(one, fleetbanv1.Hello_builder{})
	wantReason(t, err, connect.CodeUnavailable, fleetbanv1.Reason_REASON_STORE_UNAVAILABLE)
	f.server.Start()
	told("that Redis is back", false)
}

// Hosts are told at once that the clock was set, and to what, even back.
func TestClockSetIsTold(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	var steps atomic.Uint32
	one := f.replica("one", func(o *agentapi.Options) {
		o.Told = func() (time.Time, uint32) {
			n := steps.Load()
			return time.UnixMilli(1_800_000_000_000).Add(-time.Hour * time.Duration(n)), n
		}
	})
	streams := []*session{one.enrol("a", nil).connect(one), one.enrol("b", nil).connect(one)}
	steps.Store(1)
	for _, s := range streams {
		if at := s.welcome.GetServerUnixMs(); at != 1_800_000_000_000 {
			t.Errorf("the Welcome says it is %d", at)
		}
		s.next("the clock", func(m *fleetbanv1.ConnectResponse) bool {
			return m.GetHeartbeat().GetClock() == 1 && m.GetHeartbeat().GetServerUnixMs() == 1_800_000_000_000-3_600_000
		})
	}
}

// Redis loses everything: the streams stand, hosts and organisation are put back, and what the hosts hold is offered back.
func TestRedisEmptiedIsRebuilt(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	one, two := f.replica("one"), f.replica("two")
	a := one.enrol("a", map[string]string{"role": "web"})
	sa := a.connect(one)
	held := map[string]*fleetbanv1.Record{}
	one.manual("203.0.113.1", time.Hour)
	cursor := sa.delta("all", "203.0.113.1", present)
	for _, r := range append(sa.last.GetDelta().GetRecords(), sa.last.GetSnapshot().GetRecords()...) {
		held[string(r.GetPrefix())] = r
	}
	sa.ack(cursor)
	testwait.For(t, "acknowledged", func() bool {
		got, err := one.hosts.Get(t.Context(), f.org, "a")
		return err == nil && got.GetSets()[0].GetAcknowledged() == cursor.GetVersion()
	})
	f.server.Empty()
	request := sa.next("the request to offer", func(m *fleetbanv1.ConnectResponse) bool { return m.GetOfferRequest().GetSet() == "all" }).GetOfferRequest()
	t.Log(request)
	forged := proto.CloneOf(held[string([]byte{203, 0, 113, 1, 32})])
	forged.SetPrefix([]byte{203, 0, 113, 66, 32})
	sa.send(fleetbanv1.ConnectRequest_builder{Offer: fleetbanv1.RecordOffer_builder{
		Set: "all", Records: []*fleetbanv1.Record{held[string([]byte{203, 0, 113, 1, 32})], forged}, Last: true,
	}.Build()})
	snapshot := sa.next("the set, rebuilt", func(m *fleetbanv1.ConnectResponse) bool { return m.GetSnapshot().GetSet() == "all" }).GetSnapshot()
	if len(snapshot.GetRecords()) != 1 || !proto.Equal(snapshot.GetRecords()[0], held[string(snapshot.GetRecords()[0].GetPrefix())]) {
		t.Errorf("%v; want what was held: %v", snapshot, held)
	}
	if n := one.scrape()["fleetban_offers_denied_total"]; n != 1 {
		t.Errorf("%v forged records were refused, want 1", n)
	}
	testwait.For(t, "the host is back with its tags", func() bool {
		got, err := one.hosts.Get(t.Context(), f.org, "a")
		return err == nil && got.GetPresence() == operatorv1.Presence_PRESENCE_ONLINE && got.GetTags()["role"] == "web"
	})
	org, err := f.orgs.Get(t.Context(), f.org)
	if err != nil || org.Mode != fleetbanv1.Mode_MODE_ENFORCE || org.Name != "test" {
		t.Errorf("%+v, %v", org, err)
	}
	// Others can connect, and life goes on.
	sb := one.enrol("b", nil).connect(two)
	sb.next("the rebuilt ban", func(m *fleetbanv1.ConnectResponse) bool {
		return len(m.GetSnapshot().GetRecords()) == 1 || len(m.GetDelta().GetRecords()) == 1
	})
	sa.ban(1, "sshd", "203.0.113.9", time.Hour)
	sa.eventAck(1)
}

// A replica dies: its hosts go to another one and nothing changes for them; no event is lost or stored twice.
func TestReplicaDies(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	one, two := f.replica("one"), f.replica("two")
	h := one.enrol("a", nil)
	s := h.connect(one)
	s.ban(1, "sshd", "203.0.113.1", time.Hour)
	s.eventAck(1)
	one.kill()
	s.ended()
	next := h.connect(two)
	if next.welcome.GetEventsThrough() != 1 {
		t.Fatalf("%v", next.welcome)
	}
	next.ban(2, "sshd", "203.0.113.2", time.Hour)
	next.eventAck(2)
	got, err := two.hosts.Get(t.Context(), f.org, "a")
	if err != nil || got.GetPresence() != operatorv1.Presence_PRESENCE_ONLINE || got.GetReplica() != "two" {
		t.Errorf("%v, %v", got, err)
	}
}
