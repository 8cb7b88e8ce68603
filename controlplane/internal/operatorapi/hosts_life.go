package operatorapi

import (
	"context"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/controlplane/internal/audit"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
)

// DisableHost implements HostService.
func (a *API) DisableHost(ctx context.Context, req *connect.Request[operatorv1.DisableHostRequest]) (*connect.Response[operatorv1.DisableHostResponse], error) {
	p, host, err := a.callersHost(ctx, req.Msg.GetHost())
	if err != nil {
		return nil, err
	}
	audit.From(ctx).SetTargets(host.Name, host.ID)
	if _, err := a.o.Hosts.Disable(ctx, p.Org, host.ID, p.Name, req.Msg.GetReason()); err != nil {
		return nil, mapped(err)
	}
	retracted := 0
	if req.Msg.GetRetractClaims() {
		// It has no stream any more, and claims nothing meanwhile.
		if retracted, err = a.o.Sets.WithdrawHost(ctx, p.Org, host.ID, p.Name); err != nil {
			return nil, mapped(err)
		}
	}
	return connect.NewResponse(operatorv1.DisableHostResponse_builder{Retracted: uint32(retracted)}.Build()), nil //nolint:gosec // a count
}

// EnableHost implements HostService. Enabling a host that isn't disabled changes nothing.
func (a *API) EnableHost(ctx context.Context, req *connect.Request[operatorv1.EnableHostRequest]) (*connect.Response[operatorv1.EnableHostResponse], error) {
	p, host, err := a.callersHost(ctx, req.Msg.GetHost())
	if err != nil {
		return nil, err
	}
	audit.From(ctx).SetTargets(host.Name, host.ID)
	if _, err := a.o.Hosts.Enable(ctx, p.Org, host.ID, p.Name); err != nil {
		return nil, mapped(err)
	}
	return connect.NewResponse(&operatorv1.EnableHostResponse{}), nil
}
