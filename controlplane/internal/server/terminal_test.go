package server_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/controlplane/internal/cli"
	"github.com/fleetban/fleetban/controlplane/internal/people"
	"github.com/fleetban/fleetban/controlplane/internal/testwait"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1/operatorv1connect"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

const terminalVerifier = "a verifier that nobody but the terminal has seen"

func (h *house) terminal(i int, token string) operatorv1connect.TerminalServiceClient {
	return operatorv1connect.NewTerminalServiceClient(http.DefaultClient, h.url(i), h.as(token))
}

// asks begins a program's sign-in, and returns the code that it shows.
func (h *house) asks(i int, org string) string {
	h.t.Helper()
	sum := sha256.Sum256([]byte(terminalVerifier))
	res, err := h.terminal(i, "").BeginTerminalSignIn(h.t.Context(), connect.NewRequest(operatorv1.BeginTerminalSignInRequest_builder{
		Challenge: base64.RawURLEncoding.EncodeToString(sum[:]), Name: "build-7", OrganisationId: org,
	}.Build()))
	if err != nil {
		h.t.Fatal(err)
	}
	if !strings.HasSuffix(res.Msg.GetUrl(), "/terminal") || !regexp.MustCompile(`^[A-Z]{4}-[A-Z]{4}$`).MatchString(res.Msg.GetCode()) {
		h.t.Fatal(res.Msg)
	}
	return res.Msg.GetCode()
}

// takes is the program's question; pending where nobody decided.
func (h *house) takes(i int, code, verifier string) (*operatorv1.CompleteTerminalSignInResponse, error) {
	res, err := h.terminal(i, "").CompleteTerminalSignIn(h.t.Context(), connect.NewRequest(
		operatorv1.CompleteTerminalSignInRequest_builder{Code: code, Verifier: verifier}.Build()))
	if err != nil {
		return nil, err
	}
	return res.Msg, nil
}

func (h *house) lets(i int, token, code string) error {
	_, err := h.terminal(i, token).ApproveTerminalSignIn(h.t.Context(), connect.NewRequest(operatorv1.ApproveTerminalSignInRequest_builder{Code: code}.Build()))
	return err
}

func (h *house) looksAt(i int, token, code string) (*operatorv1.GetTerminalSignInResponse, error) {
	res, err := h.terminal(i, token).GetTerminalSignIn(h.t.Context(), connect.NewRequest(operatorv1.GetTerminalSignInRequest_builder{Code: code}.Build()))
	if err != nil {
		return nil, err
	}
	return res.Msg, nil
}

// A program is signed in by a person who types its code elsewhere: begun at one replica, approved and taken at the other, once.
func TestTerminalSignIn(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	owner := h.access(0, ownerEmail)
	h.join(owner, "olga@example.com", people.Operator)
	olga := h.access(1, "olga@example.com")
	code := h.asks(0, "")
	asked, err := h.looksAt(1, olga, strings.ToLower(strings.ReplaceAll(code, "-", " ")))
	if err != nil || asked.GetCode() != code || asked.GetName() != "build-7" || !strings.HasPrefix(asked.GetAddress(), "198.51.") || asked.GetSamePlace() ||
		asked.GetUserAgent() == "" || asked.GetExpiresUnixMs()-asked.GetBeganUnixMs() != 600_000 {
		t.Fatal(asked, err)
	}
	for i := range 2 {
		if got, err := h.takes(i, code, terminalVerifier); err != nil || !got.GetPending() || got.GetTokens() != nil {
			t.Fatalf("before anybody decided, at replica %d: %v, %v", i, got, err)
		}
	}
	_, err = h.takes(1, code, strings.Repeat("w", 50))
	wantCode(t, "who read the code from the screen", err, connect.CodeUnauthenticated, fleetbanv1.Reason_REASON_BAD_CREDENTIAL)
	_, err = h.takes(0, "BBBB-BBBB", terminalVerifier)
	wantCode(t, "a code of nobody", err, connect.CodeUnauthenticated, fleetbanv1.Reason_REASON_BAD_CREDENTIAL)
	wantCode(t, "a code of nobody is approved", h.lets(1, olga, "BBBB-BBBB"), connect.CodeNotFound, fleetbanv1.Reason_REASON_NOT_FOUND)
	wantCode(t, "an old proof", h.lets(1, longAgo(t, olga), code), connect.CodePermissionDenied, fleetbanv1.Reason_REASON_PROOF_NEEDED)
	if err := h.lets(1, olga, code); err != nil {
		t.Fatal(err)
	}
	wantCode(t, "approved by another one too", h.lets(0, owner, code), connect.CodeNotFound, fleetbanv1.Reason_REASON_NOT_FOUND)
	got, err := h.takes(0, code, terminalVerifier)
	if err != nil || got.GetPerson().GetEmail() != "olga@example.com" || got.GetPerson().GetRole() != people.Operator || got.GetDevice() == "" {
		t.Fatal(got, err)
	}
	for i := range 2 {
		me, err := h.sessions(i, got.GetTokens().GetAccessToken()).GetMe(t.Context(), connect.NewRequest(&operatorv1.GetMeRequest{}))
		if err != nil || me.Msg.GetPerson().GetEmail() != "olga@example.com" {
			t.Errorf("replica %d: %v, %v", i, me, err)
		}
		_, err = h.takes(i, code, terminalVerifier)
		wantCode(t, "a second time", err, connect.CodeUnauthenticated, fleetbanv1.Reason_REASON_BAD_CREDENTIAL)
	}
	if _, err := h.refresh(1, got.GetTokens().GetRefreshToken()); err != nil {
		t.Error(err)
	}
	text := ""
	for _, action := range []string{"terminal.approve", "sign-in"} {
		for _, e := range h.entries(owner, action) {
			text += e.String()
		}
	}
	for _, want := range []string{"build-7", asked.GetAddress(), "approved_in_session", "olga@example.com"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in the audit log", want)
		}
	}
	for _, secret := range []string{code, strings.ReplaceAll(code, "-", ""), terminalVerifier} {
		if strings.Contains(text, secret) {
			t.Errorf("%q is in the audit log", secret)
		}
	}
}

