package operatorapi

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"time"

	"connectrpc.com/connect"
	"github.com/go-redis/redis_rate/v10"

	"github.com/fleetban/fleetban/controlplane/internal/apierr"
	"github.com/fleetban/fleetban/controlplane/internal/audit"
	"github.com/fleetban/fleetban/controlplane/internal/auth"
	"github.com/fleetban/fleetban/controlplane/internal/browser"
	"github.com/fleetban/fleetban/controlplane/internal/orgs"
	"github.com/fleetban/fleetban/controlplane/internal/people"
	"github.com/fleetban/fleetban/controlplane/internal/requestid"
	"github.com/fleetban/fleetban/controlplane/internal/scope"
	"github.com/fleetban/fleetban/controlplane/internal/sessions"
	"github.com/fleetban/fleetban/controlplane/internal/sso"
	"github.com/fleetban/fleetban/controlplane/internal/store"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1/operatorv1connect"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// SSOAPI serves the service of sso.proto, and where browsers begin and end to sign in with a provider.
type SSOAPI struct {
	SSO    *sso.SSO
	People *PeopleAPI
	Orgs   *orgs.Orgs
	Store  *store.Store
	// ClientAddr is the caller's address, as auth.Options has it.
	ClientAddr func(peer connect.Peer, header http.Header) netip.Addr
	Logger     *slog.Logger
}

var _ operatorv1connect.SsoServiceHandler = (*SSOAPI)(nil)

const (
	// browserCookie holds what shows that the browser that comes back is the one that left. Lax: it comes back from another site.
	browserCookie = "__Host-fleetban-sso"
	// theOnly stands for the organisation where there is one.
	theOnly = "default"
	// consoleAfter is where a browser goes that was signed in: the console can't see its cookies, and asks for them when told.
	consoleAfter = "/#signed-in"
	// startsPerAddress and minute.
	startsPerAddress = 30
)

// Register puts the service and the pages on mux.
func (a *SSOAPI) Register(mux *http.ServeMux, options ...connect.HandlerOption) {
	mux.Handle(operatorv1connect.NewSsoServiceHandler(a, options...))
	mux.HandleFunc("GET "+sso.Path+"{organisation}/start", a.located(a.start))
	mux.HandleFunc("GET "+sso.Path+"{organisation}/callback", a.located(a.callback))
}

func (a *SSOAPI) owner(ctx context.Context) (auth.Principal, error) {
	p, err := signedIn(ctx)
	if err == nil && p.Session.Role != people.Owner {
		err = apierr.New(connect.CodePermissionDenied, fleetbanv1.Reason_REASON_PERMISSION_DENIED, "",
			"only an owner may say who vouches for people", "ask an owner")
	}
	return p, err
}

// GetSsoSignIn implements SsoService. It tells no more than following start_path does.
func (a *SSOAPI) GetSsoSignIn(
	ctx context.Context, req *connect.Request[operatorv1.GetSsoSignInRequest],
) (*connect.Response[operatorv1.GetSsoSignInResponse], error) {
	org := req.Msg.GetOrganisationId()
	if org == "" {
		org = theOnly
	}
	org, err := a.resolve(ctx, org)
	var got sso.Provider
	if err == nil {
		got, err = a.SSO.Get(ctx, org)
	}
	if errors.Is(err, sso.ErrNone) {
		return connect.NewResponse(&operatorv1.GetSsoSignInResponse{}), nil
	}
	if err != nil {
		return nil, mappedSSO(err)
	}
	name := got.Issuer
	if issuer, err := url.Parse(got.Issuer); err == nil {
		name = issuer.Host
	}
	return connect.NewResponse(operatorv1.GetSsoSignInResponse_builder{
		Provider: name, StartPath: sso.Path + org + "/start", Required: got.Required,
	}.Build()), nil
}

// GetSso implements SsoService.
func (a *SSOAPI) GetSso(ctx context.Context, _ *connect.Request[operatorv1.GetSsoRequest]) (*connect.Response[operatorv1.GetSsoResponse], error) {
	p, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	answer := operatorv1.GetSsoResponse_builder{RedirectUrl: a.SSO.RedirectURL(p.Org), StartUrl: a.SSO.StartURL(p.Org)}
	got, err := a.SSO.Get(ctx, p.Org)
	if errors.Is(err, sso.ErrNone) {
		return connect.NewResponse(answer.Build()), nil
	}
	if err != nil {
		return nil, mappedSSO(err)
	}
	answer.Configured, answer.Issuer, answer.ClientId, answer.Domains, answer.GroupClaim = true, got.Issuer, got.ClientID, got.Domains, got.GroupClaim
	answer.Required = got.Required
	for _, r := range got.Roles {
		answer.Roles = append(answer.Roles, operatorv1.SsoRole_builder{Group: r.Group, Role: r.Role, Tags: r.Tags.Strings()}.Build())
	}
	if got.BreakGlass != "" {
		m, err := a.People.o.People.Member(ctx, p.Org, got.BreakGlass)
		if err != nil && !errors.Is(err, people.ErrNoMember) {
			return nil, err
		}
		answer.BreakGlass = m.Email
	}
	return connect.NewResponse(answer.Build()), nil
}

