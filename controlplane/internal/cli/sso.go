package cli

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"

	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
)

// browserWithin is how long a person has in the browser: as long as the control plane remembers the sign-in.
const browserWithin = 10 * time.Minute

// withProvider is login by way of a browser on this machine and the organisation's identity provider.
func (l *loginCmd) withProvider(r *run, path string) error {
	cfg := r.freshConfig(path)
	var err error
	if r.api, err = newClient(cfg); err != nil {
		return err
	}
	defer r.api.close()
	verifier, state := rand.Text()+rand.Text(), rand.Text()
	code, err := l.fromBrowser(r, cfg.URL, verifier, state)
	if err != nil {
		return err
	}
	ctx, cancel := r.call()
	defer cancel()
	res, err := r.api.anonymousSSO.CompleteSso(ctx, connect.NewRequest(operatorv1.CompleteSsoRequest_builder{Code: code, Verifier: verifier}.Build()))
	if err != nil {
		return err
	}
	person := res.Msg.GetPerson()
	cfg.Session = newSession(person.GetEmail(), res.Msg.GetTokens(), r.env.Now())
	return r.signedInAs(cfg, path, person)
}

// fromBrowser waits on this machine's loopback for what the browser brings.
func (l *loginCmd) fromBrowser(r *run, base, verifier, state string) (code string, err error) {
	ctx, cancel := context.WithTimeout(r.ctx, browserWithin)
	defer cancel()
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp4", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("listen for the browser: %w", err)
	}
	codes := make(chan string, 1)
	server := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Referrer-Policy", "no-referrer")
		given := q.URL.Query()
		// What another page of the browser makes up is no answer.
		if q.URL.Path != "/" || given.Get("state") != state || given.Get("code") == "" {
			http.Error(w, "This is not what fleetban waits for.", http.StatusBadRequest)
			return
		}
		_, _ = w.Write([]byte("You are signed in. Go back to the terminal.\n"))
		select {
		case codes <- given.Get("code"):
		default:
		}
	})}
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = server.Shutdown(closing)
		<-done //nolint:errcheck // it says that it was closed, or what was told already
	}()
	port := 0
	if at, ok := listener.Addr().(*net.TCPAddr); ok {
		port = at.Port
	}
	sum := sha256.Sum256([]byte(verifier))
	organisation := l.Organisation
	if organisation == "" {
		organisation = "default"
	}
	query := url.Values{"port": {strconv.Itoa(port)}, "state": {state}, "challenge": {base64.RawURLEncoding.EncodeToString(sum[:])}}
	if l.Fresh {
		query.Set("fresh", "1")
	}
	at := base + "/auth/oidc/" + url.PathEscape(organisation) + "/start?" + query.Encode()
	_, _ = fmt.Fprintf(r.env.Stderr, "Sign in with a browser on this machine:\n\n    %s\n\n", at)
	select {
	case code := <-codes:
		return code, nil
	case err := <-done:
		done <- err
		return "", fmt.Errorf("listen for the browser: %w", err)
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return "", &failure{code: exitFailed, message: "nobody signed in with the browser", fix: "run fleetban login --sso again"}
		}
		return "", ctx.Err()
	}
}

type ssoCmd struct {
	Show   ssoShowCmd   `cmd:"" default:"1" help:"Show the identity provider that people sign in with."`
	Set    ssoSetCmd    `cmd:"" help:"Have people sign in with an OpenID Connect provider. For owners."`
	Test   ssoTestCmd   `cmd:"" help:"Ask the provider whether it is what it should be."`
	Delete ssoDeleteCmd `cmd:"" help:"Forget the provider. For owners."`
}

type ssoShowCmd struct{}

func (ssoShowCmd) run(r *run) error {
	ctx, cancel := r.call()
	defer cancel()
	res, err := r.api.sso.GetSso(ctx, connect.NewRequest(&operatorv1.GetSsoRequest{}))
	if err != nil {
		return err
	}
	if !r.out.people() {
		r.out.json(res.Msg)
		return nil
	}
	m := res.Msg
	if !m.GetConfigured() {
		r.out.line("There is no identity provider. Tell yours this redirect URL, and then run fleetban sso set:")
		r.out.line("  %s", safe(m.GetRedirectUrl()))
		return nil
	}
	r.out.line("%s, as client %s, for addresses in %s.", safe(m.GetIssuer()), safe(m.GetClientId()), safe(strings.Join(m.GetDomains(), ", ")))
	for _, role := range m.GetRoles() {
		who := "everyone"
		if role.GetGroup() != "" {
			who = safe(m.GetGroupClaim()) + " " + safe(role.GetGroup())
		}
		r.out.line("  %s: %s %s", who, roleText(role.GetRole()), safe(strings.Join(role.GetTags(), " ")))
	}
	if m.GetRequired() {
		r.out.line("Nobody signs in otherwise, but %s.", safe(m.GetBreakGlass()))
	}
	r.out.line("Redirect URL: %s", safe(m.GetRedirectUrl()))
	r.out.line("People sign in at %s, or with fleetban login --sso.", safe(m.GetStartUrl()))
	return nil
}

