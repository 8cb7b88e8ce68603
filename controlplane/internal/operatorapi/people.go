package operatorapi

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/controlplane/internal/apierr"
	"github.com/fleetban/fleetban/controlplane/internal/audit"
	"github.com/fleetban/fleetban/controlplane/internal/auth"
	"github.com/fleetban/fleetban/controlplane/internal/factors"
	"github.com/fleetban/fleetban/controlplane/internal/mail"
	"github.com/fleetban/fleetban/controlplane/internal/orgs"
	"github.com/fleetban/fleetban/controlplane/internal/people"
	"github.com/fleetban/fleetban/controlplane/internal/seal"
	"github.com/fleetban/fleetban/controlplane/internal/sessions"
	"github.com/fleetban/fleetban/controlplane/internal/sso"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1/operatorv1connect"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// PeopleOptions are what PeopleAPI works with.
type PeopleOptions struct {
	People   *people.People
	Sessions *sessions.Sessions
	// Orgs removes the API tokens of members who leave. Nil, in tests, leaves them, worth nothing.
	Orgs *orgs.Orgs
	// PublicURL begins the links of invitations.
	PublicURL string
	// Factors keeps second factors. Nil, in tests: nobody has any.
	Factors *factors.Factors
	// Mail sends letters. Nil sends none: links are printed by an operator's command then.
	Mail *mail.Mailer
	// SSO knows which organisations have people sign in with their identity provider only. Nil: none.
	SSO *sso.SSO
	// Audit records who signed in and who joined. Nil, in tests, records nothing.
	Audit  *audit.Log
	Logger *slog.Logger
}

// PeopleAPI serves the services of people.proto.
type PeopleAPI struct{ o PeopleOptions }

var (
	_ operatorv1connect.SessionServiceHandler      = (*PeopleAPI)(nil)
	_ operatorv1connect.AccountServiceHandler      = (*PeopleAPI)(nil)
	_ operatorv1connect.MemberServiceHandler       = (*PeopleAPI)(nil)
	_ operatorv1connect.SecondFactorServiceHandler = (*PeopleAPI)(nil)
)

// NewPeople makes a PeopleAPI.
func NewPeople(o PeopleOptions) *PeopleAPI {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	a := &PeopleAPI{o: o}
	o.Mail.OnRequest(a.letter)
	return a
}

// Register puts every service on mux.
func (a *PeopleAPI) Register(mux *http.ServeMux, options ...connect.HandlerOption) {
	mux.Handle(operatorv1connect.NewSessionServiceHandler(a, options...))
	mux.Handle(operatorv1connect.NewAccountServiceHandler(a, options...))
	mux.Handle(operatorv1connect.NewMemberServiceHandler(a, options...))
	mux.Handle(operatorv1connect.NewSecondFactorServiceHandler(a, options...))
}

func clientOf(ctx context.Context, header http.Header) sessions.Client {
	return sessions.Client{Address: auth.Address(ctx), Agent: header.Get("User-Agent")}
}

// SignIn implements SessionService.
func (a *PeopleAPI) SignIn(ctx context.Context, req *connect.Request[operatorv1.SignInRequest]) (*connect.Response[operatorv1.SignInResponse], error) {
	account, err := a.o.People.SignIn(ctx, req.Msg.GetEmail(), req.Msg.GetPassword(), auth.Address(ctx), a.device(req.Msg.GetDevice()))
	if err != nil {
		return nil, mappedPeople(err)
	}
	if a.o.Factors != nil {
		asked, err := a.o.Factors.Ask(ctx, account.ID, account.State)
		if err != nil {
			return nil, mappedPeople(err)
		}
		if asked != nil {
			return noStore(connect.NewResponse(operatorv1.SignInResponse_builder{SecondFactor: askedProto(asked)}.Build())), nil
		}
	}
	return a.begin(ctx, account, req.Msg.GetOrganisationId(), sessions.Password)
}

// Begin begins the session of a person who has proved to be that, with method (sessions.Password and so on), in org, or
// where it is empty in the one they joined first: every sign-in ends here, and is recorded here. ctx must carry where the
// call came from (auth.WithAddress, audit.WithClient), as the interceptors do it. more is recorded beside the method.
func (a *PeopleAPI) Begin(ctx context.Context, account people.Account, org, method string, more ...audit.Detail) (sessions.Tokens, error) {
	return a.beginWith(ctx, account, org, method, a.o.Sessions.Begin, more...)
}