// SetSso implements SsoService.
func (a *SSOAPI) SetSso(ctx context.Context, req *connect.Request[operatorv1.SetSsoRequest]) (*connect.Response[operatorv1.SetSsoResponse], error) {
	p, err := a.owner(ctx)
	if err != nil {
		return nil, err
	}
	m := req.Msg
	set := sso.Provider{
		Issuer: m.GetIssuer(), ClientID: m.GetClientId(), ClientSecret: m.GetClientSecret(), Domains: m.GetDomains(), GroupClaim: m.GetGroupClaim(), Required: m.GetRequired(),
	}
	for _, r := range m.GetRoles() {
		tags, err := scope.Parse(r.GetTags())
		if err != nil {
			return nil, apierr.Wrap(err, connect.CodeInvalidArgument, fleetbanv1.Reason_REASON_INVALID_FIELD, "roles", err.Error(), "write NAME=VALUE")
		}
		set.Roles = append(set.Roles, sso.Mapping{Group: r.GetGroup(), Role: r.GetRole(), Tags: tags})
		if call := audit.From(ctx); call != nil {
			call.Add(audit.Detail{Name: "role", After: roleName(r.GetRole()) + " " + r.GetGroup()})
		}
	}
	if address := m.GetBreakGlass(); address != "" {
		if set.BreakGlass, err = a.breakGlass(ctx, p.Org, address); err != nil {
			return nil, err
		}
	}
	if err := a.SSO.Set(ctx, p.Org, set); err != nil {
		return nil, mappedSSO(err)
	}
	if set.Required {
		// Behind the setting, so that of who signs in at this moment either this or Begin sees that they may not.
		ended, err := a.endOthers(ctx, p.Org, set.BreakGlass)
		if err != nil {
			return nil, err
		}
		audit.From(ctx).Add(audit.Detail{Name: "sessions_ended", After: strconv.Itoa(ended)})
	}
	return connect.NewResponse(operatorv1.SetSsoResponse_builder{RedirectUrl: a.SSO.RedirectURL(p.Org), StartUrl: a.SSO.StartURL(p.Org)}.Build()), nil
}

// endOthers ends the organisation's sessions that didn't begin with its provider, but those of breakGlass. Where it fails half
// way, setting the same again does the rest.
func (a *SSOAPI) endOthers(ctx context.Context, org, breakGlass string) (ended int, err error) {
	members, err := a.People.o.People.Members(ctx, org)
	if err != nil {
		return 0, mappedPeople(err)
	}
	for _, m := range members {
		if m.Person == breakGlass {
			continue
		}
		n, err := a.People.o.Sessions.EndIn(ctx, m.Person, org, sessions.OIDC)
		if err != nil {
			return ended, mappedPeople(err)
		}
		ended += n
	}
	return ended, nil
}

// breakGlass is the id of an owner who has a password.
func (a *SSOAPI) breakGlass(ctx context.Context, org, address string) (string, error) {
	refused := apierr.New(connect.CodeInvalidArgument, fleetbanv1.Reason_REASON_INVALID_FIELD, "break_glass",
		"it must be an owner who signs in with a password", "see fleetban members")
	parsed, err := people.ParseEmail(address)
	if err != nil {
		return "", refused
	}
	members, err := a.People.o.People.Members(ctx, org)
	if err != nil {
		return "", err
	}
	for _, m := range members {
		if m.Email != parsed.String() || m.Role != people.Owner {
			continue
		}
		has, err := a.People.o.People.HasPassword(ctx, m.Person)
		if err != nil {
			return "", err
		}
		if has {
			return m.Person, nil
		}
	}
	return "", refused
}

