package operatorapi

import (
	"context"
	"errors"
	"log/slog"
	"strings"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/controlplane/internal/apierr"
	"github.com/fleetban/fleetban/controlplane/internal/audit"
	"github.com/fleetban/fleetban/controlplane/internal/auth"
	"github.com/fleetban/fleetban/controlplane/internal/factors"
	"github.com/fleetban/fleetban/controlplane/internal/mail"
	"github.com/fleetban/fleetban/controlplane/internal/people"
	"github.com/fleetban/fleetban/controlplane/internal/scope"
	"github.com/fleetban/fleetban/controlplane/internal/sessions"
	"github.com/fleetban/fleetban/controlplane/internal/sso"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// InvitationPath is where links of invitations lead.
const InvitationPath = "/invitation"

// ListMembers implements MemberService.
func (a *PeopleAPI) ListMembers(ctx context.Context, _ *connect.Request[operatorv1.ListMembersRequest]) (*connect.Response[operatorv1.ListMembersResponse], error) {
	p, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	all, err := a.o.People.Members(ctx, p.Org)
	if err != nil {
		return nil, mappedPeople(err)
	}
	var answer operatorv1.ListMembersResponse_builder
	for _, m := range all {
		answer.Members = append(answer.Members, operatorv1.Member_builder{PersonId: m.Person, Email: m.Email, Role: m.Role, SinceUnixMs: m.Since, Tags: m.Tags.Strings()}.Build())
	}
	return connect.NewResponse(answer.Build()), nil
}

// Invite implements MemberService.
func (a *PeopleAPI) Invite(ctx context.Context, req *connect.Request[operatorv1.InviteRequest]) (*connect.Response[operatorv1.InviteResponse], error) {
	p, err := signedIn(ctx)
	if err != nil {
		return nil, err
	}
	tags, err := parseTags(req.Msg.GetTags())
	if err != nil {
		return nil, err
	}
	secret, expires, err := a.o.People.Invite(ctx, p.Org, p.ID, req.Msg.GetEmail(), req.Msg.GetRole(), tags)
	if err != nil {
		return nil, mappedMember(err)
	}
	// Behind the #, it is sent to no server and stands in no log of one.
	link, mailed := a.o.PublicURL+InvitationPath+"#"+secret, false
	if a.o.Mail.On() {
		if mailed, err = a.mailInvitation(ctx, p, req.Msg, link); err != nil {
			return nil, err
		}
	}
	return noStore(connect.NewResponse(operatorv1.InviteResponse_builder{
		Link: link, ExpiresUnixMs: expires.UnixMilli(), Mailed: mailed,
	}.Build())), nil
}

// mailInvitation sends it, unless its address had too many letters lately: the link is told to who invites anyhow.
func (a *PeopleAPI) mailInvitation(ctx context.Context, p auth.Principal, m *operatorv1.InviteRequest, link string) (bool, error) {
	address, err := people.ParseEmail(m.GetEmail())
	if err != nil {
		return false, mappedPeople(err)
	}
	var often *people.TooOftenError
	if err := a.o.People.MayMail(ctx, address); errors.As(err, &often) {
		return false, nil
	} else if err != nil {
		return false, mappedPeople(err)
	}
	letter := mail.Invitation(address.String(), p.Name, roleName(m.GetRole()), link, people.InvitationLife)
	return a.o.Mail.Send(ctx, letter) == nil, nil
}

// AcceptInvitation implements MemberService.
func (a *PeopleAPI) AcceptInvitation(
	ctx context.Context, req *connect.Request[operatorv1.AcceptInvitationRequest],
) (*connect.Response[operatorv1.AcceptInvitationResponse], error) {
	var asked *factors.Asked
	with := ""
	org, m, err := a.o.People.Accept(ctx, req.Msg.GetInvitation(), req.Msg.GetPassword(), auth.Address(ctx), func(ctx context.Context, person, state string) (err error) {
		asked, with, err = a.secondOf(ctx, person, state, req.Msg.GetSecondFactor())
		return err
	})
	if errors.Is(err, errAsked) {
		return noStore(connect.NewResponse(operatorv1.AcceptInvitationResponse_builder{SecondFactor: askedProto(asked)}.Build())), nil
	}
	if err != nil {
		if errors.Is(err, people.ErrBadLogin) {
			return nil, apierr.Wrap(err, connect.CodeUnauthenticated, fleetbanv1.Reason_REASON_BAD_CREDENTIAL, "password",
				"there is an account with your address, and its password is another one",
				"give that password, or have a link sent to set another: fleetban password reset; the invitation is still good")
		}
		return nil, mappedMember(err)
	}
	var details []audit.Detail
	if with != "" {
		details = append(details, audit.Detail{Name: "with", After: with})
	}
	if err := a.record(ctx, org, "member.accept", m, details...); err != nil {
		return nil, err
	}
	return connect.NewResponse(operatorv1.AcceptInvitationResponse_builder{Email: m.Email, OrganisationId: org, Role: m.Role}.Build()), nil
}

// errAsked: a second factor is asked for.
var errAsked = errors.New("a second factor is asked for")

// secondOf takes the second factor of who joins with an account that stands: errAsked where it has one and none was given.
// with is what it was, for the audit log.
func (a *PeopleAPI) secondOf(
	ctx context.Context, person, state string, given *operatorv1.SecondFactorAnswer,
) (asked *factors.Asked, with string, err error) {
	if a.o.Factors == nil {
		return nil, sessions.Password, nil
	}
	if given == nil {
		asked, err := a.o.Factors.Ask(ctx, person, state)
		if err == nil && asked != nil {
			err = errAsked
		}
		return asked, sessions.Password, err
	}
	with, err = a.o.Factors.Confirm(ctx, person, state, given.GetChallenge(), factors.Answer{
		TOTP: given.GetTotpCode(), Recovery: given.GetRecoveryCode(), Passkey: given.GetPasskeyResponseJson(),
	})
	return nil, with, err
}

func askedProto(asked *factors.Asked) *operatorv1.SecondFactor {
	return operatorv1.SecondFactor_builder{
		Challenge: asked.Challenge, Totp: asked.TOTP, RecoveryCode: asked.Recovery, PasskeyOptionsJson: asked.PasskeyOptions,
	}.Build()
}

// SetRole implements MemberService.
func (a *PeopleAPI) SetRole(ctx context.Context, req *connect.Request[operatorv1.SetRoleRequest]) (*connect.Response[operatorv1.SetRoleResponse], error) {
	p, err := signedIn(ctx)
	if err != nil {
		return nil, err
	}
	tags, err := parseTags(req.Msg.GetTags())
	if err != nil {
		return nil, err
	}
	if len(tags) > 0 && req.Msg.GetWholeFleet() {
		return nil, apierr.Invalid("whole_fleet", "whole_fleet: it takes the restriction away, and tags give one", "leave one of them out")
	}
	if err := a.notTheGlass(ctx, p.Org, req.Msg.GetMember(), req.Msg.GetRole()); err != nil {
		return nil, err
	}
	was, is, err := a.o.People.SetRole(ctx, p.Org, p.ID, req.Msg.GetMember(), req.Msg.GetRole(), people.Restriction{Tags: tags, Lift: req.Msg.GetWholeFleet()})
	if err != nil {
		return nil, mappedMember(err)
	}
	audit.From(ctx).SetTargets(was.Email, was.Person)
	audit.From(ctx).Change("role", roleName(was.Role), roleName(is.Role))
	audit.From(ctx).Change("tags", strings.Join(was.Tags.Strings(), " "), strings.Join(is.Tags.Strings(), " "))
	if err := a.o.Sessions.MemberChanged(ctx, p.Org, is); err != nil {
		return nil, mappedPeople(err)
	}
	return connect.NewResponse(&operatorv1.SetRoleResponse{}), nil
}

// RemoveMember implements MemberService.
func (a *PeopleAPI) RemoveMember(ctx context.Context, req *connect.Request[operatorv1.RemoveMemberRequest]) (*connect.Response[operatorv1.RemoveMemberResponse], error) {
	p, err := signedIn(ctx)
	if err != nil {
		return nil, err
	}
	if err := a.notTheGlass(ctx, p.Org, req.Msg.GetMember(), 0); err != nil {
		return nil, err
	}
	was, m, err := a.o.People.Remove(ctx, p.Org, p.ID, req.Msg.GetMember())
	if err == nil {
		audit.From(ctx).SetTargets(was.Email, was.Person)
		audit.From(ctx).Change("role", roleName(was.Role), "")
	}
	// Also of one who is gone: the removal may be repeated because its outcome was unknown.
	if m.Version > 0 {
		if err := a.o.Sessions.MemberChanged(ctx, p.Org, m); err != nil {
			return nil, mappedPeople(err)
		}
	}
	if err != nil {
		return nil, mappedMember(err)
	}
	if a.o.Orgs != nil {
		// Worth nothing since the membership ended; this removes what is left of them, and is no reason to fail.
		if err := a.o.Orgs.RevokePersonal(ctx, p.Org, m.Person); err != nil {
			a.o.Logger.WarnContext(ctx, "API tokens of a member who left are still listed", slog.String("person", m.Person), slog.Any("error", err))
		}
	}
	return connect.NewResponse(&operatorv1.RemoveMemberResponse{}), nil
}

// notTheGlass refuses to demote or remove the one owner who may sign in past a required identity provider.
func (a *PeopleAPI) notTheGlass(ctx context.Context, org, member string, role people.Role) error {
	if a.o.SSO == nil || role == people.Owner {
		return nil
	}
	provider, err := a.o.SSO.Get(ctx, org)
	if errors.Is(err, sso.ErrNone) || err == nil && (!provider.Required || provider.BreakGlass == "") {
		return nil
	}
	if err != nil {
		return mappedSSO(err)
	}
	m, err := a.o.People.Find(ctx, org, member)
	if errors.Is(err, people.ErrNoMember) || err == nil && m.Person != provider.BreakGlass {
		return nil
	}
	if err != nil {
		return mappedMember(err)
	}
	return apierr.New(connect.CodeFailedPrecondition, fleetbanv1.Reason_REASON_INVALID_FIELD, "member",
		"this owner is the one who may sign in past the identity provider (break glass)", "name another one first: fleetban sso set --break-glass E-MAIL")
}

// roleName is a role as the audit log has it.
func roleName(r people.Role) string {
	return strings.ToLower(strings.TrimPrefix(r.String(), "ROLE_"))
}

// parseTags are the tags that someone is to be restricted to.
func parseTags(texts []string) (scope.Tags, error) {
	tags, err := scope.Parse(texts)
	if err != nil {
		return nil, apierr.Invalid("tags", "tags: "+err.Error(), "write for example --tag team=web")
	}
	return tags, nil
}

func mappedMember(err error) error {
	switch {
	case errors.Is(err, people.ErrNoMember):
		return apierr.Wrap(err, connect.CodeNotFound, fleetbanv1.Reason_REASON_NOT_FOUND, "member",
			"there is no such member", "fleetban members lists them")
	case errors.Is(err, people.ErrRestricted):
		return apierr.Wrap(err, connect.CodeFailedPrecondition, fleetbanv1.Reason_REASON_INVALID_FIELD, "whole_fleet",
			"the member is restricted to some hosts, and owners and admins can't be", "say that the restriction ends: --whole-fleet")
	case errors.Is(err, people.ErrAmbiguous):
		return apierr.Wrap(err, connect.CodeFailedPrecondition, fleetbanv1.Reason_REASON_INVALID_FIELD, "member",
			"several members have this address: one signs in with a password, another with the identity provider", "name the id that fleetban members shows")
	case errors.Is(err, people.ErrOwnersOnly):
		return apierr.Wrap(err, connect.CodePermissionDenied, fleetbanv1.Reason_REASON_PERMISSION_DENIED, "member",
			"only owners make, change and remove owners", "ask an owner")
	case errors.Is(err, people.ErrNotAllowed):
		return apierr.Wrap(err, connect.CodePermissionDenied, fleetbanv1.Reason_REASON_PERMISSION_DENIED, "",
			"whoever did this, or invited to it, is no owner or admin of the organisation any more", "ask an owner")
	case errors.Is(err, people.ErrLastOwner):
		return apierr.Wrap(err, connect.CodeFailedPrecondition, fleetbanv1.Reason_REASON_INVALID_FIELD, "member",
			"this is the organisation's last owner", "make someone else an owner first: fleetban members role E-MAIL owner")
	default:
		return mappedPeople(err)
	}
}