// beginWith is Begin with what begins the session.
func (a *PeopleAPI) beginWith(
	ctx context.Context, account people.Account, org, method string,
	begin func(ctx context.Context, person, org, method string, client sessions.Client) (sessions.Tokens, error), more ...audit.Detail,
) (sessions.Tokens, error) {
	if org == "" {
		if len(account.Orgs) == 0 {
			return sessions.Tokens{}, noOrganisation()
		}
		org = account.Orgs[0]
	}
	details := append([]audit.Detail{{Name: "with", After: method}}, more...)
	breakGlass, err := a.mayUse(ctx, org, account.ID, method)
	if err != nil {
		return sessions.Tokens{}, err
	}
	if breakGlass {
		details = append(details, audit.Detail{Name: "break_glass", After: "the identity provider was passed by"})
		a.o.Logger.WarnContext(ctx, "an owner signed in past the organisation's identity provider", slog.String("person", account.ID), slog.String("organisation", org))
	}
	tokens, err := begin(ctx, account.ID, org, method, sessions.Client{Address: auth.Address(ctx), Agent: audit.ClientFrom(ctx).UserAgent})
	if errors.Is(err, people.ErrNoMember) {
		return sessions.Tokens{}, noOrganisation()
	}
	if err != nil {
		return sessions.Tokens{}, mappedPeople(err)
	}
	err = a.still(ctx, account)
	if err == nil {
		// Again: who made the provider the only way meanwhile has ended the sessions that stood, of which this was none.
		_, err = a.mayUse(ctx, org, account.ID, method)
	}
	if err != nil {
		return sessions.Tokens{}, errors.Join(err, a.o.Sessions.End(context.WithoutCancel(ctx), account.ID, tokens.Session))
	}
	if err := a.record(ctx, org, "sign-in", tokens.Member, details...); err != nil {
		// Nobody is let in unrecorded.
		return sessions.Tokens{}, errors.Join(err, a.o.Sessions.End(context.WithoutCancel(ctx), account.ID, tokens.Session))
	}
	a.o.Logger.InfoContext(ctx, "a person signed in", slog.String("person", account.ID), slog.String("organisation", org),
		slog.String("session", tokens.Session), slog.String("with", method))
	if err := a.o.People.Familiar(ctx, account.ID, auth.Address(ctx)); err != nil {
		a.o.Logger.WarnContext(ctx, "where a person signed in from is not remembered", slog.Any("error", err))
	}
	return tokens, nil
}

// mayUse refuses a sign-in past the organisation's identity provider where that is the only way, but for one owner: then
// breakGlass is set.
func (a *PeopleAPI) mayUse(ctx context.Context, org, person, method string) (breakGlass bool, err error) {
	if a.o.SSO == nil || method == sessions.OIDC {
		return false, nil
	}
	may, breakGlass, err := a.o.SSO.MayUsePassword(ctx, org, person)
	if err != nil {
		return false, err
	}
	if !may {
		return false, apierr.New(connect.CodePermissionDenied, fleetbanv1.Reason_REASON_PERMISSION_DENIED, "",
			"this organisation signs in with its identity provider", "fleetban login --sso, or "+a.o.SSO.StartURL(org))
	}
	return breakGlass, nil
}

// still refuses a sign-in whose password was changed while it went on: what ended the person's sessions has not seen this one.
func (a *PeopleAPI) still(ctx context.Context, account people.Account) error {
	if account.State == "" {
		return nil
	}
	state, err := a.o.People.State(ctx, account.ID)
	if err != nil {
		return mappedPeople(err)
	}
	if state != account.State {
		return mappedPeople(people.ErrBadLogin)
	}
	return nil
}

// device is what a device shows of an earlier sign-in.
func (a *PeopleAPI) device(text string) people.Device {
	if a.o.Factors == nil {
		return people.Device{}
	}
	return a.o.Factors.Device(text)
}