// DeleteSso implements SsoService.
func (a *SSOAPI) DeleteSso(ctx context.Context, _ *connect.Request[operatorv1.DeleteSsoRequest]) (*connect.Response[operatorv1.DeleteSsoResponse], error) {
	p, err := a.owner(ctx)
	if err != nil {
		return nil, err
	}
	if err := a.SSO.Delete(ctx, p.Org); err != nil {
		return nil, mappedSSO(err)
	}
	return connect.NewResponse(&operatorv1.DeleteSsoResponse{}), nil
}

// TestSso implements SsoService.
func (a *SSOAPI) TestSso(ctx context.Context, _ *connect.Request[operatorv1.TestSsoRequest]) (*connect.Response[operatorv1.TestSsoResponse], error) {
	p, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	answer := operatorv1.TestSsoResponse_builder{}
	answer.AuthorizationEndpoint, answer.TokenEndpoint, err = a.SSO.Endpoints(ctx, p.Org)
	if errors.Is(err, sso.ErrProvider) {
		answer.Problem, err = err.Error(), nil
	}
	if err != nil {
		return nil, mappedSSO(err)
	}
	return connect.NewResponse(answer.Build()), nil
}

// CompleteSso implements SsoService.
func (a *SSOAPI) CompleteSso(
	ctx context.Context, req *connect.Request[operatorv1.CompleteSsoRequest],
) (*connect.Response[operatorv1.CompleteSsoResponse], error) {
	who, err := a.SSO.Redeem(ctx, req.Msg.GetCode(), req.Msg.GetVerifier())
	if err != nil {
		return nil, mappedSSO(err)
	}
	tokens, err := a.begin(ctx, who)
	if err != nil {
		return nil, err
	}
	return noStore(connect.NewResponse(operatorv1.CompleteSsoResponse_builder{Tokens: tokensProto(tokens), Person: personOf(tokens)}.Build())), nil
}

// begin begins the session of who came back, and notes with it when the provider looked at them.
func (a *SSOAPI) begin(ctx context.Context, who sso.Signed) (sessions.Tokens, error) {
	tokens, err := a.People.Begin(ctx, who.Account, who.Org, sessions.OIDC)
	if err == nil && !who.Looked.IsZero() {
		err = mappedPeople(a.People.o.Sessions.Vouched(ctx, who.Account.ID, tokens.Session, who.Looked))
	}
	return tokens, err
}

// start sends a browser to the organisation's provider.
func (a *SSOAPI) start(w http.ResponseWriter, r *http.Request) {
	private(w)
	if err := a.mayStart(r.Context()); err != nil {
		a.fail(w, r, err)
		return
	}
	org, err := a.resolve(r.Context(), r.PathValue("organisation"))
	if err != nil {
		a.fail(w, r, err)
		return
	}
	var program sso.Program
	if port := r.URL.Query().Get("port"); port != "" {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			a.fail(w, r, sso.ErrInvalid)
			return
		}
		program = sso.Program{Port: uint16(n), Challenge: r.URL.Query().Get("challenge"), State: r.URL.Query().Get("state")}
	}
	to, secret, err := a.SSO.Begin(r.Context(), org, program, r.URL.Query().Get(FreshParam) == "1")
	if err != nil {
		a.fail(w, r, err)
		return
	}
	http.SetCookie(w, &http.Cookie{Name: browserCookie, Value: secret, Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode, MaxAge: 600})
	http.Redirect(w, r, to, http.StatusSeeOther) //nolint:gosec // to the provider that an owner set
}

// callback is where the provider sends the browser back to.
func (a *SSOAPI) callback(w http.ResponseWriter, r *http.Request) {
	private(w)
	secret := ""
	if cookies := r.CookiesNamed(browserCookie); len(cookies) == 1 {
		secret = cookies[0].Value
	}
	http.SetCookie(w, &http.Cookie{Name: browserCookie, Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode, MaxAge: -1})
	// The path names the organisation as the provider was told.
	who, err := a.SSO.Complete(r.Context(), r.PathValue("organisation"), r.URL.Query(), secret)
	if err != nil {
		a.fail(w, r, err)
		return
	}
	if who.Program.Port != 0 {
		to, err := a.SSO.Code(r.Context(), who)
		if err != nil {
			a.fail(w, r, err)
			return
		}
		http.Redirect(w, r, to, http.StatusSeeOther) //nolint:gosec // to the loopback of the browser's machine
		return
	}
	tokens, err := a.begin(r.Context(), who)
	if err != nil {
		a.fail(w, r, err)
		return
	}
	browser.SetTokens(w, tokens)
	http.Redirect(w, r, consoleAfter, http.StatusSeeOther)
}

