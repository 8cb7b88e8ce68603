package server_test

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/controlplane/internal/apierr"
	"github.com/fleetban/fleetban/controlplane/internal/cli"
	"github.com/fleetban/fleetban/controlplane/internal/idptest"
	"github.com/fleetban/fleetban/controlplane/internal/server"
	"github.com/fleetban/fleetban/controlplane/internal/store/redistest"
	"github.com/fleetban/fleetban/controlplane/internal/testwait"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1/operatorv1connect"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

func startIDP(t *testing.T, redirect string) *idptest.Provider {
	t.Helper()
	p := idptest.Start(nil, redirect)
	t.Cleanup(p.Close)
	return p
}

// guild is two replicas behind one address, an owner, and their provider.
type guild struct {
	*testing.T

	lb       *balancer
	base     string
	replicas [2]*process
	idp      *idptest.Provider
	org      string
	owner    string // access token
}

func newGuild(t *testing.T) *guild {
	t.Helper()
	g := &guild{T: t, lb: newBalancer(t)}
	g.base = "https://" + g.lb.l.Addr().String()
	backend := server.Backend{RedisURL: redistest.Start(t).URL(), SecretFile: secretFile(t, 9), PublicURL: g.base}
	if out, err := setupOwner(t, backend, ownerEmail, ownerPassword); err != nil {
		t.Fatal(out, err)
	}
	authorities := filepath.Join(t.TempDir(), "ca.pem")
	p := startIDP(t, "") // for its certificate, which all of them share
	if err := os.WriteFile(authorities, p.Certificate(), 0o600); err != nil {
		t.Fatal(err)
	}
	for i := range g.replicas {
		g.replicas[i] = serve(t, server.Config{Backend: backend, SSOAllowPrivate: true, SSOCAFile: authorities, MetricsListen: "off"})
		g.replicas[i].awaitReady(t)
	}
	g.lb.send(g.replicas[0].addr())
	in, err := operatorv1connect.NewSessionServiceClient(g.visitor().client, g.base).SignIn(t.Context(), connect.NewRequest(
		operatorv1.SignInRequest_builder{Email: ownerEmail, Password: ownerPassword}.Build()))
	if err != nil {
		t.Fatal(err)
	}
	g.org, g.owner = in.Msg.GetPerson().GetOrganisationId(), in.Msg.GetTokens().GetAccessToken()
	g.idp = startIDP(t, g.base+"/auth/oidc/"+g.org+"/callback")
	return g
}

func (g *guild) sso(token string) operatorv1connect.SsoServiceClient {
	return operatorv1connect.NewSsoServiceClient(g.visitor().client, g.base, bearer(token))
}

// set has the owner set the provider.
func (g *guild) set(change func(*operatorv1.SetSsoRequest_builder)) error {
	b := operatorv1.SetSsoRequest_builder{
		Issuer: g.idp.URL, ClientId: idptest.ClientID, ClientSecret: idptest.ClientSecret, Domains: []string{"example.com"},
		Roles: []*operatorv1.SsoRole{
			operatorv1.SsoRole_builder{Group: "fleet", Role: operatorv1.Role_ROLE_ADMIN}.Build(),
			operatorv1.SsoRole_builder{Group: "web", Role: operatorv1.Role_ROLE_OPERATOR, Tags: []string{"team=web"}}.Build(),
		},
	}
	if change != nil {
		change(&b)
	}
	_, err := g.sso(g.owner).SetSso(g.Context(), connect.NewRequest(b.Build()))
	return err
}

// visitor is a browser: it keeps cookies and goes where it is sent, a step at a time.
type visitor struct {
	g      *guild
	client *http.Client
}

