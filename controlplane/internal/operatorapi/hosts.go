package operatorapi

import (
	"context"
	"errors"
	"time"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/controlplane/internal/apierr"
	"github.com/fleetban/fleetban/controlplane/internal/audit"
	"github.com/fleetban/fleetban/controlplane/internal/auth"
	"github.com/fleetban/fleetban/controlplane/internal/orgs"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
)

// ListHosts implements HostService.
func (a *API) ListHosts(ctx context.Context, req *connect.Request[operatorv1.ListHostsRequest]) (*connect.Response[operatorv1.ListHostsResponse], error) {
	p, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	page, next, err := a.o.Hosts.ListWithin(ctx, p.Org, p.Tags, int(req.Msg.GetPageSize()), req.Msg.GetPageToken())
	if err != nil {
		return nil, mapped(err)
	}
	if err := a.current(ctx, p.Org, page...); err != nil {
		return nil, mapped(err)
	}
	return connect.NewResponse(operatorv1.ListHostsResponse_builder{Hosts: page, NextPageToken: next}.Build()), nil
}

// GetHost implements HostService.
func (a *API) GetHost(ctx context.Context, req *connect.Request[operatorv1.GetHostRequest]) (*connect.Response[operatorv1.GetHostResponse], error) {
	p, found, err := a.callersHost(ctx, req.Msg.GetHost())
	if err != nil {
		return nil, err
	}
	host, err := a.o.Hosts.Get(ctx, p.Org, found.ID)
	if err != nil {
		return nil, mapped(err)
	}
	if err := a.current(ctx, p.Org, host); err != nil {
		return nil, mapped(err)
	}
	return connect.NewResponse(operatorv1.GetHostResponse_builder{Host: host}.Build()), nil
}

// current puts beside what hosts acknowledged what they should hold.
func (a *API) current(ctx context.Context, org string, page ...*operatorv1.Host) error {
	if len(page) == 0 {
		return nil
	}
	states, err := a.o.Sets.States(ctx, org)
	if err != nil {
		return err
	}
	for _, host := range page {
		for _, progress := range host.GetSets() {
			progress.SetCurrent(states.Set(progress.GetSet()).Cursor.Version)
		}
	}
	return nil
}

// DeleteHost implements HostService.
func (a *API) DeleteHost(ctx context.Context, req *connect.Request[operatorv1.DeleteHostRequest]) (*connect.Response[operatorv1.DeleteHostResponse], error) {
	p, host, err := a.callersHost(ctx, req.Msg.GetHost())
	if err != nil {
		return nil, err
	}
	audit.From(ctx).SetTargets(host.Name, host.ID)
	// Its addresses first: a repeated call finds the host still and does the rest.
	if err := a.o.Sets.PutHostAddresses(ctx, p.Org, host.ID, nil); err != nil {
		return nil, mapped(err)
	}
	retracted := 0
	if req.Msg.GetRetractClaims() {
		// Its stream first, so that it claims nothing anew; the host last, so that a repeated call finds it.
		if _, err := a.o.Hosts.Disable(audit.With(ctx, nil), p.Org, host.ID, p.Name, "to be deleted"); err != nil {
			return nil, mapped(err)
		}
		if retracted, err = a.o.Sets.WithdrawHost(ctx, p.Org, host.ID, p.Name); err != nil {
			return nil, mapped(err)
		}
	}
	if err := a.o.Hosts.Delete(ctx, p.Org, host.ID, p.Name); err != nil {
		return nil, mapped(err)
	}
	return connect.NewResponse(operatorv1.DeleteHostResponse_builder{Retracted: uint32(retracted)}.Build()), nil //nolint:gosec // a count
}

// ReleaseHost implements HostService. Releasing a host that isn't quarantined changes nothing.
func (a *API) ReleaseHost(ctx context.Context, req *connect.Request[operatorv1.ReleaseHostRequest]) (*connect.Response[operatorv1.ReleaseHostResponse], error) {
	p, host, err := a.callersHost(ctx, req.Msg.GetHost())
	if err != nil {
		return nil, err
	}
	audit.From(ctx).SetTargets(host.Name, host.ID)
	if _, err := a.o.Hosts.Release(ctx, p.Org, host.ID, p.Name); err != nil {
		return nil, mapped(err)
	}
	return connect.NewResponse(&operatorv1.ReleaseHostResponse{}), nil
}

// ListCommands implements HostService.
func (a *API) ListCommands(ctx context.Context, req *connect.Request[operatorv1.ListCommandsRequest]) (*connect.Response[operatorv1.ListCommandsResponse], error) {
	p, host, err := a.callersHost(ctx, req.Msg.GetHost())
	if err != nil {
		return nil, err
	}
	commands, err := a.o.Hosts.Commands(ctx, p.Org, host.ID)
	if err != nil {
		return nil, mapped(err)
	}
	return connect.NewResponse(operatorv1.ListCommandsResponse_builder{Commands: commands}.Build()), nil
}