type ssoSetCmd struct {
	Issuer      string   `required:"" placeholder:"URL" help:"https://…, as the provider calls itself."`
	ClientID    string   `name:"client-id" required:"" placeholder:"ID" help:"What the provider calls Fleetban."`
	SecretStdin bool     `name:"secret-stdin" help:"Read the client's secret from standard input instead of asking for it."`
	KeepSecret  bool     `name:"keep-secret" help:"Keep the secret that is set, of the same issuer and client."`
	Domain      []string `required:"" placeholder:"DOMAIN" help:"Of e-mail addresses that the provider vouches for; several: again."`
	GroupClaim  string   `name:"group-claim" default:"groups" placeholder:"NAME" help:"The claim that lists a person's groups."`
	Group       []string `sep:"none" placeholder:"GROUP=ROLE" help:"What a group is here: ops=admin; with tags: web=operator:team=web,team=shop. Several: again."`
	Everyone    string   `enum:",admin,operator,viewer" default:"" help:"What everyone is whom the provider lets in."`
	Required    bool     `help:"Nobody signs in otherwise but --break-glass."`
	BreakGlass  string   `name:"break-glass" placeholder:"E-MAIL" help:"An owner who may still use a password."`
}

func (s *ssoSetCmd) run(r *run) error {
	request := operatorv1.SetSsoRequest_builder{
		Issuer: s.Issuer, ClientId: s.ClientID, Domains: s.Domain, GroupClaim: s.GroupClaim, Required: s.Required, BreakGlass: s.BreakGlass,
	}
	for _, text := range s.Group {
		role, err := parseGroup(text)
		if err != nil {
			return err
		}
		request.Roles = append(request.Roles, role)
	}
	if s.Everyone != "" {
		request.Roles = append(request.Roles, operatorv1.SsoRole_builder{Role: roleOf(s.Everyone)}.Build())
	}
	if len(request.Roles) == 0 {
		return usage("nobody would be anything here", "give --group GROUP=ROLE, or --everyone ROLE")
	}
	if !s.KeepSecret {
		given, err := r.secrets(s.SecretStdin, "Client's secret")
		if err != nil {
			return err
		}
		request.ClientSecret = given[0]
	}
	ctx, cancel := r.call()
	defer cancel()
	res, err := r.api.sso.SetSso(ctx, connect.NewRequest(request.Build()))
	if err != nil {
		return err
	}
	return r.done(res.Msg, fmt.Sprintf("Set. The provider must know the redirect URL %s\nPeople sign in at %s, or with fleetban login --sso.",
		safe(res.Msg.GetRedirectUrl()), safe(res.Msg.GetStartUrl())))
}

// parseGroup reads GROUP=ROLE and GROUP=ROLE:TAG,TAG. A group's name may hold "=" and ":".
func parseGroup(text string) (*operatorv1.SsoRole, error) {
	for _, role := range []string{"owner", "admin", "operator", "viewer"} {
		at := strings.LastIndex(text, "="+role)
		if at <= 0 {
			continue
		}
		rest := text[at+1+len(role):]
		var tags []string
		if rest != "" {
			if rest[0] != ':' || len(rest) == 1 {
				continue
			}
			tags = strings.Split(rest[1:], ",")
		}
		return operatorv1.SsoRole_builder{Group: text[:at], Role: roleOf(role), Tags: tags}.Build(), nil
	}
	return nil, usage(fmt.Sprintf("--group %q says no role", text), "write GROUP=ROLE, with owner, admin, operator or viewer, or GROUP=operator:TAG=VALUE,TAG=VALUE")
}

type ssoTestCmd struct{}

func (ssoTestCmd) run(r *run) error {
	ctx, cancel := r.call()
	defer cancel()
	res, err := r.api.sso.TestSso(ctx, connect.NewRequest(&operatorv1.TestSsoRequest{}))
	if err != nil {
		return err
	}
	if problem := res.Msg.GetProblem(); problem != "" {
		return &failure{code: exitFailed, message: safe(problem), fix: "correct the issuer with fleetban sso set, or the provider"}
	}
	return r.done(res.Msg, "It answers. People are sent to "+safe(res.Msg.GetAuthorizationEndpoint()))
}

type ssoDeleteCmd struct{}

func (ssoDeleteCmd) run(r *run) error {
	ctx, cancel := r.call()
	defer cancel()
	res, err := r.api.sso.DeleteSso(ctx, connect.NewRequest(&operatorv1.DeleteSsoRequest{}))
	if err != nil {
		return err
	}
	return r.done(res.Msg, "Forgotten. Accounts that came with it can't sign in any more; remove them with fleetban members remove.")
}