func (g *guild) visitor() *visitor {
	g.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		g.Fatal(err)
	}
	// Each request is a connection of its own: the balancer decides anew.
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true} //nolint:gosec // a test's
	g.Cleanup(transport.CloseIdleConnections)
	return &visitor{g: g, client: &http.Client{Jar: jar, Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
}

// step asks for one page, and returns where it leads and what it says.
func (v *visitor) step(at string, form url.Values) (code int, to, text string) {
	v.g.Helper()
	var res *http.Response
	var err error
	if form == nil {
		res, err = v.client.Get(at)
	} else {
		res, err = v.client.PostForm(at, form)
	}
	if err != nil {
		v.g.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		v.g.Fatal(err)
	}
	if next, err := res.Location(); err == nil {
		to = next.String()
	}
	return res.StatusCode, to, string(body)
}

// authorise goes from the control plane's start, at the first replica, through the provider; change may alter what the
// control plane asks of it. It returns where the provider sends the browser, which is not visited yet.
func (v *visitor) authorise(name, query string, change func(url.Values)) string {
	v.g.Helper()
	v.g.lb.send(v.g.replicas[0].addr())
	code, to, text := v.step(v.g.base+"/auth/oidc/"+v.g.org+"/start"+query, nil)
	if code != http.StatusSeeOther || !strings.HasPrefix(to, v.g.idp.URL) {
		v.g.Fatalf("the start answers %d %s %s", code, to, text)
	}
	if change != nil {
		u, err := url.Parse(to)
		if err != nil {
			v.g.Fatal(err)
		}
		q := u.Query()
		change(q)
		u.RawQuery = q.Encode()
		to = u.String()
	}
	code, to, text = v.step(to, nil)
	login, err := url.Parse(to)
	if err != nil || !strings.Contains(to, "/login/username") {
		v.g.Fatalf("the provider answers %d %s %s", code, to, text)
	}
	_, to, text = v.step(v.g.idp.URL+"/login/username", url.Values{
		"username": {name}, "password": {idptest.Password(name)}, "id": {login.Query().Get("authRequestID")},
	})
	if to == "" {
		v.g.Fatalf("the provider doesn't let %s in: %s", name, text)
	}
	_, to, text = v.step(to, nil)
	if !strings.HasPrefix(to, v.g.base) {
		v.g.Fatalf("the provider sends the browser to %q: %s", to, text)
	}
	// From here on the other replica answers.
	v.g.lb.send(v.g.replicas[1].addr())
	return to
}

// signIn is the whole way; the access token is "" where it isn't let in.
func (v *visitor) signIn(name string) (access string, code int, text string) {
	v.g.Helper()
	code, to, text := v.step(v.authorise(name, "", nil), nil)
	if code == http.StatusSeeOther && to != v.g.base+"/#signed-in" {
		v.g.Errorf("after the sign-in the browser is sent to %s", to)
	}
	base, err := url.Parse(v.g.base)
	if err != nil {
		v.g.Fatal(err)
	}
	for _, c := range v.client.Jar.Cookies(base) {
		if c.Name == "__Host-fleetban-access" {
			access = c.Value
		}
	}
	return access, code, text
}

// signIns is what a browser is told before anybody signs in.
func (g *guild) signIns() *operatorv1.GetSsoSignInResponse {
	g.Helper()
	res, err := operatorv1connect.NewSsoServiceClient(g.visitor().client, g.base).GetSsoSignIn(g.Context(), connect.NewRequest(&operatorv1.GetSsoSignInRequest{}))
	if err != nil {
		g.Fatal(err)
	}
	return res.Msg
}

func (g *guild) me(token string) (*operatorv1.Person, error) {
	res, err := operatorv1connect.NewSessionServiceClient(g.visitor().client, g.base, bearer(token)).GetMe(g.Context(), connect.NewRequest(&operatorv1.GetMeRequest{}))
	if err != nil {
		return nil, err
	}
	return res.Msg.GetPerson(), nil
}

// A person signs in with the organisation's provider, begun at one replica and ended at the other; what they may do follows
// from their groups, anew each time.
func TestSSO(t *testing.T) {
	t.Parallel()
	g := newGuild(t)
	if code, _, _ := g.visitor().step(g.base+"/auth/oidc/"+g.org+"/start", nil); code != http.StatusNotFound {
		t.Errorf("without a provider: %d", code)
	}
	if said := g.signIns(); said.GetProvider() != "" || said.GetStartPath() != "" {
		t.Errorf("without a provider, browsers are told of one: %v", said)
	}
	if err := g.set(nil); err != nil {
		t.Fatal(err)
	}
	if said := g.signIns(); g.idp.URL != "https://"+said.GetProvider() || said.GetStartPath() != "/auth/oidc/"+g.org+"/start" || said.GetRequired() {
		t.Errorf("browsers are told of another way to sign in: %v", said)
	}
	g.idp.Person("bob", "bob@example.com", true, "web", "other")
	bob := g.visitor()
	access, code, text := bob.signIn("bob")
	if access == "" {
		t.Fatal(code, text)
	}
	who, err := g.me(access)
	if err != nil || who.GetEmail() != "bob@example.com" || who.GetRole() != operatorv1.Role_ROLE_OPERATOR {
		t.Fatal(who, err)
	}
	members := operatorv1connect.NewMemberServiceClient(g.visitor().client, g.base, bearer(g.owner))
	tags := func(email string) string {
		t.Helper()
		all, err := members.ListMembers(t.Context(), connect.NewRequest(&operatorv1.ListMembersRequest{}))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range all.Msg.GetMembers() {
			if m.GetEmail() == email {
				return fmt.Sprint(m.GetRole(), m.GetTags())
			}
		}
		return ""
	}
	if got := tags("bob@example.com"); got != "ROLE_OPERATOR [team=web]" {
		t.Errorf("bob is %s", got)
	}
	// Another address at the provider, the same subject: the same person. A better group: a better role, and the former token ends.
	g.idp.Person("bob", "robert@example.com", true, "web", "fleet")
	again, _, text := g.visitor().signIn("bob")
	if now, err := g.me(again); err != nil || now.GetId() != who.GetId() || now.GetRole() != operatorv1.Role_ROLE_ADMIN {
		t.Fatal(now, err, text)
	}
	testwait.For(t, "the token with the former role is refused", func() bool { _, err := g.me(access); return connect.CodeOf(err) == connect.CodeUnauthenticated })
	// An admin may look, and may not say who vouches for people.
	if _, err := g.sso(again).GetSso(t.Context(), connect.NewRequest(&operatorv1.GetSsoRequest{})); err != nil {
		t.Error(err)
	}
	if _, err := g.sso(again).DeleteSso(t.Context(), connect.NewRequest(&operatorv1.DeleteSsoRequest{})); connect.CodeOf(err) != connect.CodePermissionDenied {
		t.Errorf("an admin deletes the provider: %v", err)
	}
	// What a provider says is no proof for changing factors.
	if _, err := operatorv1connect.NewSecondFactorServiceClient(g.visitor().client, g.base, bearer(again)).
		BeginTotp(t.Context(), connect.NewRequest(&operatorv1.BeginTotpRequest{})); err == nil {
		t.Error("a second factor is enrolled with what the provider says")
	}
	// No group any more: out, at once.
	g.idp.Person("bob", "robert@example.com", true, "other")
	if access, code, text := g.visitor().signIn("bob"); access != "" || code != http.StatusForbidden || !strings.Contains(text, "groups") {
		t.Errorf("without a group: %d %s", code, text)
	}
	testwait.For(t, "the session ended", func() bool { _, err := g.me(again); return connect.CodeOf(err) == connect.CodeUnauthenticated })
	if got := tags("bob@example.com"); got != "" {
		t.Errorf("bob stays %s", got)
	}
	// The owner's own account, which is a member here and nowhere else.
	g.idp.Person("ada", ownerEmail, true, "fleet")
	if access, _, text := g.visitor().signIn("ada"); access == "" {
		t.Error(text)
	} else if now, err := g.me(access); err != nil || now.GetEmail() != ownerEmail || now.GetRole() != operatorv1.Role_ROLE_OWNER {
		t.Errorf("the last owner is now %v, %v", now, err)
	}
}

// What a thief, a wrong provider or a wrong person brings.
func TestSSORefuses(t *testing.T) {
	t.Parallel()
	g := newGuild(t)
	if err := g.set(nil); err != nil {
		t.Fatal(err)
	}
	g.idp.Person("bob", "bob@example.com", true, "web")
	g.idp.Person("eve", "eve@example.com", false, "web")
	g.idp.Person("mallory", "mallory@evil.example", true, "fleet")
	g.idp.Person("nobody", "nobody@example.com", true)
	for name, says := range map[string]string{"eve": "not verified", "mallory": "vouch", "nobody": "groups"} {
		if access, code, text := g.visitor().signIn(name); access != "" || code != http.StatusForbidden || !strings.Contains(text, says) {
			t.Errorf("%s: %d %s", name, code, text)
		}
	}
	refused := func(what string, v *visitor, at string, want int) {
		t.Helper()
		if code, to, text := v.step(at, nil); code != want {
			t.Errorf("%s: %d %s %s", what, code, to, text)
		}
	}
	with := func(at string, change func(url.Values)) string {
		u, err := url.Parse(at)
		if err != nil {
			t.Fatal(err)
		}
		q := u.Query()
		change(q)
		u.RawQuery = q.Encode()
		return u.String()
	}
	v := g.visitor()
	refused("another nonce", v, v.authorise("bob", "", func(q url.Values) { q.Set("nonce", "another") }), http.StatusBadGateway)
	v = g.visitor()
	refused("another challenge", v, v.authorise("bob", "", func(q url.Values) { q.Set("code_challenge", strings.Repeat("A", 43)) }), http.StatusBadGateway)
	v = g.visitor()
	refused("another state", v, with(v.authorise("bob", "", nil), func(q url.Values) { q.Set("state", "another") }), http.StatusBadRequest)
	v = g.visitor()
	refused("another issuer's answer", v, with(v.authorise("bob", "", nil), func(q url.Values) { q.Set("iss", "https://evil.example") }), http.StatusBadGateway)
	v = g.visitor()
	refused("no code", v, with(v.authorise("bob", "", nil), func(q url.Values) { q.Del("code") }), http.StatusBadGateway)
	v = g.visitor()
	refused("another browser", g.visitor(), v.authorise("bob", "", nil), http.StatusBadRequest)
	// An answer, and a code, are good once.
	v = g.visitor()
	back := v.authorise("bob", "", nil)
	refused("the first time", v, back, http.StatusSeeOther)
	refused("the second time", v, back, http.StatusBadRequest)
	used, _ := url.Parse(back)
	v = g.visitor()
	refused("a used code", v, with(v.authorise("bob", "", nil), func(q url.Values) { q.Set("code", used.Query().Get("code")) }), http.StatusBadGateway)
	refused("an error of the provider", v, with(v.authorise("bob", "", nil), func(q url.Values) { q.Set("error", "access_denied") }), http.StatusForbidden)
	v = g.visitor()
	hostile := with(v.authorise("bob", "", nil), func(q url.Values) {
		q.Set("error", "<script>")
		q.Set("error_description", "<script>")
	})
	if code, _, text := v.step(hostile, nil); code < 400 || strings.Contains(text, "<script") || !strings.Contains(text, `<a href="/">`) {
		t.Errorf("what anybody writes into an address becomes the page's: %d %s", code, text)
	}

	// Settings that can't be.
	for what, change := range map[string]func(*operatorv1.SetSsoRequest_builder){
		"plain HTTP":        func(b *operatorv1.SetSsoRequest_builder) { b.Issuer = "http://127.0.0.1:1" },
		"another issuer":    func(b *operatorv1.SetSsoRequest_builder) { b.Issuer += "/other" },
		"nothing there":     func(b *operatorv1.SetSsoRequest_builder) { b.Issuer = "https://127.0.0.1:1" },
		"no domain":         func(b *operatorv1.SetSsoRequest_builder) { b.Domains = []string{"Example.com "} },
		"required, no exit": func(b *operatorv1.SetSsoRequest_builder) { b.Required = true },
		"no owner's exit":   func(b *operatorv1.SetSsoRequest_builder) { b.Required, b.BreakGlass = true, "bob@example.com" },
		"tags of an admin":  func(b *operatorv1.SetSsoRequest_builder) { b.Roles[0].SetTags([]string{"team=web"}) },
	} {
		if err := g.set(change); apierr.ReasonOf(err) != fleetbanv1.Reason_REASON_INVALID_FIELD {
			t.Errorf("%s: %v", what, err)
		}
	}
	v = g.visitor()
	at := v.authorise("bob", "", nil)
	g.idp.Close()
	if code, _, text := v.step(at, nil); code != http.StatusBadGateway || strings.Contains(text, "127.0.0.1") || strings.Contains(text, "dial") {
		t.Errorf("a stranger is told of what stands inside: %d %s", code, text)
	}
}

// Where the provider is required, a password is good for one owner alone, and each time is marked.
func TestSSORequired(t *testing.T) {
	t.Parallel()
	g := newGuild(t)
	if err := g.set(func(b *operatorv1.SetSsoRequest_builder) { b.Required, b.BreakGlass = true, ownerEmail }); err != nil {
		t.Fatal(err)
	}
	ctx, client := t.Context(), g.visitor().client
	invited, err := operatorv1connect.NewMemberServiceClient(client, g.base, bearer(g.owner)).Invite(ctx, connect.NewRequest(
		operatorv1.InviteRequest_builder{Email: "carol@example.com", Role: operatorv1.Role_ROLE_OWNER}.Build()))
	if err != nil {
		t.Fatal(err)
	}
	_, secret, _ := strings.Cut(invited.Msg.GetLink(), "#")
	if _, err := operatorv1connect.NewMemberServiceClient(client, g.base).AcceptInvitation(ctx, connect.NewRequest(
		operatorv1.AcceptInvitationRequest_builder{Invitation: secret, Password: nextPassword}.Build())); err != nil {
		t.Fatal(err)
	}
	signIn := func(email, password string) error {
		_, err := operatorv1connect.NewSessionServiceClient(client, g.base).SignIn(ctx, connect.NewRequest(
			operatorv1.SignInRequest_builder{Email: email, Password: password}.Build()))
		return err
	}
	for _, p := range g.replicas {
		g.lb.send(p.addr())
		if err := signIn("carol@example.com", nextPassword); connect.CodeOf(err) != connect.CodePermissionDenied {
			t.Errorf("a password where the provider is required: %v", err)
		}
		if err := signIn(ownerEmail, ownerPassword); err != nil {
			t.Errorf("breaking the glass: %v", err)
		}
	}
	log, err := operatorv1connect.NewAuditServiceClient(client, g.base, bearer(g.owner)).ListAudit(ctx, connect.NewRequest(&operatorv1.ListAuditRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	marked := 0
	for _, e := range log.Msg.GetEntries() {
		if strings.Contains(e.String(), "break_glass") && strings.Contains(e.String(), "passed by") {
			marked++
		}
		if strings.Contains(e.String(), "client's secret") {
			t.Error("the client's secret is in the audit log")
		}
	}
	if marked != len(g.replicas) {
		t.Errorf("%d sign-ins are marked, want %d", marked, len(g.replicas))
	}
	// carol is an owner by invitation; the provider knows her too, and has her an admin from then on.
	g.idp.Person("carol", "carol@example.com", true, "fleet")
	access, _, text := g.visitor().signIn("carol")
	if who, err := g.me(access); err != nil || who.GetRole() != operatorv1.Role_ROLE_ADMIN {
		t.Fatal(who, err, text)
	}
}

// A program gets its session by way of a browser: what the browser brings is of no use to another program, or twice.
func TestSSOForPrograms(t *testing.T) {
	t.Parallel()
	g := newGuild(t)
	if err := g.set(nil); err != nil {
		t.Fatal(err)
	}
	g.idp.Person("bob", "bob@example.com", true, "web")
	verifier := strings.Repeat("v", 50)
	sum := sha256.Sum256([]byte(verifier))
	query := "?" + url.Values{"port": {"43210"}, "state": {"mine"}, "challenge": {base64.RawURLEncoding.EncodeToString(sum[:])}}.Encode()
	bring := func() string {
		t.Helper()
		v := g.visitor()
		code, to, text := v.step(v.authorise("bob", query, nil), nil)
		u, err := url.Parse(to)
		if err != nil || code != http.StatusSeeOther || u.Host != "127.0.0.1:43210" || u.Query().Get("state") != "mine" {
			t.Fatal(code, to, text, err)
		}
		base, _ := url.Parse(g.base)
		for _, c := range v.client.Jar.Cookies(base) {
			if strings.HasPrefix(c.Name, "__Host-fleetban-access") {
				t.Error("the browser was signed in too")
			}
		}
		return u.Query().Get("code")
	}
	complete := func(code, verifier string) (*operatorv1.CompleteSsoResponse, error) {
		res, err := g.sso("").CompleteSso(t.Context(), connect.NewRequest(operatorv1.CompleteSsoRequest_builder{Code: code, Verifier: verifier}.Build()))
		if err != nil {
			return nil, err
		}
		return res.Msg, nil
	}
	stolen := bring()
	if _, err := complete(stolen, strings.Repeat("w", 50)); connect.CodeOf(err) != connect.CodeUnauthenticated {
		t.Errorf("another program: %v", err)
	}
	code := bring()
	done, err := complete(code, verifier)
	if err != nil || done.GetPerson().GetEmail() != "bob@example.com" {
		t.Fatal(done, err)
	}
	if _, err := g.me(done.GetTokens().GetAccessToken()); err != nil {
		t.Error(err)
	}
	if _, err := complete(code, verifier); connect.CodeOf(err) != connect.CodeUnauthenticated {
		t.Errorf("the second time: %v", err)
	}
	for what, query := range map[string]string{"a low port": "?port=80&challenge=" + strings.Repeat("A", 43), "no port": "?port=x", "no challenge": "?port=43210"} {
		if code, to, _ := g.visitor().step(g.base+"/auth/oidc/"+g.org+"/start"+query, nil); code != http.StatusBadRequest {
			t.Errorf("%s: %d %s", what, code, to)
		}
	}
}

// The command waits on this machine while a browser, on the same one, is let in.
func TestSSOFromTheCommandLine(t *testing.T) {
	t.Parallel()
	g := newGuild(t)
	if err := g.set(nil); err != nil {
		t.Fatal(err)
	}
	g.idp.Person("bob", "bob@example.com", true, "web")
	var out, errs buffer
	home := t.TempDir()
	run := func(args ...string) int {
		return cli.Run(t.Context(), args, &cli.Env{
			Stdin: strings.NewReader(""), Stdout: &out, Stderr: &errs, Now: time.Now,
			Getenv: func(name string) string {
				return map[string]string{"HOME": home, "FLEETBAN_URL": g.base, "FLEETBAN_PIN": g.replicas[0].Pin()}[name]
			},
		})
	}
	done := make(chan int, 1)
	go func() { done <- run("login", "--sso") }()
	printed := regexp.MustCompile(`https://\S+/auth/oidc/default/start(\?\S+)`)
	testwait.For(t, "it says where to go", func() bool { return printed.MatchString(errs.String()) })
	v := g.visitor()
	_, to, text := v.step(v.authorise("bob", printed.FindStringSubmatch(errs.String())[1], nil), nil)
	// Another page of the browser guesses.
	if code, _, _ := v.step(strings.Replace(to, "state=", "state=x", 1), nil); code != http.StatusBadRequest {
		t.Errorf("another state: %d", code)
	}
	if code, _, said := v.step(to, nil); code != http.StatusOK {
		t.Fatal(code, to, text, said)
	}
	if code := <-done; code != 0 || !strings.Contains(out.String(), "as bob@example.com, operator") {
		t.Fatal(code, out.String(), errs.String())
	}
	if code := run("whoami"); code != 0 {
		t.Error(out.String(), errs.String())
	}
}
