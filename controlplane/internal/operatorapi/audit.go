package operatorapi

import (
	"context"
	"errors"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/controlplane/internal/apierr"
	"github.com/fleetban/fleetban/controlplane/internal/audit"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
)

// ListAudit implements AuditService.
func (a *API) ListAudit(ctx context.Context, req *connect.Request[operatorv1.ListAuditRequest]) (*connect.Response[operatorv1.ListAuditResponse], error) {
	p, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	page, next, err := a.o.Audit.List(ctx, p.Org, auditFilter(req.Msg.GetFilter()), int(req.Msg.GetPageSize()), req.Msg.GetPageToken())
	if errors.Is(err, audit.ErrInvalid) {
		return nil, apierr.Invalid("page_token", "the page token is not one that a list gave", "begin again without it")
	} else if err != nil {
		return nil, mapped(err)
	}
	return connect.NewResponse(operatorv1.ListAuditResponse_builder{Entries: page, NextPageToken: next}.Build()), nil
}

// ExportAudit implements AuditService.
func (a *API) ExportAudit(
	ctx context.Context, req *connect.Request[operatorv1.ExportAuditRequest], stream *connect.ServerStream[operatorv1.ExportAuditResponse],
) error {
	p, err := caller(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := a.streaming(ctx)
	defer cancel()
	return ended(ctx, a.o.Audit.Each(ctx, p.Org, auditFilter(req.Msg.GetFilter()), func(e *operatorv1.AuditEntry) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		return stream.Send(operatorv1.ExportAuditResponse_builder{Entry: e}.Build())
	}))
}

// VerifyAudit implements AuditService.
func (a *API) VerifyAudit(
	ctx context.Context, req *connect.Request[operatorv1.VerifyAuditRequest],
) (*connect.Response[operatorv1.VerifyAuditResponse], error) {
	p, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	result, err := a.o.Audit.Verify(ctx, p.Org, audit.Head{Number: req.Msg.GetHeadNumber(), Hash: req.Msg.GetHeadHash()})
	switch {
	case errors.Is(err, audit.ErrInvalid):
		return nil, apierr.Invalid("head_hash", err.Error(), "give both as an earlier VerifyAudit told them")
	case errors.Is(err, audit.ErrDropped):
		return nil, apierr.NotFound("head_number", err.Error(), "verify without it, and note the head more often than entries are dropped")
	case err != nil:
		return nil, mapped(err)
	}
	return connect.NewResponse(result), nil
}

func auditFilter(f *operatorv1.AuditFilter) audit.Filter {
	return audit.Filter{Actor: f.GetActor(), Action: f.GetAction(), Target: f.GetTarget(), Since: f.GetSinceUnixMs(), Until: f.GetUntilUnixMs()}
}
