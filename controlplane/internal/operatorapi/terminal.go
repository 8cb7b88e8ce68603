package operatorapi

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/controlplane/internal/apierr"
	"github.com/fleetban/fleetban/controlplane/internal/audit"
	"github.com/fleetban/fleetban/controlplane/internal/auth"
	"github.com/fleetban/fleetban/controlplane/internal/people"
	"github.com/fleetban/fleetban/controlplane/internal/sessions"
	"github.com/fleetban/fleetban/controlplane/internal/terminals"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1/operatorv1connect"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// TerminalPath is the page where a person types the code that a terminal shows.
const TerminalPath = "/terminal"

// TerminalAPI serves the service of terminal.proto.
type TerminalAPI struct {
	Terminals *terminals.Terminals
	People    *PeopleAPI
	// PublicURL is where people's browsers find the control plane.
	PublicURL string
}

var _ operatorv1connect.TerminalServiceHandler = (*TerminalAPI)(nil)

// Register puts the service on mux.
func (a *TerminalAPI) Register(mux *http.ServeMux, options ...connect.HandlerOption) {
	mux.Handle(operatorv1connect.NewTerminalServiceHandler(a, options...))
}

// BeginTerminalSignIn implements TerminalService.
func (a *TerminalAPI) BeginTerminalSignIn(
	ctx context.Context, req *connect.Request[operatorv1.BeginTerminalSignInRequest],
) (*connect.Response[operatorv1.BeginTerminalSignInResponse], error) {
	m := req.Msg
	code, err := a.Terminals.Begin(ctx, terminals.Asker{
		Challenge: m.GetChallenge(), Name: m.GetName(), Agent: req.Header().Get("User-Agent"), Address: auth.Address(ctx), Org: m.GetOrganisationId(),
	})
	if err != nil {
		return nil, mappedTerminal(err)
	}
	return noStore(connect.NewResponse(operatorv1.BeginTerminalSignInResponse_builder{
		Code: code, Url: strings.TrimRight(a.PublicURL, "/") + TerminalPath,
		ExpiresS: int64(terminals.Life / time.Second), IntervalS: int64(terminals.Interval / time.Second),
	}.Build())), nil
}

// CompleteTerminalSignIn implements TerminalService.
func (a *TerminalAPI) CompleteTerminalSignIn(
	ctx context.Context, req *connect.Request[operatorv1.CompleteTerminalSignInRequest],
) (*connect.Response[operatorv1.CompleteTerminalSignInResponse], error) {
	by, err := a.Terminals.Take(ctx, req.Msg.GetCode(), req.Msg.GetVerifier())
	if errors.Is(err, terminals.ErrUnknown) {
		// Counted as any wrong credential is.
		return nil, apierr.Wrap(err, connect.CodeUnauthenticated, fleetbanv1.Reason_REASON_BAD_CREDENTIAL, "code", terminals.ErrUnknown.Error(), "begin again")
	}
	if err != nil {
		return nil, mappedTerminal(err)
	}
	if by == nil {
		return noStore(connect.NewResponse(operatorv1.CompleteTerminalSignInResponse_builder{Pending: true}.Build())), nil
	}
	account, err := a.People.o.People.Account(ctx, by.Person)
	if err != nil {
		return nil, mappedPeople(err)
	}
	account.State = by.State
	if err := a.approverStands(ctx, by); err != nil {
		return nil, err
	}
	// A proof of a moment ago isn't a newer one here: or whoever approves their own terminals would never have to prove anything again.
	begin := func(ctx context.Context, person, org, method string, client sessions.Client) (sessions.Tokens, error) {
		var proved time.Time
		if by.Proved > 0 {
			proved = time.UnixMilli(by.Proved)
		}
		return a.People.o.Sessions.BeginFrom(ctx, person, org, method, proved, client)
	}
	tokens, err := a.People.beginWith(ctx, account, by.Org, by.Method, begin, audit.Detail{Name: "approved_in_session", After: by.Session})
	if err != nil {
		return nil, err
	}
	// Again: who ended all of their sessions meanwhile didn't see this one.
	if err := a.approverStands(ctx, by); err != nil {
		return nil, errors.Join(err, a.People.o.Sessions.End(context.WithoutCancel(ctx), by.Person, tokens.Session))
	}
	return noStore(connect.NewResponse(operatorv1.CompleteTerminalSignInResponse_builder{
		Tokens: tokensProto(tokens), Person: personOf(tokens), Device: a.People.newDevice(by.Person),
	}.Build())), nil
}

// approverStands refuses what was approved in a session that is over, or that has ended all others since: whoever ends their
// sessions, because one was stolen, ends what the thief approved too, and what they were talked into themselves.
func (a *TerminalAPI) approverStands(ctx context.Context, by *terminals.Approval) error {
	now, err := a.People.o.Sessions.Proofs(ctx, by.Person, by.Session)
	if err == nil && now.Alone != by.Alone {
		err = sessions.ErrNone
	}
	if errors.Is(err, sessions.ErrNone) {
		return apierr.Wrap(err, connect.CodePermissionDenied, fleetbanv1.Reason_REASON_PERMISSION_DENIED, "code",
			"the session in which this sign-in was approved has ended, or has ended all others", "begin again")
	}
	return mappedPeople(err)
}

