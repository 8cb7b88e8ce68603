package operatorapi_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/fleetban/fleetban/controlplane/internal/audit"
	"github.com/fleetban/fleetban/controlplane/internal/operatorapi"
	"github.com/fleetban/fleetban/controlplane/internal/operatorapi/apitest"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1/operatorv1connect"
	optionsv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/options/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

func auditOf(cp *apitest.ControlPlane, token string) operatorv1connect.AuditServiceClient {
	return operatorv1connect.NewAuditServiceClient(&http.Client{Transport: cp.HTTP.Transport}, cp.URL, connect.WithInterceptors(bearer(token)))
}

// newest are the newest n entries, oldest of them first.
func newest(t *testing.T, cp *apitest.ControlPlane, n int) []*operatorv1.AuditEntry {
	t.Helper()
	entries := ask(t, auditOf(cp, cp.Token).ListAudit, operatorv1.ListAuditRequest_builder{PageSize: uint32(n)}.Build()).GetEntries() //nolint:gosec // small
	slices.Reverse(entries)
	return entries
}

func detail(e *operatorv1.AuditEntry, name string) string {
	for _, d := range e.GetDetails() {
		if d.GetName() == name {
			return d.GetBefore() + "→" + d.GetAfter()
		}
	}
	return "none"
}