// Denied; for another organisation; approved in a session that is over by then, or with a password that is another one by then.
func TestTerminalSignInRefused(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	ctx, owner := t.Context(), h.access(0, ownerEmail)
	org, stranger := h.secondOrg()

	denied := h.asks(0, "")
	if _, err := h.terminal(1, owner).DenyTerminalSignIn(ctx, connect.NewRequest(operatorv1.DenyTerminalSignInRequest_builder{Code: denied}.Build())); err != nil {
		t.Fatal(err)
	}
	wantCode(t, "approved after that", h.lets(0, owner, denied), connect.CodeNotFound, fleetbanv1.Reason_REASON_NOT_FOUND)
	_, err := h.takes(0, denied, terminalVerifier)
	wantCode(t, "denied", err, connect.CodePermissionDenied, fleetbanv1.Reason_REASON_PERMISSION_DENIED)
	if len(h.entries(owner, "terminal.deny")) != 1 {
		t.Errorf("the audit log says %v", h.entries(owner, "terminal.deny"))
	}

	theirs := h.asks(1, org)
	wantCode(t, "another organisation", h.lets(0, owner, theirs), connect.CodeFailedPrecondition, fleetbanv1.Reason_REASON_INVALID_FIELD)
	if err := h.lets(1, stranger, theirs); err != nil {
		t.Fatal(err)
	}
	if got, err := h.takes(0, theirs, terminalVerifier); err != nil || got.GetPerson().GetOrganisationId() != org {
		t.Error(got, err)
	}

	h.join(owner, "olga@example.com", people.Operator)
	thief := h.access(1, "olga@example.com")
	over := h.asks(0, "")
	if err := h.lets(1, thief, over); err != nil {
		t.Fatal(err)
	}
	if _, err := h.sessions(0, h.access(0, "olga@example.com")).RevokeSession(ctx, connect.NewRequest(&operatorv1.RevokeSessionRequest{})); err != nil {
		t.Fatal(err)
	}
	_, err = h.takes(1, over, terminalVerifier)
	wantCode(t, "approved in a session that is over", err, connect.CodePermissionDenied, fleetbanv1.Reason_REASON_PERMISSION_DENIED)

	olga := h.access(1, "olga@example.com")
	former := h.asks(0, "")
	if err := h.lets(1, olga, former); err != nil {
		t.Fatal(err)
	}
	if _, err := h.account(0, olga).ChangePassword(ctx, connect.NewRequest(operatorv1.ChangePasswordRequest_builder{
		Password: ownerPassword, NewPassword: nextPassword,
	}.Build())); err != nil {
		t.Fatal(err)
	}
	_, err = h.takes(1, former, terminalVerifier)
	wantCode(t, "with the former password", err, connect.CodePermissionDenied, fleetbanv1.Reason_REASON_PERMISSION_DENIED)
	sessions, err := h.sessions(0, olga).ListSessions(ctx, connect.NewRequest(&operatorv1.ListSessionsRequest{}))
	if err != nil || len(sessions.Msg.GetSessions()) != 1 {
		t.Errorf("a refused program has a session: %v, %v", sessions, err)
	}
}

// A session that a session lets in proves no more than that one: or whoever has one for a moment would let their own in, one after the
// other, and never have to prove anything.
func TestTerminalSignInProves(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	proved := time.Now().Add(-9 * time.Minute)
	thief := provedAt(t, h.access(0, ownerEmail), proved)
	code := h.asks(0, "")
	if err := h.lets(1, thief, code); err != nil {
		t.Fatal(err)
	}
	got, err := h.takes(0, code, terminalVerifier)
	if err != nil {
		t.Fatal(err)
	}
	refreshed, err := h.refresh(1, got.GetTokens().GetRefreshToken())
	if err != nil {
		t.Fatal(err)
	}
	for what, access := range map[string]string{"the first": got.GetTokens().GetAccessToken(), "the next": refreshed.GetAccessToken()} {
		if _, claims := parts(t, access); claims["auth"] != float64(proved.Unix()) {
			t.Errorf("%s token of the session says that it was proved at %v, and it was at %d", what, claims["auth"], proved.Unix())
		}
	}
	// Who proves it again in the session that approves gives that.
	olds := longAgo(t, h.access(0, ownerEmail))
	if err := h.prove(0, olds, byPassword(ownerPassword)); err != nil {
		t.Fatal(err)
	}
	code = h.asks(1, "")
	if err := h.lets(1, olds, code); err != nil {
		t.Fatal(err)
	}
	if got, err = h.takes(0, code, terminalVerifier); err != nil {
		t.Fatal(err)
	}
	if _, claims := parts(t, got.GetTokens().GetAccessToken()); claims["auth"].(float64) < float64(proved.Unix()+60) {
		t.Errorf("proved a moment ago, and the session says at %v", claims["auth"])
	}
}

