package server_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/controlplane/internal/apierr"
	"github.com/fleetban/fleetban/controlplane/internal/people"
	"github.com/fleetban/fleetban/controlplane/internal/store/redistest"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1/operatorv1connect"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

func (h *house) approvals(i int, token string) operatorv1connect.ApprovalServiceClient {
	return operatorv1connect.NewApprovalServiceClient(http.DefaultClient, h.url(i), h.as(token))
}

func (h *house) access(i int, email string) string {
	return h.signIn(i, email, ownerPassword).GetTokens().GetAccessToken()
}

// waits checks that a request waits for a second person, and returns the approval's id.
func (h *house) waits(err error) string {
	h.t.Helper()
	info := apierr.Info(err)
	if connect.CodeOf(err) != connect.CodeFailedPrecondition || info.GetReason() != fleetbanv1.Reason_REASON_APPROVAL_REQUIRED || len(info.GetSubject()) != 26 ||
		!strings.Contains(info.GetFix(), "fleetban approvals approve "+info.GetSubject()) {
		h.t.Fatalf("it doesn't wait for approval: %v, %v", err, info)
	}
	return info.GetSubject()
}

func (h *house) pause(i int, token string) error {
	_, err := h.fleet(i, token).Pause(h.t.Context(), connect.NewRequest(operatorv1.PauseRequest_builder{DurationS: 3600, Reason: "a test"}.Build()))
	return err
}

func (h *house) paused(token string) bool {
	h.t.Helper()
	res, err := h.fleet(0, token).GetFleet(h.t.Context(), connect.NewRequest(&operatorv1.GetFleetRequest{}))
	if err != nil {
		h.t.Fatal(err)
	}
	return res.Msg.GetPausedUntilUnixMs() > 0
}

func (h *house) approve(i int, token, id string) (*operatorv1.Approval, error) {
	res, err := h.approvals(i, token).Approve(h.t.Context(), connect.NewRequest(operatorv1.ApproveRequest_builder{Id: id}.Build()))
	if err != nil {
		return nil, err
	}
	return res.Msg.GetApproval(), nil
}

func (h *house) require(i int, token string, on bool) error {
	_, err := h.approvals(i, token).SetApprovalPolicy(h.t.Context(), connect.NewRequest(operatorv1.SetApprovalPolicyRequest_builder{Required: on}.Build()))
	return err
}

// entries are those of the audit log with that action.
func (h *house) entries(token, action string) []*operatorv1.AuditEntry {
	h.t.Helper()
	res, err := operatorv1connect.NewAuditServiceClient(http.DefaultClient, h.url(1), h.as(token)).ListAudit(h.t.Context(), connect.NewRequest(
		operatorv1.ListAuditRequest_builder{Filter: operatorv1.AuditFilter_builder{Action: action}.Build()}.Build()))
	if err != nil {
		h.t.Fatal(err)
	}
	return res.Msg.GetEntries()
}

func wantCode(t *testing.T, what string, err error, code connect.Code, reason fleetbanv1.Reason) {
	t.Helper()
	if connect.CodeOf(err) != code || apierr.ReasonOf(err) != reason {
		t.Errorf("%s: %v; want %v, %v", what, err, code, reason)
	}
}

const (
	denied = fleetbanv1.Reason_REASON_PERMISSION_DENIED
	over   = fleetbanv1.Reason_REASON_APPROVAL_OVER
)