// located says where the request came from, as the interceptors do for RPCs.
func (a *SSOAPI) located(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		addr := a.ClientAddr(connect.Peer{Addr: r.RemoteAddr}, r.Header)
		ctx := auth.WithAddress(r.Context(), addr)
		next(w, r.WithContext(audit.WithClient(ctx, audit.Client{Address: addr, UserAgent: r.UserAgent(), RequestID: requestid.From(ctx)})))
	}
}

// mayStart bounds how often an address makes us remember a sign-in; who can't be counted isn't heard.
func (a *SSOAPI) mayStart(ctx context.Context) error {
	key := store.Global("sso", "start", people.Group(auth.Address(ctx)))
	result, err := store.NewLimiter(a.Store).Allow(ctx, key, redis_rate.PerMinute(startsPerAddress))
	if err != nil {
		return store.Classify(err)
	}
	if result.Allowed < 1 {
		return &people.TooOftenError{RetryAfter: result.RetryAfter}
	}
	return nil
}

// resolve is the id of an organisation that may be called theOnly: sso.ErrNone where it isn't.
func (a *SSOAPI) resolve(ctx context.Context, org string) (string, error) {
	if org != theOnly {
		return org, nil
	}
	ids, err := a.Orgs.IDs(ctx)
	if err == nil && len(ids) != 1 {
		err = sso.ErrNone
	}
	if err != nil {
		return "", err
	}
	return ids[0], nil
}

func private(w http.ResponseWriter) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Referrer-Policy", "no-referrer")
}

// fail tells a person why they aren't signed in.
func (a *SSOAPI) fail(w http.ResponseWriter, r *http.Request, err error) {
	a.Logger.InfoContext(r.Context(), "a sign-in with an identity provider failed", slog.Any("error", err))
	status, seen := http.StatusForbidden, apierr.From(r.Context(), mappedSSO(err))
	message := seen.Message()
	var often *people.TooOftenError
	switch {
	case errors.As(err, &often):
		status = http.StatusTooManyRequests
		w.Header().Set("Retry-After", strconv.Itoa(int(often.RetryAfter/time.Second)+1))
	case seen.Code() == connect.CodeUnavailable:
		status = http.StatusServiceUnavailable
	case seen.Code() == connect.CodeInternal:
		status = http.StatusInternalServerError
	case errors.Is(err, sso.ErrNone):
		status = http.StatusNotFound
	case errors.Is(err, sso.ErrInvalid), errors.Is(err, sso.ErrAttempt):
		status = http.StatusBadRequest
	case errors.Is(err, sso.ErrProvider):
		// What was dialled, and which resolver was asked, is in the log and told to owners: here anybody reads it.
		status, message = http.StatusBadGateway, "the identity provider can't be reached, or doesn't answer as it should; "+
			"try again in a moment, and tell an owner of the organisation if it goes on"
	}
	writeRefusal(w, status, message)
}

func mappedSSO(err error) error {
	var address *url.Error
	switch {
	case errors.Is(err, sso.ErrNone):
		return apierr.NotFound("", "the organisation has no identity provider", "an owner sets one: fleetban sso set")
	case errors.Is(err, sso.ErrInvalid):
		return apierr.Wrap(err, connect.CodeInvalidArgument, fleetbanv1.Reason_REASON_INVALID_FIELD, "", err.Error(), "correct the request")
	case errors.Is(err, sso.ErrAttempt):
		return apierr.Wrap(err, connect.CodeUnauthenticated, fleetbanv1.Reason_REASON_BAD_CREDENTIAL, "", "this sign-in is unknown, used or too old", "begin again")
	case errors.Is(err, sso.ErrRefused):
		return apierr.Wrap(err, connect.CodePermissionDenied, fleetbanv1.Reason_REASON_PERMISSION_DENIED, "", err.Error(), "ask an owner of the organisation")
	case errors.Is(err, sso.ErrProvider) && errors.As(err, &address):
		return apierr.Wrap(err, connect.CodeFailedPrecondition, fleetbanv1.Reason_REASON_INVALID_FIELD, "issuer", "the identity provider can't be reached: "+address.Err.Error(),
			"look at the issuer's address")
	case errors.Is(err, sso.ErrProvider):
		return apierr.Wrap(err, connect.CodeFailedPrecondition, fleetbanv1.Reason_REASON_INVALID_FIELD, "issuer", "the identity provider doesn't answer as it should",
			"look at the issuer, the client and its secret; the control plane's log says what was wrong")
	default:
		return mappedPeople(err)
	}
}
