package operatorapi

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/controlplane/internal/apierr"
	"github.com/fleetban/fleetban/controlplane/internal/audit"
	"github.com/fleetban/fleetban/controlplane/internal/auth"
	"github.com/fleetban/fleetban/controlplane/internal/orgs"
	"github.com/fleetban/fleetban/controlplane/internal/people"
	"github.com/fleetban/fleetban/controlplane/internal/scope"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1/operatorv1connect"
	optionsv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/options/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// TokenOptions are what TokenAPI works with.
type TokenOptions struct {
	Orgs   *orgs.Orgs
	People *people.People
	// Ended ends the open streams of a token on every replica: Sessions.TokenRevoked.
	Ended func(ctx context.Context, id string) error
}

// TokenAPI serves the services of tokens.proto.
type TokenAPI struct{ o TokenOptions }

var (
	_ operatorv1connect.TokenServiceHandler             = (*TokenAPI)(nil)
	_ operatorv1connect.OrganisationTokenServiceHandler = (*TokenAPI)(nil)
)

// NewTokens makes a TokenAPI.
func NewTokens(o TokenOptions) *TokenAPI { return &TokenAPI{o: o} }

// Register puts every service on mux.
func (a *TokenAPI) Register(mux *http.ServeMux, options ...connect.HandlerOption) {
	mux.Handle(operatorv1connect.NewTokenServiceHandler(a, options...))
	mux.Handle(operatorv1connect.NewOrganisationTokenServiceHandler(a, options...))
}

// CreateToken implements TokenService.
func (a *TokenAPI) CreateToken(ctx context.Context, req *connect.Request[operatorv1.CreateTokenRequest]) (*connect.Response[operatorv1.CreateTokenResponse], error) {
	p, err := signedIn(ctx)
	if err != nil {
		return nil, err
	}
	n, err := newToken(p, req.Msg)
	if err != nil {
		return nil, err
	}
	// The membership as it is now: the token is bound to it.
	member, err := a.o.People.Member(ctx, p.Org, p.ID)
	if err != nil {
		return nil, mappedMember(err)
	}
	n.Person, n.Email, n.Since = member.Person, member.Email, member.Since
	token, err := a.create(ctx, p, n)
	if err != nil {
		return nil, err
	}
	return noStore(connect.NewResponse(operatorv1.CreateTokenResponse_builder{Token: apiToken(token), Secret: token.Secret}.Build())), nil
}

// ListTokens implements TokenService.
func (a *TokenAPI) ListTokens(ctx context.Context, _ *connect.Request[operatorv1.ListTokensRequest]) (*connect.Response[operatorv1.ListTokensResponse], error) {
	p, err := signedIn(ctx)
	if err != nil {
		return nil, err
	}
	page, _, err := a.o.Orgs.PageTokens(ctx, p.Org, p.ID, "", orgs.MaxPersonalTokens)
	if err != nil {
		return nil, mappedToken(err)
	}
	return connect.NewResponse(operatorv1.ListTokensResponse_builder{Tokens: apiTokens(page)}.Build()), nil
}

// RevokeToken implements TokenService.
func (a *TokenAPI) RevokeToken(ctx context.Context, req *connect.Request[operatorv1.RevokeTokenRequest]) (*connect.Response[operatorv1.RevokeTokenResponse], error) {
	p, err := signedIn(ctx)
	if err != nil {
		return nil, err
	}
	if err := a.revoke(ctx, p, req.Msg.GetId(), p.ID); err != nil {
		return nil, err
	}
	return connect.NewResponse(&operatorv1.RevokeTokenResponse{}), nil
}

// CreateOrganisationToken implements OrganisationTokenService.
func (a *TokenAPI) CreateOrganisationToken(
	ctx context.Context, req *connect.Request[operatorv1.CreateOrganisationTokenRequest],
) (*connect.Response[operatorv1.CreateOrganisationTokenResponse], error) {
	p, err := signedIn(ctx)
	if err != nil {
		return nil, err
	}
	n, err := newToken(p, req.Msg)
	if err != nil {
		return nil, err
	}
	token, err := a.create(ctx, p, n)
	if err != nil {
		return nil, err
	}
	return noStore(connect.NewResponse(operatorv1.CreateOrganisationTokenResponse_builder{Token: apiToken(token), Secret: token.Secret}.Build())), nil
}

// ListOrganisationTokens implements OrganisationTokenService.
func (a *TokenAPI) ListOrganisationTokens(
	ctx context.Context, req *connect.Request[operatorv1.ListOrganisationTokensRequest],
) (*connect.Response[operatorv1.ListOrganisationTokensResponse], error) {
	p, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	size := int(req.Msg.GetPageSize())
	if size == 0 {
		size = 100
	}
	page, next, err := a.o.Orgs.PageTokens(ctx, p.Org, "", req.Msg.GetPageToken(), size)
	if err != nil {
		return nil, mappedToken(err)
	}
	return connect.NewResponse(operatorv1.ListOrganisationTokensResponse_builder{Tokens: apiTokens(page), NextPageToken: next}.Build()), nil
}

// RevokeOrganisationToken implements OrganisationTokenService.
func (a *TokenAPI) RevokeOrganisationToken(
	ctx context.Context, req *connect.Request[operatorv1.RevokeOrganisationTokenRequest],
) (*connect.Response[operatorv1.RevokeOrganisationTokenResponse], error) {
	p, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	if err := a.revoke(ctx, p, req.Msg.GetId(), ""); err != nil {
		return nil, err
	}
	return connect.NewResponse(&operatorv1.RevokeOrganisationTokenResponse{}), nil
}