// newDevice makes it.
func (a *PeopleAPI) newDevice(person string) string {
	if a.o.Factors == nil {
		return ""
	}
	return a.o.Factors.NewDevice(person)
}

// begin is Begin with the answer of SignIn.
func (a *PeopleAPI) begin(ctx context.Context, account people.Account, org, method string) (*connect.Response[operatorv1.SignInResponse], error) {
	tokens, err := a.Begin(ctx, account, org, method)
	if err != nil {
		return nil, err
	}
	return noStore(connect.NewResponse(operatorv1.SignInResponse_builder{
		Tokens: tokensProto(tokens), Person: personOf(tokens), OrganisationIds: account.Orgs, Device: a.newDevice(account.ID),
	}.Build())), nil
}

// Refresh implements SessionService.
func (a *PeopleAPI) Refresh(ctx context.Context, req *connect.Request[operatorv1.RefreshRequest]) (*connect.Response[operatorv1.RefreshResponse], error) {
	tokens, err := a.o.Sessions.Refresh(ctx, req.Msg.GetRefreshToken(), clientOf(ctx, req.Header()))
	if err != nil {
		return nil, mappedPeople(err)
	}
	return noStore(connect.NewResponse(operatorv1.RefreshResponse_builder{Tokens: tokensProto(tokens), Person: personOf(tokens)}.Build())), nil
}

// SignOut implements SessionService.
func (a *PeopleAPI) SignOut(ctx context.Context, _ *connect.Request[operatorv1.SignOutRequest]) (*connect.Response[operatorv1.SignOutResponse], error) {
	p, err := signedIn(ctx)
	if err != nil {
		return nil, err
	}
	if err := a.o.Sessions.End(ctx, p.ID, p.Session.ID); err != nil && !errors.Is(err, sessions.ErrNone) {
		return nil, mappedPeople(err)
	}
	return connect.NewResponse(&operatorv1.SignOutResponse{}), nil
}

// ListSessions implements SessionService.
func (a *PeopleAPI) ListSessions(ctx context.Context, _ *connect.Request[operatorv1.ListSessionsRequest]) (*connect.Response[operatorv1.ListSessionsResponse], error) {
	p, err := signedIn(ctx)
	if err != nil {
		return nil, err
	}
	all, err := a.o.Sessions.List(ctx, p.ID)
	if err != nil {
		return nil, mappedPeople(err)
	}
	var answer operatorv1.ListSessionsResponse_builder
	for _, s := range all {
		answer.Sessions = append(answer.Sessions, operatorv1.Session_builder{
			Id: s.ID, OrganisationId: s.Org, BeganUnixMs: s.Began, UsedUnixMs: s.Used, EndsUnixMs: s.Ends, Address: s.Address, UserAgent: s.Agent,
			Current: s.ID == p.Session.ID,
		}.Build())
	}
	return connect.NewResponse(answer.Build()), nil
}

// RevokeSession implements SessionService.
func (a *PeopleAPI) RevokeSession(ctx context.Context, req *connect.Request[operatorv1.RevokeSessionRequest]) (*connect.Response[operatorv1.RevokeSessionResponse], error) {
	p, err := signedIn(ctx)
	if err != nil {
		return nil, err
	}
	n := 1
	if id := req.Msg.GetId(); id != "" {
		err = a.o.Sessions.End(ctx, p.ID, id)
	} else {
		n, err = a.o.Sessions.EndOthers(ctx, p.ID, p.Session.ID)
	}
	if err != nil {
		return nil, mappedPeople(err)
	}
	audit.From(ctx).Add(audit.Detail{Name: "sessions_ended", After: strconv.Itoa(n)})
	return connect.NewResponse(operatorv1.RevokeSessionResponse_builder{Ended: uint32(n)}.Build()), nil
}

// GetMe implements SessionService.
func (*PeopleAPI) GetMe(ctx context.Context, _ *connect.Request[operatorv1.GetMeRequest]) (*connect.Response[operatorv1.GetMeResponse], error) {
	p, err := signedIn(ctx)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(operatorv1.GetMeResponse_builder{Person: operatorv1.Person_builder{
		Id: p.ID, Email: p.Name, OrganisationId: p.Org, Role: p.Session.Role, SessionId: p.Session.ID,
		MustEnrolSecondFactor: p.Session.MustEnrol, Tags: p.Tags.Strings(), Permissions: p.Permissions,
	}.Build()}.Build()), nil
}

