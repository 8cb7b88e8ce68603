package operatorapi

import (
	"context"
	"time"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/controlplane/internal/sets"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// Allow implements AllowlistService.
func (a *API) Allow(ctx context.Context, req *connect.Request[operatorv1.AllowRequest]) (*connect.Response[operatorv1.AllowResponse], error) {
	p, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	parsed, _, err := targets(ctx, req.Msg.GetPrefixes())
	if err != nil {
		return nil, err
	}
	result, err := a.o.Sets.Allow(ctx, p.Org, sets.AllowInput{
		Prefixes: parsed, Duration: time.Duration(req.Msg.GetDurationS()) * time.Second, Actor: p.Name, Reason: req.Msg.GetReason(),
	})
	if err != nil {
		return nil, mapped(err)
	}
	return connect.NewResponse(operatorv1.AllowResponse_builder{Cursor: result.Cursor.Proto(), Suppresses: formatAll(result.Suppresses)}.Build()), nil
}

// Disallow implements AllowlistService.
func (a *API) Disallow(ctx context.Context, req *connect.Request[operatorv1.DisallowRequest]) (*connect.Response[operatorv1.DisallowResponse], error) {
	p, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	parsed, _, err := targets(ctx, req.Msg.GetPrefixes())
	if err != nil {
		return nil, err
	}
	result, err := a.o.Sets.Disallow(ctx, p.Org, sets.DisallowInput{Prefixes: parsed, Actor: p.Name})
	if err != nil {
		return nil, mapped(err)
	}
	return connect.NewResponse(operatorv1.DisallowResponse_builder{Cursor: result.Cursor.Proto(), Reinstates: formatAll(result.Reinstates)}.Build()), nil
}

// ListAllowed implements AllowlistService.
func (a *API) ListAllowed(ctx context.Context, req *connect.Request[operatorv1.ListAllowedRequest]) (*connect.Response[operatorv1.ListAllowedResponse], error) {
	p, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	result, err := a.o.Sets.List(ctx, p.Org, sets.ListInput{
		PageSize: int(req.Msg.GetPageSize()), PageToken: req.Msg.GetPageToken(), Kind: fleetbanv1.SetKind_SET_KIND_ALLOW,
	})
	if err != nil {
		return nil, mapped(err)
	}
	out := make([]*operatorv1.AllowedPrefix, 0, len(result.Entries))
	for _, e := range result.Entries {
		out = append(out, allowed(e))
	}
	return connect.NewResponse(operatorv1.ListAllowedResponse_builder{Allowed: out, NextPageToken: result.NextPageToken}.Build()), nil
}
