package server_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/controlplane/internal/people"
	"github.com/fleetban/fleetban/controlplane/internal/testwait"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1/operatorv1connect"
	optionsv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/options/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/v1/fleetbanv1connect"
)

func (h *house) tokens(i int, token string) operatorv1connect.TokenServiceClient {
	return operatorv1connect.NewTokenServiceClient(http.DefaultClient, h.url(i), h.as(token))
}

func (h *house) orgTokens(i int, token string) operatorv1connect.OrganisationTokenServiceClient {
	return operatorv1connect.NewOrganisationTokenServiceClient(http.DefaultClient, h.url(i), h.as(token))
}

func (h *house) personal(i int, access string, r operatorv1.CreateTokenRequest_builder) (*operatorv1.ApiToken, string) {
	h.t.Helper()
	res, err := h.tokens(i, access).CreateToken(h.t.Context(), connect.NewRequest(r.Build()))
	if err != nil {
		h.t.Fatal(err)
	}
	return res.Msg.GetToken(), res.Msg.GetSecret()
}

func (h *house) reads(i int, token string) error {
	_, err := h.fleet(i, token).GetFleet(h.t.Context(), connect.NewRequest(&operatorv1.GetFleetRequest{}))
	return err
}

// watching opens a watch, and tells when it ends.
func (h *house) watching(i int, token string) <-chan error {
	h.t.Helper()
	stream, err := h.fleet(i, token).Watch(h.t.Context(), connect.NewRequest(&operatorv1.WatchRequest{}))
	if err != nil {
		h.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		for stream.Receive() {
		}
		ended <- stream.Err()
		_ = stream.Close()
	}()
	return ended
}

// ends waits for the end of watches that something ended, which must come within a second.
func ends(t *testing.T, what string, since *testwait.Stopwatch, watches ...<-chan error) {
	t.Helper()
	for i, w := range watches {
		select {
		case err := <-w:
			if !refused(err) {
				t.Errorf("%s, watch %d: %v", what, i, err)
			}
		case <-time.After(testwait.Patience):
			t.Errorf("%s: watch %d goes on", what, i)
		}
	}
	since.Within(t, what, soon)
}