// ChangePassword implements AccountService.
func (a *PeopleAPI) ChangePassword(
	ctx context.Context, req *connect.Request[operatorv1.ChangePasswordRequest],
) (*connect.Response[operatorv1.ChangePasswordResponse], error) {
	p, err := signedIn(ctx)
	if err != nil {
		return nil, err
	}
	if err := a.o.People.ChangePassword(ctx, p.ID, req.Msg.GetPassword(), req.Msg.GetNewPassword(), auth.Address(ctx)); err != nil {
		if errors.Is(err, people.ErrBadLogin) {
			return nil, apierr.Wrap(err, connect.CodePermissionDenied, fleetbanv1.Reason_REASON_BAD_CREDENTIAL, "password",
				"the present password is another one; nothing was changed", "type it again")
		}
		return nil, mappedPeople(err)
	}
	n, err := a.o.Sessions.EndOthers(ctx, p.ID, p.Session.ID)
	if err != nil {
		return nil, mappedPeople(err)
	}
	a.notify(ctx, mail.PasswordChanged(p.Name))
	return connect.NewResponse(operatorv1.ChangePasswordResponse_builder{Ended: uint32(n)}.Build()), nil
}

// record writes the audit log's entry of who was nobody before the call.
func (a *PeopleAPI) record(ctx context.Context, org, action string, m people.Member, details ...audit.Detail) error {
	if a.o.Audit == nil {
		return nil
	}
	return a.o.Audit.Record(ctx, org, audit.Record{
		Actor:  audit.Actor{Kind: operatorv1.AuditActorKind_AUDIT_ACTOR_KIND_PERSON, ID: m.Person, Name: m.Email},
		Client: audit.ClientFrom(ctx), Action: action, Targets: []string{m.Email}, Details: details,
	})
}

// signedIn is the caller of an RPC that only people may use.
func signedIn(ctx context.Context) (auth.Principal, error) {
	p, err := caller(ctx)
	if err == nil && p.Session.ID == "" {
		err = errors.New("an RPC for people was let through to a program")
	}
	return p, err
}

func tokensProto(t sessions.Tokens) *operatorv1.Tokens {
	return operatorv1.Tokens_builder{
		AccessToken: t.Access, AccessS: int64(sessions.AccessLife / time.Second), RefreshToken: t.Refresh, SessionEndsUnixMs: t.Ends,
	}.Build()
}

func personOf(t sessions.Tokens) *operatorv1.Person {
	return operatorv1.Person_builder{
		Id: t.Member.Person, Email: t.Member.Email, OrganisationId: t.Org, Role: t.Member.Role, SessionId: t.Session,
		MustEnrolSecondFactor: t.Enrol, Tags: t.Member.Tags.Strings(), Permissions: t.Permissions(),
	}.Build()
}

// noStore keeps an answer that holds secrets out of caches.
func noStore[T any](res *connect.Response[T]) *connect.Response[T] {
	res.Header().Set("Cache-Control", "no-store")
	return res
}

func noOrganisation() error {
	return apierr.New(connect.CodePermissionDenied, fleetbanv1.Reason_REASON_PERMISSION_DENIED, "organisation_id",
		"you are no member of that organisation, or of any", "ask an owner for an invitation")
}

