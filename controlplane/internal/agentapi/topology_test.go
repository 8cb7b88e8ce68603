package agentapi_test

import (
	"net/netip"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/controlplane/internal/sets"
	"github.com/fleetban/fleetban/controlplane/internal/store/redistest"
	"github.com/fleetban/fleetban/controlplane/internal/testwait"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/banset"
)

// What a fleet does all day, on a cluster and with Sentinels: hosts enrol, a ban on one is on the other one's stream, by
// another replica; it is acknowledged, ends by an unban or by its time, and orders reach their host.
func TestTopologies(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(testing.TB) *redistest.Server{
		"cluster":  func(t testing.TB) *redistest.Server { return &redistest.StartCluster(t).Server },
		"sentinel": func(t testing.TB) *redistest.Server { return &redistest.StartSentinels(t).Server },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			journey(newFleetOn(t, start(t)))
		})
	}
}

func journey(f *fleet) {
	t := f.t
	one, two := f.replica("one"), f.replica("two")
	a, b := one.enrol("a", nil), two.enrol("b", map[string]string{"role": "web"})
	sa, sb := a.connect(one), b.connect(two)
	sa.ban(1, "sshd", "203.0.113.1", time.Hour)
	sb.ack(sb.delta("all", "203.0.113.1", present))
	testwait.For(t, "the acknowledgement is stored", func() bool {
		got, err := one.hosts.Get(t.Context(), f.org, "b")
		return err == nil && got.GetPresence() == operatorv1.Presence_PRESENCE_ONLINE && got.GetSets()[0].GetAcknowledged() >= 1
	})
	if _, err := two.sets.Unban(t.Context(), f.org, sets.UnbanInput{Prefixes: []netip.Prefix{mustPrefix("203.0.113.1")}, Actor: "alice"}); err != nil {
		t.Fatal(err)
	}
	sa.next("the order to unban", func(m *fleetbanv1.ConnectResponse) bool { return m.GetCommand() != nil })
	sb.delta("all", "203.0.113.1", fleetbanv1.RecordKind_RECORD_KIND_RETRACTED)
	sa.ban(2, "sshd", "203.0.113.2", 4*time.Second)
	sb.delta("all", "203.0.113.2", present)
	sb.delta("all", "203.0.113.2", fleetbanv1.RecordKind_RECORD_KIND_EXPIRED)
	if ids, err := f.orgs.IDs(t.Context()); err != nil || len(ids) != 1 {
		t.Errorf("%v, %v", ids, err)
	}
	if _, err := f.orgs.ListJoinTokens(t.Context(), f.org); err != nil {
		t.Error(err)
	}
	if err := two.hosts.Delete(t.Context(), f.org, a.id, "alice"); err != nil {
		t.Error(err)
	}
	sa.ended()
	_, err := a.dial(two, fleetbanv1.Hello_builder{})
	wantReason(t, err, connect.CodePermissionDenied, fleetbanv1.Reason_REASON_HOST_DISABLED)
	if states, err := one.sets.States(t.Context(), f.org); err != nil || states.Set(banset.All).Records != 0 {
		t.Errorf("%+v, %v", states, err)
	}
}