// Who was talked into an approval, and ends all other sessions before the program came for its own, has ended that one too.
func TestTerminalSignInAfterEndingOthers(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	owner := h.access(0, ownerEmail)
	code := h.asks(0, "")
	if err := h.lets(1, owner, code); err != nil {
		t.Fatal(err)
	}
	if _, err := h.sessions(0, owner).RevokeSession(t.Context(), connect.NewRequest(&operatorv1.RevokeSessionRequest{})); err != nil {
		t.Fatal(err)
	}
	_, err := h.takes(1, code, terminalVerifier)
	wantCode(t, "approved before the others were ended", err, connect.CodePermissionDenied, fleetbanv1.Reason_REASON_PERMISSION_DENIED)
	later := h.asks(0, "")
	if err := h.lets(1, owner, later); err != nil {
		t.Fatal(err)
	}
	if _, err := h.takes(1, later, terminalVerifier); err != nil {
		t.Errorf("approved after that: %v", err)
	}
}

// The command shows where to go and a code; who came by an identity provider, and has no password, types it in a browser.
func TestTerminalFromTheCommandLine(t *testing.T) {
	t.Parallel()
	g := newGuild(t)
	if err := g.set(nil); err != nil {
		t.Fatal(err)
	}
	g.idp.Person("bob", "bob@example.com", true, "web")
	v := g.visitor()
	if code, _, text := v.step(v.authorise("bob", "?fresh=1", nil), nil); code != http.StatusSeeOther {
		t.Fatal(code, text)
	}
	base, _ := url.Parse(g.base)
	bob := ""
	for _, c := range v.client.Jar.Cookies(base) {
		if c.Name == "__Host-fleetban-access" {
			bob = c.Value
		}
	}
	printed := regexp.MustCompile(`(https://\S+/terminal)\s+([A-Z]{4}-[A-Z]{4})\s`)
	home := t.TempDir()
	login := func() (code string, done <-chan int, out, errs *buffer) {
		t.Helper()
		out, errs = &buffer{}, &buffer{}
		ended := make(chan int, 1)
		go func() { ended <- g.command(home, out, errs, "login", "--browser") }()
		testwait.For(t, "it says where to go", func() bool { return printed.MatchString(errs.String()) })
		if said := printed.FindStringSubmatch(errs.String()); said[1] == g.base+"/terminal" {
			code = said[2]
		}
		return code, ended, out, errs
	}
	terminal := operatorv1connect.NewTerminalServiceClient(g.visitor().client, g.base, bearer(bob))
	code, done, out, errs := login()
	if _, err := terminal.DenyTerminalSignIn(t.Context(), connect.NewRequest(operatorv1.DenyTerminalSignInRequest_builder{Code: code}.Build())); err != nil {
		t.Fatal(err)
	}
	if exit := <-done; exit == 0 || !strings.Contains(errs.String(), "denied") || out.String() != "" {
		t.Error(exit, out, errs)
	}
	code, done, out, errs = login()
	g.lb.send(g.replicas[0].addr())
	if _, err := terminal.ApproveTerminalSignIn(t.Context(), connect.NewRequest(operatorv1.ApproveTerminalSignInRequest_builder{Code: code}.Build())); err != nil {
		t.Fatal(err)
	}
	if exit := <-done; exit != 0 || !strings.Contains(out.String(), "as bob@example.com, operator") {
		t.Fatal(exit, out, errs)
	}
	var who buffer
	if exit := g.command(home, &who, &who, "whoami"); exit != 0 || !strings.Contains(who.String(), "bob@example.com") {
		t.Error(exit, who.String())
	}
	var both bytes.Buffer
	_, _ = fmt.Fprint(&both, g.command(home, &who, &who, "login", "--browser", "--sso"), who.String())
	if !strings.Contains(both.String(), "--browser is a way of its own") {
		t.Error(both.String())
	}
}

// command runs the CLI as a person at home.
func (g *guild) command(home string, out, errs *buffer, args ...string) int {
	return cli.Run(g.Context(), args, &cli.Env{
		Stdin: strings.NewReader(""), Stdout: out, Stderr: errs, Now: time.Now,
		Getenv: func(name string) string {
			return map[string]string{"HOME": home, "FLEETBAN_URL": g.base, "FLEETBAN_PIN": g.replicas[0].Pin()}[name]
		},
	})
}