// mappedPeople says what callers see of the errors of people and sessions.
func mappedPeople(err error) error {
	var often *people.TooOftenError
	switch {
	case errors.As(err, &often):
		return apierr.Wrap(err, connect.CodeResourceExhausted, fleetbanv1.Reason_REASON_RATE_LIMITED, "",
			"too many attempts", "try again in "+(often.RetryAfter.Truncate(time.Second)+time.Second).String())
	case errors.Is(err, people.ErrBusy):
		return apierr.Wrap(err, connect.CodeResourceExhausted, fleetbanv1.Reason_REASON_RATE_LIMITED, "",
			"too many people sign in at this moment", "try again in a few seconds")
	case errors.Is(err, seal.ErrForged):
		return apierr.Wrap(err, connect.CodeUnauthenticated, fleetbanv1.Reason_REASON_BAD_CREDENTIAL, "",
			"what is stored of this account isn't signed by this control plane", "tell who runs it: its log says more")
	case errors.Is(err, people.ErrBadLogin):
		return apierr.Wrap(err, connect.CodeUnauthenticated, fleetbanv1.Reason_REASON_BAD_CREDENTIAL, "",
			"the e-mail address or the password is wrong", "type them again")
	case errors.Is(err, people.ErrBadInvitation):
		return apierr.Wrap(err, connect.CodeUnauthenticated, fleetbanv1.Reason_REASON_BAD_CREDENTIAL, "invitation",
			"the invitation is unknown, used or expired", "copy the whole link, or ask for another invitation")
	case errors.Is(err, factors.ErrChallenge):
		return apierr.Wrap(err, connect.CodeUnauthenticated, fleetbanv1.Reason_REASON_BAD_CREDENTIAL, "challenge",
			"this attempt took too long, was completed or failed too often", "begin again")
	case errors.Is(err, factors.ErrWrong):
		return apierr.Wrap(err, connect.CodeUnauthenticated, fleetbanv1.Reason_REASON_BAD_CREDENTIAL, "",
			"the code or passkey is wrong, or was used before", "type the code that is shown now, or use a recovery code")
	case errors.Is(err, factors.ErrNone):
		return apierr.NotFound("id", "you have no such second factor", "list them: fleetban account factors")
	case errors.Is(err, factors.ErrTooMany):
		return apierr.Wrap(err, connect.CodeFailedPrecondition, fleetbanv1.Reason_REASON_INVALID_FIELD, "",
			"you have as many passkeys as are kept", "delete one that you don't use")
	case errors.Is(err, factors.ErrNoPasskeys):
		return apierr.Wrap(err, connect.CodeFailedPrecondition, fleetbanv1.Reason_REASON_PASSKEYS_OFF, "",
			"passkeys need a host name, and this control plane's public URL has none", "use a code; who runs it may set --public-url to a name")
	case errors.Is(err, people.ErrBadLink):
		return apierr.Wrap(err, connect.CodeUnauthenticated, fleetbanv1.Reason_REASON_BAD_CREDENTIAL, "",
			"the link is unknown, used or expired", "copy the whole link, or ask for another")
	case errors.Is(err, people.ErrTaken):
		return apierr.Wrap(err, connect.CodeAlreadyExists, fleetbanv1.Reason_REASON_EMAIL_TAKEN, "",
			"there is another account with this address", "sign in with that one, or choose another address")
	case errors.Is(err, mail.ErrFull):
		return apierr.Wrap(err, connect.CodeResourceExhausted, fleetbanv1.Reason_REASON_RATE_LIMITED, "",
			"too many letters wait to be sent", "try again in a few minutes")
	case errors.Is(err, sessions.ErrReplayed):
		return apierr.Wrap(err, connect.CodeUnauthenticated, fleetbanv1.Reason_REASON_BAD_CREDENTIAL, "refresh_token",
			"this refresh token was used before, so someone else may hold a copy: the session was ended", "sign in again: fleetban login")
	case errors.Is(err, sessions.ErrToken), errors.Is(err, people.ErrNoMember):
		return apierr.Wrap(err, connect.CodeUnauthenticated, fleetbanv1.Reason_REASON_BAD_CREDENTIAL, "refresh_token",
			"the session ended", "sign in again: fleetban login")
	case errors.Is(err, sessions.ErrNone):
		return apierr.NotFound("id", "you have no such session", "list them: fleetban sessions")
	case errors.Is(err, people.ErrWeakPassword):
		return apierr.Wrap(err, connect.CodeInvalidArgument, fleetbanv1.Reason_REASON_INVALID_FIELD, "password", err.Error(),
			"take four or more words that have nothing to do with each other, or let a password manager make one")
	case errors.Is(err, people.ErrInvalid), errors.Is(err, factors.ErrInvalid):
		return apierr.Wrap(err, connect.CodeInvalidArgument, fleetbanv1.Reason_REASON_INVALID_FIELD, "", err.Error(), "correct the request")
	default:
		return err
	}
}