// Each RPC that changes something writes one entry, and says the same of it as the change did.
func TestRecorded(t *testing.T) {
	cp := apitest.Start(t)
	a := with(cp, cp.Token)
	host := cp.Enrol("web-1", nil)
	cp.Enrol("web-2", nil)
	token := ask(t, a.join.CreateJoinToken, operatorv1.CreateJoinTokenRequest_builder{
		DurationS: 60, Tags: map[string]string{"role": "web", "a": "b"}, Note: "for tests\u202e",
	}.Build())
	for _, c := range []struct {
		action, target string
		call           func()
		details        map[string]string
	}{
		{"ban", "203.0.113.9", func() {
			ask(t, a.bans.Ban, operatorv1.BanRequest_builder{Prefixes: []string{" 203.0.113.9/32"}, DurationS: 60, Reason: "it \u202e\x1b[31m knocks"}.Build())
		}, map[string]string{"duration_s": "→60", "reason": "→it \u202e\x1b[31m knocks", "banned": "→1", "tag": "none"}},
		{"ban", "203.0.113.9", func() {
			ask(t, a.bans.Ban, operatorv1.BanRequest_builder{Prefixes: []string{"203.0.113.9"}, DurationS: 1}.Build())
		}, map[string]string{"unchanged": "→1", "banned": "none"}},
		{"unban", "203.0.113.9", func() {
			ask(t, a.bans.Unban, operatorv1.UnbanRequest_builder{Prefixes: []string{"203.0.113.9"}, Reason: "friend"}.Build())
		}, map[string]string{"claims": "1→0", "reason": "→friend"}},
		{"allow", "192.0.2.0/24", func() {
			ask(t, a.allow.Allow, operatorv1.AllowRequest_builder{Prefixes: []string{"192.0.2.0/24"}}.Build())
		}, map[string]string{"allowed": "→1"}},
		{"disallow", "192.0.2.0/24", func() {
			ask(t, a.allow.Disallow, operatorv1.DisallowRequest_builder{Prefixes: []string{"192.0.2.0/24"}}.Build())
		}, map[string]string{"allowed": "1→0"}},
		{"pause", "", func() {
			ask(t, a.fleet.Pause, operatorv1.PauseRequest_builder{DurationS: 60, Reason: "a test"}.Build())
		}, map[string]string{"reason": "→a test", "duration_s": "→60"}},
		{"resume", "", func() { ask(t, a.fleet.Resume, &operatorv1.ResumeRequest{}) }, nil},
		{"mode", "", func() {
			ask(t, a.fleet.SetMode, operatorv1.SetModeRequest_builder{Mode: fleetbanv1.Mode_MODE_WATCH}.Build())
		}, map[string]string{"mode": "enforce→watch"}},
		{"mode", "", func() {
			ask(t, a.fleet.SetMode, operatorv1.SetModeRequest_builder{Mode: fleetbanv1.Mode_MODE_WATCH}.Build())
		}, map[string]string{"mode": "watch→watch"}},
		{"host.release", "web-1", func() {
			ask(t, a.hosts.ReleaseHost, operatorv1.ReleaseHostRequest_builder{Host: host.ID}.Build())
		}, map[string]string{"quarantined": "no→"}},
		{"host.delete", "web-1", func() {
			ask(t, a.hosts.DeleteHost, operatorv1.DeleteHostRequest_builder{Host: "WEB-1"}.Build())
		}, nil},
		{"join-token.create", "fbj_", func() {
			ask(t, a.join.CreateJoinToken, operatorv1.CreateJoinTokenRequest_builder{Uses: 3, Tags: map[string]string{"role": "web"}}.Build())
		}, map[string]string{"uses": "→3", "tags": "→role=web"}},
		// The whole secret is pasted.
		{"join-token.revoke", token.GetJoinToken().GetId(), func() {
			ask(t, a.join.RevokeJoinToken, operatorv1.RevokeJoinTokenRequest_builder{Id: token.GetSecret()}.Build())
		}, nil},
	} {
		before := newest(t, cp, 1)
		c.call()
		entries := newest(t, cp, 2)
		e := entries[1]
		if e.GetAction() != c.action || e.GetOutcome() != operatorv1.AuditOutcome_AUDIT_OUTCOME_OK {
			t.Errorf("%s: recorded as %v", c.action, e)
		}
		if before[0].GetNumber() != entries[0].GetNumber() && before[0].GetAction() != audit.ActionBegin {
			t.Errorf("%s: more than one entry is listed", c.action)
		}
		if c.target == "" && len(e.GetTargets()) > 0 || c.target != "" && (len(e.GetTargets()) == 0 || !strings.HasPrefix(e.GetTargets()[0], c.target)) {
			t.Errorf("%s: the targets are %q, want %q", c.action, e.GetTargets(), c.target)
		}
		if e.GetActor().GetKind() != operatorv1.AuditActorKind_AUDIT_ACTOR_KIND_TOKEN || e.GetActor().GetName() != "first administrator" || len(e.GetActor().GetId()) != 26 {
			t.Errorf("%s: the actor is %v", c.action, e.GetActor())
		}
		if e.GetAddress() != "127.0.0.1" || !strings.HasPrefix(e.GetUserAgent(), "connect-go/") || !strings.Contains(e.GetProcedure(), "Service/") {
			t.Errorf("%s: by %q from %q, procedure %q", c.action, e.GetUserAgent(), e.GetAddress(), e.GetProcedure())
		}
		for name, want := range c.details {
			if got := detail(e, name); got != want {
				t.Errorf("%s: %s is %q, want %q", c.action, name, got, want)
			}
		}
	}
	all, next, err := cp.Audit.List(t.Context(), cp.Org.ID, audit.Filter{}, 1000, "")
	if err != nil || next != "" {
		t.Fatal(err, next)
	}
	for _, e := range all {
		if text, _ := protojson.Marshal(e); strings.Contains(string(text), token.GetSecret()[12:]) {
			t.Errorf("a secret is recorded: %s", text)
		}
	}
	if v := ask(t, auditOf(cp, cp.Token).VerifyAudit, &operatorv1.VerifyAuditRequest{}); !v.GetIntact() || v.GetUnknownOutcomes() > 0 {
		t.Errorf("%v", v)
	}
}

