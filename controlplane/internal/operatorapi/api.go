// Package operatorapi is the transport of fleetban/operator/v1: it parses what people and their programs ask into the
// types of the domain packages, asks those, and puts the answers into words. The organisation is always the caller's;
// no message names one.
package operatorapi

import (
	"context"
	"errors"
	"log/slog"
	"net/http"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/fleetban/fleetban/controlplane/internal/apierr"
	"github.com/fleetban/fleetban/controlplane/internal/audit"
	"github.com/fleetban/fleetban/controlplane/internal/auth"
	"github.com/fleetban/fleetban/controlplane/internal/feed"
	"github.com/fleetban/fleetban/controlplane/internal/hosts"
	"github.com/fleetban/fleetban/controlplane/internal/insight"
	"github.com/fleetban/fleetban/controlplane/internal/leases"
	"github.com/fleetban/fleetban/controlplane/internal/orgs"
	"github.com/fleetban/fleetban/controlplane/internal/sets"
	"github.com/fleetban/fleetban/controlplane/internal/store"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1/operatorv1connect"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// Options are what the API works with.
type Options struct {
	Sets  *sets.Sets
	Hosts *hosts.Hosts
	Orgs  *orgs.Orgs
	Feeds *feed.Feeds
	Audit *audit.Log
	// Insight answers searches. New makes one where none is given.
	Insight *insight.Insight
	// InstallLine is the line that enrols a host: see package installer.
	InstallLine string
	// Durability says what Redis promises: "always", "everysec", "none", "replicated".
	Durability func(ctx context.Context) string
	// Leases says which replica does what one does for all. Optional.
	Leases func(ctx context.Context) []leases.State
	// Draining is closed when the replica is about to go: streams end and their clients go to another.
	Draining <-chan struct{}
	// Logger; default slog.Default().
	Logger *slog.Logger
}

// API serves all services of fleetban/operator/v1. Each request must have passed the interceptors of packages apierr
// and auth.
type API struct{ o Options }

var (
	_ operatorv1connect.BanServiceHandler       = (*API)(nil)
	_ operatorv1connect.AllowlistServiceHandler = (*API)(nil)
	_ operatorv1connect.FleetServiceHandler     = (*API)(nil)
	_ operatorv1connect.HostServiceHandler      = (*API)(nil)
	_ operatorv1connect.JoinTokenServiceHandler = (*API)(nil)
	_ operatorv1connect.AuditServiceHandler     = (*API)(nil)
	_ operatorv1connect.InsightServiceHandler   = (*API)(nil)
)

// New makes an API.
func New(o Options) *API {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Durability == nil {
		o.Durability = func(context.Context) string { return "" }
	}
	if o.Leases == nil {
		o.Leases = func(context.Context) []leases.State { return nil }
	}
	if o.Insight == nil {
		o.Insight = insight.New(o.Sets)
	}
	return &API{o: o}
}

// Services are what Register serves, for auth.NewInterceptor.
func Services() []protoreflect.ServiceDescriptor {
	var out []protoreflect.ServiceDescriptor
	for _, file := range []protoreflect.FileDescriptor{
		operatorv1.File_fleetban_operator_v1_operator_proto, operatorv1.File_fleetban_operator_v1_audit_proto,
		operatorv1.File_fleetban_operator_v1_people_proto, operatorv1.File_fleetban_operator_v1_setup_proto, operatorv1.File_fleetban_operator_v1_sso_proto,
		operatorv1.File_fleetban_operator_v1_factors_proto, operatorv1.File_fleetban_operator_v1_tokens_proto, operatorv1.File_fleetban_operator_v1_approvals_proto,
		operatorv1.File_fleetban_operator_v1_insight_proto, operatorv1.File_fleetban_operator_v1_terminal_proto,
	} {
		for i := range file.Services().Len() {
			out = append(out, file.Services().Get(i))
		}
	}
	return out
}

// Register puts every service on mux.
func (a *API) Register(mux *http.ServeMux, options ...connect.HandlerOption) {
	mux.Handle(operatorv1connect.NewBanServiceHandler(a, options...))
	mux.Handle(operatorv1connect.NewAllowlistServiceHandler(a, options...))
	mux.Handle(operatorv1connect.NewFleetServiceHandler(a, options...))
	mux.Handle(operatorv1connect.NewHostServiceHandler(a, options...))
	mux.Handle(operatorv1connect.NewJoinTokenServiceHandler(a, options...))
	mux.Handle(operatorv1connect.NewInsightServiceHandler(a, options...))
	mux.Handle(operatorv1connect.NewAuditServiceHandler(a, options...))
}

// caller is whom the interceptor let through.
func caller(ctx context.Context) (auth.Principal, error) {
	p, ok := auth.From(ctx)
	if !ok || p.Org == "" {
		return p, errors.New("the auth interceptor doesn't stand before this handler")
	}
	return p, nil
}

// errDraining ends streams of a replica that goes.
var errDraining = apierr.New(connect.CodeUnavailable, fleetbanv1.Reason_REASON_SHUTTING_DOWN, "",
	"this replica is going", "open the stream again: another one serves it")

// streaming is ctx that also ends when the replica drains.
func (a *API) streaming(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := make(chan struct{})
	go func() {
		select {
		case <-a.o.Draining:
			cancel(errDraining)
		case <-stop:
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		close(stop)
		cancel(nil)
	}
}

// ended is the error of a stream that ended with err.
func ended(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); errors.Is(cause, errDraining) {
		return errDraining
	}
	return mapped(err)
}

// mapped says what callers see of the domain packages' errors; those of the store are mapped by package apierr.
func mapped(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, hosts.ErrNotFound):
		return apierr.NotFound("host", "there is no such host", "fleetban hosts lists them")
	case errors.Is(err, orgs.ErrNotFound):
		return apierr.NotFound("", "there is no such thing", "list what there is")
	case errors.Is(err, sets.ErrPageToken):
		return apierr.Invalid("page_token", "the page token is not one that a list gave", "begin again without it")
	case errors.Is(err, sets.ErrFull):
		return apierr.Wrap(err, connect.CodeResourceExhausted, fleetbanv1.Reason_REASON_STORE_UNAVAILABLE, "",
			"Redis is out of memory; nothing was changed", "raise its maxmemory, or unban to free some: unban works")
	case errors.Is(err, sets.ErrPolicyChanged):
		return apierr.Wrap(err, connect.CodeAborted, fleetbanv1.Reason_REASON_POLICY_CHANGED, "",
			"the policy changed meanwhile; nothing was changed", "try again")
	case errors.Is(err, sets.ErrClosed):
		return apierr.Wrap(err, connect.CodeUnavailable, fleetbanv1.Reason_REASON_SHUTTING_DOWN, "",
			"this replica is going; nothing was changed", "try again")
	case errors.Is(err, sets.ErrInvalid), errors.Is(err, sets.ErrTooLarge), errors.Is(err, orgs.ErrInvalid):
		return apierr.Wrap(err, connect.CodeInvalidArgument, fleetbanv1.Reason_REASON_INVALID_FIELD, "", err.Error(), "correct the request")
	default:
		return err
	}
}

// event tells the organisation's watchers. What it tells of stands, whether or not it can be told.
func (a *API) event(ctx context.Context, p auth.Principal, kind operatorv1.FleetEventKind, reason string, expires int64) {
	err := a.o.Sets.AppendEvent(context.WithoutCancel(ctx), p.Org, sets.FleetEvent{Kind: kind, Actor: p.Name, Reason: reason, Expires: expires})
	if err != nil {
		a.o.Logger.WarnContext(ctx, "event not recorded", slog.String("organisation", p.Org), slog.String("kind", kind.String()), slog.Any("error", err))
	}
}

// bell listens to an organisation's doorbell; release it.
func (a *API) bell(org string) (*feed.Feed, func()) { return a.o.Feeds.Acquire(org) }

// rings returns a channel that receives, one at most, when one of the kinds rang.
func rings(f *feed.Feed, kinds ...store.BellKind) (rung <-chan struct{}, stop func()) {
	out := make(chan struct{}, 1)
	stop = f.Listen(func(b store.Bell) {
		for _, k := range kinds {
			if b.Kind == k {
				select {
				case out <- struct{}{}:
				default:
				}
			}
		}
	})
	return out, stop
}