// A token that is revoked, whose person is demoted or leaves, ends on both replicas, open streams too.
func TestTokensEndEverywhere(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	owner := h.signIn(0, ownerEmail, ownerPassword).GetTokens().GetAccessToken()
	h.join(owner, "bob@example.com", people.Operator)
	bob := h.signIn(1, "bob@example.com", ownerPassword)
	access := bob.GetTokens().GetAccessToken()

	machine, err := h.orgTokens(0, owner).CreateOrganisationToken(t.Context(), connect.NewRequest(operatorv1.CreateOrganisationTokenRequest_builder{
		Name: "grafana", Permissions: []optionsv1.Permission{optionsv1.Permission_PERMISSION_FLEET_READ}, DurationS: 3600,
	}.Build()))
	if err != nil {
		t.Fatal(err)
	}
	one, two := h.watching(0, machine.Msg.GetSecret()), h.watching(1, machine.Msg.GetSecret())
	since := testwait.StartStopwatch(t)
	if _, err := h.orgTokens(1, owner).RevokeOrganisationToken(t.Context(), connect.NewRequest(operatorv1.RevokeOrganisationTokenRequest_builder{Id: machine.Msg.GetSecret()}.Build())); err != nil {
		t.Fatal(err)
	}
	for i := range h.replicas {
		if err := h.reads(i, machine.Msg.GetSecret()); !refused(err) {
			t.Errorf("revoked, at replica %d: %v", i, err)
		}
	}
	ends(t, "revoked", since, one, two)

	_, secret := h.personal(1, access, operatorv1.CreateTokenRequest_builder{Name: "laptop", Role: people.Operator})
	if _, err := h.tokens(0, access).CreateToken(t.Context(), connect.NewRequest(operatorv1.CreateTokenRequest_builder{Name: "more", Role: people.Admin}.Build())); connect.CodeOf(err) != connect.CodePermissionDenied {
		t.Errorf("a token that may more than its person: %v", err)
	}
	pause := func(i int) error {
		_, err := h.fleet(i, secret).Pause(t.Context(), connect.NewRequest(operatorv1.PauseRequest_builder{DurationS: 1}.Build()))
		return err
	}
	if err := pause(0); err != nil {
		t.Error(err)
	}
	one, two = h.watching(0, secret), h.watching(1, secret)
	since = testwait.StartStopwatch(t)
	if _, err := h.members(0, owner).SetRole(t.Context(), connect.NewRequest(operatorv1.SetRoleRequest_builder{Member: "bob@example.com", Role: people.Viewer, Tags: []string{"team=web"}}.Build())); err != nil {
		t.Fatal(err)
	}
	ends(t, "demoted", since, one, two)
	for i := range h.replicas {
		if err := pause(i); connect.CodeOf(err) != connect.CodePermissionDenied {
			t.Errorf("a token of who is a viewer pauses: %v", err)
		}
		if err := h.reads(i, secret); err != nil {
			t.Errorf("it reads still: %v", err)
		}
	}
	listed, err := h.orgTokens(1, owner).ListOrganisationTokens(t.Context(), connect.NewRequest(&operatorv1.ListOrganisationTokensRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	at := slices.IndexFunc(listed.Msg.GetTokens(), func(x *operatorv1.ApiToken) bool { return x.GetName() == "laptop" })
	if at < 0 || !strings.HasPrefix(listed.Msg.GetTokens()[at].GetUsedAddress(), "198.51.") || listed.Msg.GetTokens()[at].GetPersonEmail() != "bob@example.com" {
		t.Errorf("%v", listed.Msg)
	}

	one, two = h.watching(0, secret), h.watching(1, secret)
	since = testwait.StartStopwatch(t)
	if _, err := h.members(1, owner).RemoveMember(t.Context(), connect.NewRequest(operatorv1.RemoveMemberRequest_builder{Member: "bob@example.com"}.Build())); err != nil {
		t.Fatal(err)
	}
	ends(t, "removed", since, one, two)
	h.join(owner, "bob@example.com", people.Operator)
	for i := range h.replicas {
		if err := h.reads(i, secret); !refused(err) {
			t.Errorf("a token of a membership that ended, at replica %d: %v", i, err)
		}
	}

	audit, err := operatorv1connect.NewAuditServiceClient(http.DefaultClient, h.url(0), h.as(owner)).ListAudit(t.Context(), connect.NewRequest(operatorv1.ListAuditRequest_builder{PageSize: 1000}.Build()))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"organisation-token.create", "organisation-token.revoke", "token.create", "member.role"} {
		i := slices.IndexFunc(audit.Msg.GetEntries(), func(e *operatorv1.AuditEntry) bool {
			return e.GetAction() == want && e.GetOutcome() == operatorv1.AuditOutcome_AUDIT_OUTCOME_OK
		})
		if i < 0 {
			t.Errorf("no entry of %s", want)
			continue
		}
		e := audit.Msg.GetEntries()[i]
		if strings.Contains(e.String(), secret) || strings.Contains(e.String(), machine.Msg.GetSecret()) {
			t.Errorf("a secret in %v", e)
		}
		if want == "member.role" && !slices.ContainsFunc(e.GetDetails(), func(d *operatorv1.AuditDetail) bool {
			return d.GetName() == "role" && d.GetBefore() == "operator" && d.GetAfter() == "viewer"
		}) {
			t.Errorf("before and after are missing: %v", e)
		}
	}
}

// People's and programs' credentials open nothing of agents, at either replica; and headers hold what they say and no more.
func TestCredentialsElsewhere(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	access := h.signIn(0, ownerEmail, ownerPassword).GetTokens().GetAccessToken()
	_, secret := h.personal(0, access, operatorv1.CreateTokenRequest_builder{Name: "laptop", Role: people.Operator})
	for what, credential := range map[string]string{"access token": access, "personal token": secret, "nothing": ""} {
		for i := range h.replicas {
			client := fleetbanv1connect.NewAgentServiceClient(http.DefaultClient, h.url(i), h.as(credential))
			if _, err := client.RotateKey(t.Context(), connect.NewRequest(&fleetbanv1.RotateKeyRequest{})); connect.CodeOf(err) != connect.CodeUnauthenticated {
				t.Errorf("%s at replica %d: %v", what, i, err)
			}
		}
	}
	for name, header := range map[string]string{
		"a header of its own behind a newline": "Authorization: Bearer x\r\nAuthorization: Bearer " + secret + "\r\n",
		"folded":                               "Authorization: Bearer\r\n " + secret[:10] + "\r\n " + secret[10:] + "\r\n",
		"a bare line feed":                     "X-Forwarded-For: 192.0.2.1\nAuthorization: Bearer " + secret[:20] + "\r\n",
		"twice":                                "Authorization: Bearer " + secret + "\r\nAuthorization: Bearer " + secret + "\r\n",
		"a zero byte":                          "Authorization: Bearer " + secret + "\x00\r\n",
		"another scheme":                       "Authorization: Basic " + secret + "\r\n",
	} {
		for i := range h.replicas {
			if status := h.raw(i, header); status == "200" {
				t.Errorf("%s: let in at replica %d", name, i)
			}
		}
	}
	if status := h.raw(0, "Authorization: Bearer "+secret+"\r\n"); status != "200" {
		t.Errorf("the test's own way of asking: %s", status)
	}
}

// raw asks for the fleet over a connection of its own, with these header lines, and returns the status.
func (h *house) raw(i int, header string) string {
	h.t.Helper()
	conn, err := (&net.Dialer{}).DialContext(h.t.Context(), "tcp", h.replicas[i].addr())
	if err != nil {
		h.t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(within))
	request := "POST /fleetban.operator.v1.FleetService/GetFleet HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: 2\r\n" + header + "\r\n{}"
	if _, err := conn.Write([]byte(request)); err != nil {
		h.t.Fatal(err)
	}
	answer := make([]byte, 12)
	for n := 0; n < len(answer); {
		read, err := conn.Read(answer[n:])
		if n += read; err != nil {
			return "closed"
		}
	}
	return string(answer[9:12])
}

// Who guesses join tokens is heard a limited number of times, over both replicas together, whatever they guess.
func TestJoinTokenGuessing(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	public, _, _ := ed25519.GenerateKey(rand.Reader)
	began, heard := time.Now(), 0
	for i := range 200 {
		client := fleetbanv1connect.NewAgentServiceClient(http.DefaultClient, h.url(i%2), connect.WithInterceptors(fixed("192.0.2.99")))
		_, err := client.Enroll(t.Context(), connect.NewRequest(fleetbanv1.EnrollRequest_builder{
			JoinToken: "fbj_" + strings.Repeat(string(rune('A'+i%26)), 49), PublicKey: public, Name: "guess",
		}.Build()))
		switch connect.CodeOf(err) {
		case connect.CodeResourceExhausted:
		case connect.CodeUnauthenticated, connect.CodeInvalidArgument, connect.CodePermissionDenied, connect.CodeNotFound:
			heard++
		default:
			t.Fatal(err)
		}
	}
	// Thirty a minute, and what comes back while the test runs.
	if heard > 60+int(time.Since(began).Minutes()*30) {
		t.Errorf("%d of 200 guesses were heard", heard)
	}
	// Others aren't.
	if _, err := h.sessions(1, "").SignIn(t.Context(), connect.NewRequest(operatorv1.SignInRequest_builder{Email: ownerEmail, Password: ownerPassword}.Build())); err != nil {
		t.Error(err)
	}
}

// fixed is a caller at one address.
type fixed string

func (f fixed) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		req.Header().Set("X-Forwarded-For", string(f))
		return next(ctx, req)
	}
}

func (fixed) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (fixed) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}