// What is refused is recorded, for whatever reason, but not so often that it pushes everything else out.
func TestRecordedRefusals(t *testing.T) {
	cp := apitest.Start(t)
	reader := cp.NewToken(cp.Org.ID, optionsv1.Permission_PERMISSION_FLEET_READ)
	_, foreign := cp.NewOrg("Other")
	a, r := with(cp, cp.Token), with(cp, reader)
	ban := func(prefix string) *operatorv1.BanRequest {
		return operatorv1.BanRequest_builder{Prefixes: []string{prefix}, DurationS: 60}.Build()
	}
	for _, c := range []struct {
		api    api
		prefix string
		reason string
	}{
		{r, "203.0.113.9", "lacks bans_write"}, {a, "10.0.0.1", "which no attacker"}, {a, "1.0.0.0/8", "wider"}, {a, "x", "prefixes"},
	} {
		if _, err := c.api.bans.Ban(t.Context(), connect.NewRequest(ban(c.prefix))); err == nil {
			t.Fatalf("%s was banned", c.prefix)
		}
		e := newest(t, cp, 1)[0]
		if e.GetAction() != "ban" || e.GetOutcome() != operatorv1.AuditOutcome_AUDIT_OUTCOME_REFUSED || !strings.Contains(e.GetReason(), c.reason) {
			t.Errorf("%s: recorded as %v, want a refusal with %q", c.prefix, e, c.reason)
		}
	}
	// Who may not read the log doesn't.
	refused(t, auditOf(cp, reader).ListAudit, &operatorv1.ListAuditRequest{}, fleetbanv1.Reason_REASON_PERMISSION_DENIED, "", "audit_read")
	refused(t, auditOf(cp, reader).VerifyAudit, &operatorv1.VerifyAuditRequest{}, fleetbanv1.Reason_REASON_PERMISSION_DENIED, "", "audit_read")
	if got := ask(t, auditOf(cp, foreign).ListAudit, &operatorv1.ListAuditRequest{}).GetEntries(); len(got) > 0 {
		t.Errorf("another organisation reads %v", got)
	}
	before := newest(t, cp, 1)[0].GetNumber()
	for range 200 {
		_, _ = r.bans.Ban(t.Context(), connect.NewRequest(ban("203.0.113.9")))
	}
	// Twenty at once and one a second.
	if n := newest(t, cp, 1)[0].GetNumber() - before; n < 5 || n > 100 {
		t.Errorf("%d of 200 refusals are recorded", n)
	}
	if v := ask(t, auditOf(cp, cp.Token).VerifyAudit, &operatorv1.VerifyAuditRequest{}); !v.GetIntact() {
		t.Errorf("%v", v)
	}
}

// A thousand prefixes are one entry of bounded size.
func TestRecordedBulk(t *testing.T) {
	cp := apitest.Start(t)
	var prefixes []string
	for i := range 1000 {
		prefixes = append(prefixes, fmt.Sprintf("198.18.%d.%d", i>>8, i&255))
	}
	ask(t, with(cp, cp.Token).bans.Ban, operatorv1.BanRequest_builder{Prefixes: prefixes, DurationS: 60}.Build())
	e := newest(t, cp, 1)[0]
	if e.GetTargetsTotal() != 1000 || len(e.GetTargets()) != audit.MaxTargets || detail(e, "banned") != "→1000" {
		t.Errorf("recorded as %v", e)
	}
}

// Changes that go to Redis together, from many at once, have their entries each.
func TestRecordedTogether(t *testing.T) {
	cp := apitest.Start(t)
	a := with(cp, cp.Token)
	var wg sync.WaitGroup
	for i := range 60 {
		wg.Go(func() {
			prefix := fmt.Sprintf("203.0.113.%d", i)
			if i%10 == 0 {
				prefix = "203.0.113.0/7" // refused, among those that aren't
			}
			_, err := a.bans.Ban(context.Background(), connect.NewRequest(operatorv1.BanRequest_builder{Prefixes: []string{prefix}, DurationS: 60}.Build()))
			if (err != nil) != (i%10 == 0) {
				t.Error(prefix, err)
			}
		})
	}
	wg.Wait()
	done := map[string]bool{}
	for _, e := range newest(t, cp, 200) {
		if e.GetOutcome() == operatorv1.AuditOutcome_AUDIT_OUTCOME_OK {
			done[e.GetTargets()[0]] = true
		}
	}
	if len(done) != 54 {
		t.Errorf("%d bans are recorded, want 54", len(done))
	}
	if v := ask(t, auditOf(cp, cp.Token).VerifyAudit, &operatorv1.VerifyAuditRequest{}); !v.GetIntact() {
		t.Errorf("%v", v)
	}
}