// GetTerminalSignIn implements TerminalService.
func (a *TerminalAPI) GetTerminalSignIn(
	ctx context.Context, req *connect.Request[operatorv1.GetTerminalSignInRequest],
) (*connect.Response[operatorv1.GetTerminalSignInResponse], error) {
	p, err := signedIn(ctx)
	if err != nil {
		return nil, err
	}
	from := auth.Address(ctx)
	asked, err := a.Terminals.Look(ctx, p.ID, from, req.Msg.GetCode())
	if err != nil {
		return nil, mappedTerminal(err)
	}
	answer := operatorv1.GetTerminalSignInResponse_builder{
		Code: asked.Code, Name: asked.Name, UserAgent: asked.Agent, BeganUnixMs: asked.Began.UnixMilli(), ExpiresUnixMs: asked.Until.UnixMilli(),
	}
	if asked.Address.IsValid() {
		answer.Address = asked.Address.String()
		answer.SamePlace = from.IsValid() && people.Group(from) == people.Group(asked.Address)
	}
	return noStore(connect.NewResponse(answer.Build())), nil
}

// ApproveTerminalSignIn implements TerminalService.
func (a *TerminalAPI) ApproveTerminalSignIn(
	ctx context.Context, req *connect.Request[operatorv1.ApproveTerminalSignInRequest],
) (*connect.Response[operatorv1.ApproveTerminalSignInResponse], error) {
	p, err := signedIn(ctx)
	if err != nil {
		return nil, err
	}
	began, err := a.People.o.Sessions.Proofs(ctx, p.ID, p.Session.ID)
	if err != nil {
		return nil, mappedPeople(err)
	}
	state, err := a.People.o.People.State(ctx, p.ID)
	if err != nil {
		return nil, mappedPeople(err)
	}
	by := terminals.Approval{Person: p.ID, Org: p.Org, Session: p.Session.ID, Method: began.Method, State: state, Alone: began.Alone}
	// By what the account itself has: what a provider says of the person is no proof of the account's own.
	by.Proved = p.Session.Proved * 1000
	if !began.Account.IsZero() {
		by.Proved = max(by.Proved, began.Account.UnixMilli())
	}
	asked, err := a.Terminals.Approve(ctx, auth.Address(ctx), req.Msg.GetCode(), by)
	if err != nil {
		return nil, mappedTerminal(err)
	}
	describeAsker(ctx, asked)
	return connect.NewResponse(&operatorv1.ApproveTerminalSignInResponse{}), nil
}

// DenyTerminalSignIn implements TerminalService.
func (a *TerminalAPI) DenyTerminalSignIn(
	ctx context.Context, req *connect.Request[operatorv1.DenyTerminalSignInRequest],
) (*connect.Response[operatorv1.DenyTerminalSignInResponse], error) {
	p, err := signedIn(ctx)
	if err != nil {
		return nil, err
	}
	asked, err := a.Terminals.Deny(ctx, p.ID, auth.Address(ctx), req.Msg.GetCode())
	if err != nil {
		return nil, mappedTerminal(err)
	}
	describeAsker(ctx, asked)
	return connect.NewResponse(&operatorv1.DenyTerminalSignInResponse{}), nil
}

// describeAsker records who asked.
func describeAsker(ctx context.Context, asked terminals.Asked) {
	call := audit.From(ctx)
	if call == nil {
		return
	}
	call.Add(audit.Detail{Name: "terminal", After: asked.Name})
	if asked.Address.IsValid() {
		call.Add(audit.Detail{Name: "terminal_address", After: asked.Address.String()})
	}
	call.Add(audit.Detail{Name: "terminal_user_agent", After: asked.Agent})
}

// mappedTerminal: of one who is signed in, or hasn't shown a code.
func mappedTerminal(err error) error {
	switch {
	case errors.Is(err, terminals.ErrUnknown):
		return apierr.Wrap(err, connect.CodeNotFound, fleetbanv1.Reason_REASON_NOT_FOUND, "code",
			terminals.ErrUnknown.Error(), "type the code that the terminal shows; it is good for ten minutes")
	case errors.Is(err, terminals.ErrDenied):
		return apierr.Wrap(err, connect.CodePermissionDenied, fleetbanv1.Reason_REASON_PERMISSION_DENIED, "code",
			"the sign-in was denied in the browser", "if that wasn't you, tell the organisation's owners")
	case errors.Is(err, terminals.ErrOtherOrganisation):
		return apierr.Wrap(err, connect.CodeFailedPrecondition, fleetbanv1.Reason_REASON_INVALID_FIELD, "code",
			"the terminal asks for another organisation than the one that you are signed in to here", "sign in to that one here, or run fleetban login without --organisation")
	default:
		return mappedPeople(err)
	}
}