func (a *TokenAPI) create(ctx context.Context, p auth.Principal, n orgs.NewToken) (orgs.Token, error) {
	n.By, n.Maker = p.Name, p.ID
	audit.From(ctx).SetTargets(n.Name)
	token, err := a.o.Orgs.AddToken(ctx, p.Org, n)
	return token, mappedToken(err)
}

// revoke ends a token; person, where it is given, is whose it must be.
func (a *TokenAPI) revoke(ctx context.Context, p auth.Principal, id, person string) error {
	call := audit.From(ctx)
	// Whoever pastes the whole secret means that token, and the log is no place for a secret.
	call.SetTargets()
	token, err := a.o.Orgs.FindToken(ctx, p.Org, id)
	if err != nil {
		return mappedToken(err)
	}
	if person != "" && token.Person != person {
		return mappedToken(orgs.ErrNotFound)
	}
	call.SetTargets(token.ID, token.Name)
	if err := a.o.Orgs.RevokeToken(ctx, p.Org, token.ID); err != nil {
		return mappedToken(err)
	}
	// No call with it succeeds any more, and it can't be revoked again: the streams must hear of it now.
	if err := a.o.Ended(context.WithoutCancel(ctx), token.ID); err != nil {
		return apierr.Wrap(err, connect.CodeUnavailable, fleetbanv1.Reason_REASON_STORE_UNAVAILABLE, "",
			"the token is revoked, and streams that it opened end within 30 seconds", "nothing: it is revoked")
	}
	return nil
}

// asked is what both ways of asking for a token have.
type asked interface {
	GetName() string
	GetRole() operatorv1.Role
	GetPermissions() []optionsv1.Permission
	GetTags() []string
	GetDurationS() int64
}

// newToken is what the caller may make of what is asked for: no more than they may themselves.
func newToken(p auth.Principal, m asked) (orgs.NewToken, error) {
	tags, err := parseTags(m.GetTags())
	if err != nil {
		return orgs.NewToken{}, err
	}
	if tags, err = ownTags(p, tags); err != nil {
		return orgs.NewToken{}, err
	}
	if s := m.GetDurationS(); s != 0 && s < 60 {
		return orgs.NewToken{}, apierr.Invalid("duration_s", "duration_s: a token lives a minute at least", "give 60 or more, or 0 for 90 days")
	}
	life := time.Duration(m.GetDurationS()) * time.Second
	if life == 0 {
		life = orgs.DefaultTokenLife
	}
	n := orgs.NewToken{Name: m.GetName(), Tags: tags, Life: life}
	all := orgs.AllPermissions()
	switch role, permissions := m.GetRole(), m.GetPermissions(); {
	case (role == 0) == (len(permissions) == 0):
		return orgs.NewToken{}, apierr.Invalid("role", "role: name a role or permissions, and not both", "write for example --role viewer")
	case role != 0:
		for _, has := range people.Within(people.Permissions(role), tags) {
			if slices.Contains(all, has) {
				n.Permissions = append(n.Permissions, has)
			}
		}
	default:
		n.Permissions = permissions
		if left := people.Within(permissions, tags); len(left) < len(permissions) {
			return orgs.NewToken{}, apierr.Invalid("permissions", "permissions: some are about the whole fleet, and the token has tags",
				"leave out what isn't about hosts, or the tags")
		}
	}
	for _, wanted := range n.Permissions {
		if !slices.Contains(all, wanted) {
			return orgs.NewToken{}, apierr.Invalid("permissions", "permissions: a token can't hold "+permissionName(wanted), "leave it out")
		}
		if !p.May(wanted) {
			return orgs.NewToken{}, apierr.New(connect.CodePermissionDenied, fleetbanv1.Reason_REASON_PERMISSION_DENIED, "permissions",
				"you lack "+permissionName(wanted)+" yourself", "ask for no more than you may")
		}
	}
	return n, nil
}

// ownTags are those of a token that who is restricted makes: theirs where they name none.
func ownTags(p auth.Principal, tags scope.Tags) (scope.Tags, error) {
	if p.Tags.Whole() {
		return tags, nil
	}
	if tags.Whole() {
		return p.Tags, nil
	}
	if both, _ := tags.Narrow(p.Tags); len(both) < len(tags) {
		return nil, apierr.New(connect.CodePermissionDenied, fleetbanv1.Reason_REASON_PERMISSION_DENIED, "tags",
			"you steer only hosts with "+strings.Join(p.Tags.Strings(), " or "), "name tags of these")
	}
	return tags, nil
}

func permissionName(p optionsv1.Permission) string {
	return strings.ToLower(strings.TrimPrefix(p.String(), "PERMISSION_"))
}

func apiTokens(all []orgs.Token) []*operatorv1.ApiToken {
	out := make([]*operatorv1.ApiToken, 0, len(all))
	for _, t := range all {
		out = append(out, apiToken(t))
	}
	return out
}

func apiToken(t orgs.Token) *operatorv1.ApiToken {
	return operatorv1.ApiToken_builder{
		Id: t.ID, Name: t.Name, PersonId: t.Person, PersonEmail: t.Email, CreatedBy: t.By, CreatedUnixMs: t.Created, ExpiresUnixMs: t.Expires,
		UsedUnixMs: t.Used, UsedAddress: t.UsedFrom, Permissions: t.Permissions, Tags: t.Tags.Strings(),
	}.Build()
}

func mappedToken(err error) error {
	switch {
	case errors.Is(err, orgs.ErrNotFound):
		return apierr.NotFound("id", "there is no such API token", "fleetban tokens lists them")
	case errors.Is(err, orgs.ErrPageToken):
		return apierr.Invalid("page_token", "the page token is not one that a list gave", "begin again without it")
	default:
		return mapped(err)
	}
}
