package agentapi_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/promotion"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/banset"
)

func (r *replica) banned(t *testing.T) uint64 {
	t.Helper()
	states, err := r.sets.States(t.Context(), r.fleet.org)
	if err != nil {
		t.Fatal(err)
	}
	return states.Set(banset.All).Records
}

// An agent that sends again what was stored, on the same stream or the next, spends none of its promotions.
func TestReplaysTakeNoRate(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	one := f.replica("one")
	h := one.enrol("a", nil)
	s := h.connect(one)
	for range 2 {
		for range promotion.HostPerMinute {
			s.ban(1, "sshd", "203.0.113.1", time.Hour)
			s.eventAck(1)
		}
		s.close()
		s.ended()
		s = h.connect(one)
	}
	began := time.Now()
	for n := uint64(2); n <= promotion.HostPerMinute; n++ {
		s.ban(n, "sshd", fmt.Sprintf("203.0.113.%d", n), time.Hour)
		s.eventAck(n)
	}
	if n := one.banned(t); n != promotion.HostPerMinute {
		t.Errorf("%d bans, want %d", n, promotion.HostPerMinute)
	}
	// The limit itself holds.
	for n := uint64(101); n <= 105; n++ {
		s.ban(n, "sshd", fmt.Sprintf("203.0.113.%d", n), time.Hour)
		s.eventAck(n)
	}
	back := uint64(time.Since(began)*promotion.HostPerMinute/time.Minute) + 1 // what was given back meanwhile
	if n := one.banned(t); n > promotion.HostPerMinute+back {
		t.Errorf("%d bans in %s, want %d", n, time.Since(began), promotion.HostPerMinute)
	}
}

// A host whose offer comes when the rebuild is over gets its set all the same.
func TestOfferAfterTheRebuild(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	one := f.replica("one")
	s := one.enrol("a", nil).connect(one)
	one.manual("203.0.113.1", time.Hour)
	s.ack(s.delta("all", "203.0.113.1", present))
	record := append(s.last.GetDelta().GetRecords(), s.last.GetSnapshot().GetRecords()...)[0]
	f.server.Empty()
	s.next("the request to offer", func(m *fleetbanv1.ConnectResponse) bool { return m.GetOfferRequest().GetSet() == "all" })
	if err := one.sets.CloseRebuild(t.Context(), f.org); err != nil {
		t.Fatal(err)
	}
	s.send(fleetbanv1.ConnectRequest_builder{Offer: fleetbanv1.RecordOffer_builder{Set: "all", Records: []*fleetbanv1.Record{record}, Last: true}.Build()})
	one.manual("203.0.113.2", time.Hour)
	s.delta("all", "203.0.113.2", present)
}