// With Redis away nothing is changed without its entry: neither is there.
func TestRecordedOutage(t *testing.T) {
	cp := apitest.Start(t)
	a := with(cp, cp.Token)
	ask(t, a.join.CreateJoinToken, &operatorv1.CreateJoinTokenRequest{})
	before := newest(t, cp, 1)[0].GetNumber()
	cp.Redis.Set("min-replicas-to-write", "1") // refuses every write
	if _, err := a.join.CreateJoinToken(t.Context(), connect.NewRequest(&operatorv1.CreateJoinTokenRequest{})); err == nil {
		t.Error("a join token was made")
	}
	if _, err := a.fleet.Pause(t.Context(), connect.NewRequest(operatorv1.PauseRequest_builder{DurationS: 60}.Build())); err == nil {
		t.Error("the fleet was paused")
	}
	cp.Redis.Set("min-replicas-to-write", "0")
	if got := newest(t, cp, 1)[0].GetNumber(); got != before {
		t.Errorf("entries up to %d, want %d", got, before)
	}
	if tokens := ask(t, a.join.ListJoinTokens, &operatorv1.ListJoinTokensRequest{}).GetJoinTokens(); len(tokens) != 1 {
		t.Errorf("%d join tokens", len(tokens))
	}
}

func TestExportAudit(t *testing.T) {
	cp := apitest.Start(t)
	a := with(cp, cp.Token)
	for range 3 {
		ask(t, a.join.CreateJoinToken, &operatorv1.CreateJoinTokenRequest{})
	}
	stream, err := auditOf(cp, cp.Token).ExportAudit(t.Context(), connect.NewRequest(operatorv1.ExportAuditRequest_builder{
		Filter: operatorv1.AuditFilter_builder{Action: "join-token"}.Build(),
	}.Build()))
	if err != nil {
		t.Fatal(err)
	}
	var numbers []uint64
	for stream.Receive() {
		numbers = append(numbers, stream.Msg().GetEntry().GetNumber())
	}
	if err := stream.Err(); err != nil || !slices.Equal(numbers, []uint64{2, 3, 4, 5, 6, 7}) {
		t.Errorf("exported %v, %v", numbers, err)
	}
}

// Every RPC of every service of fleetban/operator/v1 that may change something says how it is recorded.
func TestAuditDeclared(t *testing.T) {
	seen := map[string]bool{}
	for _, service := range operatorapi.Services() {
		for i := range service.Methods().Len() {
			declared, err := operatorapi.AuditOf(service.Methods().Get(i))
			if err != nil {
				t.Error(err)
			}
			if declared == nil {
				continue
			}
			// However somebody signs in, it is one action: what they proved stands in its details.
			if seen[declared.GetAction()] && declared.GetAction() != "sign-in" {
				t.Errorf("%s: another RPC has the action %s", service.Methods().Get(i).FullName(), declared.GetAction())
			}
			seen[declared.GetAction()] = true
			for _, name := range append(declared.GetDetails(), declared.GetTarget()) {
				for _, word := range []string{"password", "secret", "token"} {
					if strings.Contains(name, word) {
						t.Errorf("%s records the field %s", service.Methods().Get(i).FullName(), name)
					}
				}
			}
		}
	}
	if len(seen) < 11 {
		t.Errorf("only %d actions: %v", len(seen), seen)
	}
	// One that changes something and doesn't say so: of agents' services none does.
	service := fleetbanv1.File_fleetban_v1_agent_proto.Services().ByName("AgentService")
	if _, err := operatorapi.NewRecorder(nil, []protoreflect.ServiceDescriptor{service}, nil, slog.Default()); err == nil {
		t.Error("an RPC that isn't declared was taken")
	}
}