// What needs a second person isn't done before one approves it, is done once, in the right of who asked, and is recorded with
// both names; all of it over two replicas.
func TestApprovals(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	ada := h.access(0, ownerEmail)
	if err := h.require(0, ada, true); connect.CodeOf(err) != connect.CodeFailedPrecondition || apierr.ReasonOf(err) != fleetbanv1.Reason_REASON_INVALID_FIELD {
		t.Fatal("with one owner: ", err)
	}
	h.join(ada, "bob@example.com", people.Owner)
	h.join(ada, "olga@example.com", people.Operator)
	h.join(ada, "vic@example.com", people.Viewer)
	bob, olga, vic := h.access(1, "bob@example.com"), h.access(1, "olga@example.com"), h.access(0, "vic@example.com")
	wantCode(t, "an operator changes what needs approval", h.require(1, olga, true), connect.CodePermissionDenied, denied)
	if err := h.pause(1, olga); err != nil || !h.paused(vic) {
		t.Fatal("before anything needs approval: ", err)
	}
	if _, err := h.fleet(0, olga).Resume(t.Context(), connect.NewRequest(&operatorv1.ResumeRequest{})); err != nil {
		t.Fatal(err)
	}
	if err := h.require(0, ada, true); err != nil {
		t.Fatal(err)
	}
	token, err := operatorv1connect.NewOrganisationTokenServiceClient(http.DefaultClient, h.url(0), h.as(ada)).CreateOrganisationToken(t.Context(),
		connect.NewRequest(operatorv1.CreateOrganisationTokenRequest_builder{Name: "robot", Role: people.Admin}.Build()))
	if err != nil {
		t.Fatal(err)
	}
	robot := token.Msg.GetSecret()

	t.Run("once", func(t *testing.T) {
		id := h.waits(h.pause(1, olga))
		if h.paused(vic) {
			t.Fatal("done before it was approved")
		}
		_, err := h.approve(0, olga, id)
		wantCode(t, "by who asked", err, connect.CodePermissionDenied, denied)
		_, err = h.approve(0, vic, id)
		wantCode(t, "by a viewer", err, connect.CodePermissionDenied, denied)
		_, err = h.approve(0, robot, id)
		wantCode(t, "by a program", err, connect.CodePermissionDenied, denied)
		list, err := h.approvals(0, vic).ListApprovals(t.Context(), connect.NewRequest(operatorv1.ListApprovalsRequest_builder{Waiting: true}.Build()))
		if err != nil || len(list.Msg.GetApprovals()) != 1 {
			t.Fatal(list, err)
		}
		if a := list.Msg.GetApprovals()[0]; a.GetId() != id || a.GetAction() != "pause" || a.GetRequester() != "olga@example.com" || a.GetDetails()["duration_s"] != "3600" ||
			!slices.Equal(a.GetRoles(), []string{"owner", "admin", "operator"}) {
			t.Errorf("listed as %v", a)
		}
		var done, late atomic.Int32
		var all sync.WaitGroup
		for i := range 12 {
			all.Go(func() {
				a, err := h.approve(i%2, []string{ada, bob}[i/2%2], id)
				switch {
				case err == nil && a.GetState() == operatorv1.ApprovalState_APPROVAL_STATE_DONE:
					done.Add(1)
				case apierr.ReasonOf(err) == over:
					late.Add(1)
				default:
					t.Errorf("%v, %v", a, err)
				}
			})
		}
		all.Wait()
		if done.Load() != 1 || late.Load() != 11 || !h.paused(vic) {
			t.Errorf("%d did it, %d were late, paused: %v", done.Load(), late.Load(), h.paused(vic))
		}
		entries := h.entries(ada, "pause")
		by := map[string]string{}
		for _, d := range entries[0].GetDetails() {
			by[d.GetName()] = d.GetAfter()
		}
		if len(entries) != 2 || entries[0].GetActor().GetName() != "olga@example.com" || !strings.Contains(by["approved_by"], "@example.com") || by["approval"] != id {
			t.Errorf("%d entries, the last is %v", len(entries), entries[0])
		}
		if asked := h.entries(ada, "approval.request"); len(asked) != 1 || asked[0].GetActor().GetName() != "olga@example.com" {
			t.Errorf("%v", asked)
		}
		approved := slices.DeleteFunc(h.entries(ada, "approval.approve"), func(e *operatorv1.AuditEntry) bool {
			return e.GetOutcome() != operatorv1.AuditOutcome_AUDIT_OUTCOME_OK
		})
		if len(approved) != 1 || approved[0].GetActor().GetName() != by["approved_by"] || approved[0].GetTargets()[0] != id {
			t.Errorf("%v", approved)
		}
		if _, err := h.fleet(0, olga).Resume(t.Context(), connect.NewRequest(&operatorv1.ResumeRequest{})); err != nil {
			t.Fatal("ending a pause waits for nobody: ", err)
		}
	})

	t.Run("bans", func(t *testing.T) {
		ban := func(prefixes ...string) error {
			_, err := operatorv1connect.NewBanServiceClient(http.DefaultClient, h.url(1), h.as(olga)).Ban(t.Context(),
				connect.NewRequest(operatorv1.BanRequest_builder{Prefixes: prefixes, DurationS: 60}.Build()))
			return err
		}
		for _, narrow := range []string{"203.0.113.9", "203.0.113.0/24", "2001:db9::/64"} {
			if err := ban(narrow); err != nil {
				t.Errorf("%s: %v", narrow, err)
			}
		}
		h.waits(ban("203.0.112.0/23"))
		h.waits(ban("198.51.100.1", "2001:db9::/63"))
		many := make([]string, 101)
		for i := range many {
			many[i] = fmt.Sprintf("198.51.100.%d", i)
		}
		h.waits(ban(many...))
		// What would be refused anyway is refused at once.
		wantCode(t, "too wide for anybody", ban("203.0.113.0/33"), connect.CodeInvalidArgument, fleetbanv1.Reason_REASON_INVALID_FIELD)
	})

	t.Run("withdrawn and rejected", func(t *testing.T) {
		reject := func(token, id string) (*operatorv1.Approval, error) {
			res, err := h.approvals(1, token).Reject(t.Context(), connect.NewRequest(operatorv1.RejectRequest_builder{Id: id, Reason: "not now"}.Build()))
			if err != nil {
				return nil, err
			}
			return res.Msg.GetApproval(), nil
		}
		id := h.waits(h.pause(0, olga))
		if a, err := reject(olga, id); err != nil || a.GetState() != operatorv1.ApprovalState_APPROVAL_STATE_WITHDRAWN {
			t.Errorf("%v, %v", a, err)
		}
		_, err := h.approve(0, ada, id)
		wantCode(t, "withdrawn", err, connect.CodeFailedPrecondition, over)
		id = h.waits(h.pause(0, olga))
		_, err = reject(vic, id)
		wantCode(t, "rejected by a viewer", err, connect.CodePermissionDenied, denied)
		if a, err := reject(bob, id); err != nil || a.GetState() != operatorv1.ApprovalState_APPROVAL_STATE_REJECTED || a.GetDecider() != "bob@example.com" {
			t.Errorf("%v, %v", a, err)
		}
		_, err = h.approve(0, ada, id)
		wantCode(t, "rejected", err, connect.CodeFailedPrecondition, over)
		if h.paused(vic) {
			t.Error("it was done all the same")
		}
	})

	t.Run("the right is gone", func(t *testing.T) {
		byRobot := h.waits(h.pause(1, robot))
		// One person with a token of their own making would be two.
		_, err := h.approve(0, ada, byRobot)
		wantCode(t, "by who made the program's token", err, connect.CodePermissionDenied, denied)
		if a, err := h.approve(0, bob, byRobot); err != nil || a.GetState() != operatorv1.ApprovalState_APPROVAL_STATE_DONE {
			t.Errorf("what a program asked for: %v, %v", a, err)
		}
		byRobot = h.waits(h.pause(1, robot))
		if _, err := operatorv1connect.NewOrganisationTokenServiceClient(http.DefaultClient, h.url(0), h.as(ada)).RevokeOrganisationToken(t.Context(),
			connect.NewRequest(operatorv1.RevokeOrganisationTokenRequest_builder{Id: token.Msg.GetToken().GetId()}.Build())); err != nil {
			t.Fatal(err)
		}
		if _, err := h.fleet(0, ada).Resume(t.Context(), connect.NewRequest(&operatorv1.ResumeRequest{})); err != nil {
			t.Fatal(err)
		}
		h.join(ada, "oleg@example.com", people.Operator)
		oleg := h.access(0, "oleg@example.com")
		byOlga, byOleg := h.waits(h.pause(0, olga)), h.waits(h.pause(1, oleg))
		if _, err := h.members(1, ada).SetRole(t.Context(), connect.NewRequest(operatorv1.SetRoleRequest_builder{Member: "olga@example.com", Role: people.Admin}.Build())); err != nil {
			t.Fatal(err)
		}
		if _, err := h.members(1, ada).RemoveMember(t.Context(), connect.NewRequest(operatorv1.RemoveMemberRequest_builder{Member: "oleg@example.com"}.Build())); err != nil {
			t.Fatal(err)
		}
		for what, id := range map[string]string{"a revoked token": byRobot, "a changed role": byOlga, "somebody who was removed": byOleg} {
			a, err := h.approve(1, bob, id)
			if err != nil || a.GetState() != operatorv1.ApprovalState_APPROVAL_STATE_FAILED || !strings.Contains(a.GetReason(), "may not do it any more") {
				t.Errorf("%s: %v, %v", what, a, err)
			}
		}
		if h.paused(vic) {
			t.Error("it was done all the same")
		}
	})

	t.Run("late and forged", func(t *testing.T) {
		client := h.redis.Open().Client()
		key := func(id string) string {
			keys := redistest.Keys(t, client, "fb:*:approval:"+id)
			if len(keys) != 1 {
				t.Fatal(keys)
			}
			return keys[0]
		}
		late, forged := h.waits(h.pause(0, ada)), h.waits(h.pause(0, ada))
		client.HSet(t.Context(), key(late), "expires", "1")
		_, err := h.approve(1, bob, late)
		wantCode(t, "after a day", err, connect.CodeFailedPrecondition, over)
		raw := client.HGet(t.Context(), key(forged), "request").Val()
		client.HSet(t.Context(), key(forged), "request", strings.Replace(raw, "Pause", "Resume", 1))
		_, err = h.approve(1, bob, forged)
		wantCode(t, "changed in Redis", err, connect.CodeNotFound, fleetbanv1.Reason_REASON_NOT_FOUND)
	})

	// Switching it off needs the other owner, too.
	id := h.waits(h.require(1, ada, false))
	_, err = h.approve(0, ada, id)
	wantCode(t, "one owner alone", err, connect.CodePermissionDenied, denied)
	if a, err := h.approve(0, bob, id); err != nil || a.GetState() != operatorv1.ApprovalState_APPROVAL_STATE_DONE {
		t.Fatal(a, err)
	}
	if err := h.pause(1, bob); err != nil || !h.paused(vic) {
		t.Error("after it was switched off: ", err)
	}
}
