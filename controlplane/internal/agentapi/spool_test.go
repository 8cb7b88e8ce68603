package agentapi_test

import (
	"testing"

	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

// TestSpoolsUnderAStream: each spool is acknowledged by its own name and numbers, however quickly a host changes from one to another.
func TestSpoolsUnderAStream(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	one := f.replica("one")
	s := one.enrol("a", nil).connect(one)
	const batches = 200
	spools := []string{"a-spool-with-a-long-name", "short"}
	for n := range uint64(batches) {
		// Of a kind that this release doesn't know: stored in no time.
		s.send(fleetbanv1.ConnectRequest_builder{Events: fleetbanv1.EventBatch_builder{Spool: spools[n%2], Events: []*fleetbanv1.Event{
			fleetbanv1.Event_builder{Seq: n + 1000*(2-n%2), Jail: "sshd", Prefix: prefix.Pack(mustPrefix("203.0.113.1"))}.Build(),
		}}.Build()})
	}
	s.next("the last acknowledgement", func(m *fleetbanv1.ConnectResponse) bool {
		if !m.HasEventAck() {
			return false
		}
		ack := m.GetEventAck()
		if low := ack.GetThrough() < 2000; low != (ack.GetSpool() == spools[1]) {
			t.Errorf("%s is acknowledged through %d", ack.GetSpool(), ack.GetThrough())
		}
		return ack.GetSpool() == spools[1] && ack.GetThrough() == 1000+batches-1
	})
}
