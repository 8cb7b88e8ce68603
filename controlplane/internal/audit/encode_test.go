package audit

import (
	"net/netip"
	"testing"

	"google.golang.org/protobuf/proto"

	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
)

// What is encoded by hand is what the message would be.
func TestEncode(t *testing.T) {
	r := Record{
		Actor:  Actor{Kind: operatorv1.AuditActorKind_AUDIT_ACTOR_KIND_PERSON, ID: "id", Name: "name"},
		Client: Client{Address: netip.MustParseAddr("2001:db8::1"), UserAgent: "agent", RequestID: "request"}, Action: "action", Procedure: "S/M",
		Targets: []string{"a", ""}, Details: []Detail{{"n", "b", "a"}, {"m", "", "x"}}, Outcome: operatorv1.AuditOutcome_AUDIT_OUTCOME_REFUSED, Reason: "why",
	}
	want := operatorv1.AuditEntry_builder{
		Id: "i", Phase: operatorv1.AuditPhase_AUDIT_PHASE_ENDED, Outcome: r.Outcome, Reason: "why",
		Actor:   operatorv1.AuditActor_builder{Kind: r.Actor.Kind, Id: "id", Name: "name"}.Build(),
		Address: "2001:db8::1", UserAgent: "agent", RequestId: "request", Action: "action", Procedure: "S/M", Targets: r.Targets, TargetsTotal: 2,
		Details: []*operatorv1.AuditDetail{
			operatorv1.AuditDetail_builder{Name: "n", Before: "b", After: "a"}.Build(), operatorv1.AuditDetail_builder{Name: "m", After: "x"}.Build(),
		},
		KnownNumber: 7, KnownHash: "hash",
	}.Build()
	got := &operatorv1.AuditEntry{}
	if err := proto.Unmarshal(encode(r, "i", operatorv1.AuditPhase_AUDIT_PHASE_ENDED, Head{7, "hash"}), got); err != nil || !proto.Equal(got, want) {
		t.Errorf("got %v, want %v, %v", got, want, err)
	}
}
