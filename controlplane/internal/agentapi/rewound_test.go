package agentapi_test

import (
	"fmt"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/controlplane/internal/store"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// Redis loses events that it had stored while a stream stands: the host is asked to begin another one, and an event that comes
// meanwhile is not stored, for the lost ones would stand before it and never be asked for again.
func TestEventsLostUnderAStream(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	one := f.replica("one")
	h := one.enrol("a", nil)
	s := h.connect(one)
	for n := uint64(1); n <= 3; n++ {
		s.ban(n, "sshd", fmt.Sprintf("203.0.113.%d", n), time.Hour)
		s.eventAck(n)
	}
	rewind := func(through int) {
		if err := one.store.Client().HSet(t.Context(), store.Key(f.org, "hw"), h.id, fmt.Sprintf("spool %d", through)).Err(); err != nil {
			t.Fatal(err)
		}
	}
	rewind(1)
	s.ban(4, "sshd", "203.0.113.4", time.Hour)
	wantReason(t, s.ended(), connect.CodeUnavailable, fleetbanv1.Reason_REASON_STORE_UNAVAILABLE)

	s = h.connect(one)
	if through := s.welcome.GetEventsThrough(); through != 1 {
		t.Fatalf("welcomed through event %d, want 1", through)
	}
	for n := uint64(2); n <= 4; n++ {
		s.ban(n, "sshd", fmt.Sprintf("203.0.113.%d", n), time.Hour)
		s.eventAck(n)
	}
	// An idle one is found when presence is told, at once where an epoch begins.
	rewind(0)
	if err := one.store.Client().HSet(t.Context(), store.Key(f.org, "meta"), "runid", "another").Err(); err != nil {
		t.Fatal(err)
	}
	one.manual("203.0.113.9", time.Hour)
	s.next("the request to connect again", func(m *fleetbanv1.ConnectResponse) bool { return m.HasDrain() })
}