// CreateJoinToken implements JoinTokenService.
func (a *API) CreateJoinToken(
	ctx context.Context, req *connect.Request[operatorv1.CreateJoinTokenRequest],
) (*connect.Response[operatorv1.CreateJoinTokenResponse], error) {
	p, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	if s := req.Msg.GetDurationS(); s != 0 && s < 60 {
		return nil, apierr.Invalid("duration_s", "duration_s: a join token lives a minute at least", "give 60 or more, or 0 for a day")
	}
	if s := req.Msg.GetEphemeralS(); s != 0 && s < 60 {
		return nil, apierr.Invalid("ephemeral_s", "ephemeral_s: a host is a minute offline at least before it is deleted", "give 60 or more, or 0 to keep it")
	}
	again := ""
	if name := req.Msg.GetHost(); name != "" {
		host, err := a.host(ctx, p, name)
		if err != nil {
			return nil, mapped(err)
		}
		again = host.ID
	}
	// One for a host that enrols again gives it what tags it has.
	if again == "" || len(req.Msg.GetTags()) > 0 {
		if err := checkJoinScope(p, req.Msg.GetTags()); err != nil {
			return nil, err
		}
	}
	token, err := a.o.Orgs.CreateJoinToken(ctx, p.Org, orgs.NewJoinToken{
		Life: time.Duration(req.Msg.GetDurationS()) * time.Second, Uses: req.Msg.GetUses(), Tags: req.Msg.GetTags(), Note: req.Msg.GetNote(), Actor: p.Name,
		Ephemeral: time.Duration(req.Msg.GetEphemeralS()) * time.Second, Host: again,
	})
	if err != nil {
		return nil, mapped(err)
	}
	audit.From(ctx).SetTargets(token.ID)
	return connect.NewResponse(operatorv1.CreateJoinTokenResponse_builder{
		JoinToken: joinToken(token), Secret: token.Secret, InstallLine: a.o.InstallLine,
	}.Build()), nil
}

// ListJoinTokens implements JoinTokenService.
func (a *API) ListJoinTokens(
	ctx context.Context, _ *connect.Request[operatorv1.ListJoinTokensRequest],
) (*connect.Response[operatorv1.ListJoinTokensResponse], error) {
	p, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	tokens, err := a.o.Orgs.ListJoinTokens(ctx, p.Org)
	if err != nil {
		return nil, mapped(err)
	}
	out := make([]*operatorv1.JoinToken, 0, len(tokens))
	for _, t := range tokens {
		if checkJoinScope(p, t.Tags) == nil {
			out = append(out, joinToken(t))
		}
	}
	return connect.NewResponse(operatorv1.ListJoinTokensResponse_builder{JoinTokens: out}.Build()), nil
}

// RevokeJoinToken implements JoinTokenService.
func (a *API) RevokeJoinToken(
	ctx context.Context, req *connect.Request[operatorv1.RevokeJoinTokenRequest],
) (*connect.Response[operatorv1.RevokeJoinTokenResponse], error) {
	p, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	// Whoever pastes the whole secret means that token, and the log is no place for a secret.
	audit.From(ctx).SetTargets(orgs.JoinTokenID(req.Msg.GetId()))
	id, err := a.joinTokenOf(ctx, p, req.Msg.GetId())
	if err != nil {
		return nil, err
	}
	if err := a.o.Orgs.RevokeJoinToken(ctx, p.Org, id); errors.Is(err, orgs.ErrNotFound) {
		return nil, apierr.NotFound("id", "there is no such join token", "fleetban join-token list shows them")
	} else if err != nil {
		return nil, mapped(err)
	}
	return connect.NewResponse(&operatorv1.RevokeJoinTokenResponse{}), nil
}

// joinTokenOf is the id of a join token as the caller may know it: whole, for who is restricted to tags, and one of theirs.
func (a *API) joinTokenOf(ctx context.Context, p auth.Principal, id string) (string, error) {
	if p.Tags.Whole() {
		return id, nil
	}
	tokens, err := a.o.Orgs.ListJoinTokens(ctx, p.Org)
	if err != nil {
		return "", mapped(err)
	}
	for _, t := range tokens {
		if t.ID == orgs.JoinTokenID(id) && checkJoinScope(p, t.Tags) == nil {
			return t.ID, nil
		}
	}
	return "", apierr.NotFound("id", "there is no such join token", "fleetban join-token list shows them")
}

func joinToken(t orgs.JoinToken) *operatorv1.JoinToken {
	return operatorv1.JoinToken_builder{
		Id: t.ID, CreatedUnixMs: t.Created, ExpiresUnixMs: t.Expires, UsesLeft: t.UsesLeft, Uses: t.Uses, Tags: t.Tags, Note: t.Note, Actor: t.Actor,
		EphemeralS: int64(t.Ephemeral / time.Second), HostId: t.Host,
	}.Build()
}
