package helper

import (
	"context"
	"errors"
	"time"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/agent/internal/footprint"
	"github.com/fleetban/fleetban/agent/internal/localrpc"
	"github.com/fleetban/fleetban/agent/internal/observe"
	"github.com/fleetban/fleetban/agent/internal/version"
	hostv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/host/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/host/v1/hostv1connect"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

// maxDuration bounds how long a person on the host may switch off or allow: ten years. Longer is "until further notice".
const maxDuration = 10 * 365 * 24 * time.Hour

// procedures is the closed list of verbs and who may call each.
func (h *Helper) procedures() []localrpc.Procedure {
	root, both := localrpc.Allow{0}, localrpc.Allow{0, h.runUID}
	return []localrpc.Procedure{
		localrpc.ServerStream(hostv1connect.HelperServiceObserveProcedure, both, h.observe),
		localrpc.Unary(hostv1connect.HelperServiceAckObservedProcedure, both, h.ackObserved),
		localrpc.Unary(hostv1connect.HelperServiceCursorsProcedure, both, h.cursors),
		localrpc.Unary(hostv1connect.HelperServiceApplyProcedure, both, h.apply),
		localrpc.Unary(hostv1connect.HelperServiceSetSessionProcedure, both, h.engine.SetSession),
		localrpc.ServerStream(hostv1connect.HelperServiceHeldProcedure, both, h.held),
		localrpc.Unary(hostv1connect.HelperServiceExecuteProcedure, both, h.execute),
		localrpc.ServerStream(hostv1connect.HelperServiceWatchHealthProcedure, both, h.watchHealth),
		localrpc.Unary(hostv1connect.HelperServiceStatusProcedure, both, h.status),
		localrpc.Unary(hostv1connect.HelperServiceTurnOffProcedure, root, h.turnOff),
		localrpc.Unary(hostv1connect.HelperServiceTurnOnProcedure, root, h.turnOn),
		localrpc.Unary(hostv1connect.HelperServiceAllowLocalProcedure, root, h.allowLocal),
	}
}

func (h *Helper) observe(ctx context.Context, req *hostv1.ObserveRequest, send func(*hostv1.ObserveResponse) error) error {
	sub := h.observer.Subscribe(observe.Position{Feed: req.GetFeed(), Through: req.GetThrough()})
	defer sub.Close()
	for {
		m, err := sub.Next(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return localrpc.NewError(connect.CodeAborted, fleetbanv1.Reason_REASON_STREAM_DISPLACED, err, "")
		}
		footprint.Worked(1 + len(m.GetBaseline().GetBanned()))
		if err := send(m); err != nil {
			return err
		}
	}
}

func (h *Helper) ackObserved(_ context.Context, req *hostv1.AckObservedRequest) (*hostv1.AckObservedResponse, error) {
	h.observer.Ack(observe.Position{Feed: req.GetFeed(), Through: req.GetThrough()})
	return &hostv1.AckObservedResponse{}, nil
}

func (h *Helper) cursors(context.Context, *hostv1.CursorsRequest) (*hostv1.CursorsResponse, error) {
	return hostv1.CursorsResponse_builder{Cursors: h.engine.Cursors()}.Build(), nil
}

// apply finishes what it began: a caller that goes away must not leave a set half applied.
func (h *Helper) apply(ctx context.Context, req *hostv1.ApplyRequest) (*hostv1.ApplyResponse, error) {
	footprint.Worked(1 + len(req.GetDelta().GetRecords()) + len(req.GetPage().GetRecords()))
	res, err := h.engine.Apply(context.WithoutCancel(ctx), req)
	if err != nil {
		return nil, localrpc.NewError(connect.CodeInvalidArgument, fleetbanv1.Reason_REASON_INVALID_FIELD, err, "")
	}
	return res, nil
}

func (h *Helper) held(_ context.Context, req *hostv1.HeldRequest, send func(*hostv1.HeldResponse) error) error {
	return h.engine.Held(req.GetSet(), req.GetAboveVersion(), func(records []*fleetbanv1.Record) error {
		return send(hostv1.HeldResponse_builder{Records: records}.Build())
	})
}

func (h *Helper) turnOff(ctx context.Context, req *hostv1.TurnOffRequest) (*hostv1.TurnOffResponse, error) {
	d, err := duration(req.GetDurationMs())
	if err != nil {
		return nil, err
	}
	until, err := h.engine.TurnOff(ctx, d)
	if err != nil {
		return nil, internal(err)
	}
	h.log.Warn("switched off by a person on this host", "uid", callerUID(ctx), "for", d.String())
	return hostv1.TurnOffResponse_builder{UntilUnixMs: until}.Build(), nil
}

func (h *Helper) turnOn(ctx context.Context, _ *hostv1.TurnOnRequest) (*hostv1.TurnOnResponse, error) {
	if err := h.engine.TurnOn(ctx); err != nil {
		return nil, internal(err)
	}
	h.log.Info("switched on by a person on this host", "uid", callerUID(ctx))
	return &hostv1.TurnOnResponse{}, nil
}

func (h *Helper) allowLocal(ctx context.Context, req *hostv1.AllowLocalRequest) (*hostv1.AllowLocalResponse, error) {
	p, err := prefix.Unpack(req.GetPrefix())
	if err != nil {
		return nil, localrpc.NewError(connect.CodeInvalidArgument, fleetbanv1.Reason_REASON_INVALID_FIELD, err, "Name an address or a prefix.")
	}
	d, err := duration(req.GetDurationMs())
	if err != nil {
		return nil, err
	}
	if err := h.engine.AllowLocal(ctx, p, d, req.GetRemove()); err != nil {
		return nil, internal(err)
	}
	h.log.Info("local exemption changed by a person on this host", "uid", callerUID(ctx), "prefix", p.String(), "removed", req.GetRemove())
	if req.GetRemove() {
		h.ignore.poke()
		return &hostv1.AllowLocalResponse{}, nil
	}
	// Enforcement is lifted whatever fail2ban says now; it is asked again until it answers.
	jails, err := h.ignore.lift(ctx, p)
	if err != nil {
		h.log.Warn("fail2ban couldn't be told of an exemption; it is told when it answers", "problem", err)
		h.ignore.poke()
	}
	return hostv1.AllowLocalResponse_builder{UnbannedIn: jails}.Build(), nil
}

func (h *Helper) status(ctx context.Context, req *hostv1.StatusRequest) (*hostv1.StatusResponse, error) {
	exceptions, total := h.engine.Exceptions()
	p := h.engine.Policy()
	findings := h.engine.Findings()
	if req.GetDoctor() {
		findings = h.examine(ctx)
	}
	return hostv1.StatusResponse_builder{
		Version: version.Version, Fail2Ban: h.observer.Health(), Enforcer: h.engine.Health(), Sets: h.engine.Sets(),
		Exceptions: exceptions, ExceptionsTotal: total, PolicyPath: p.Path, PolicyLevel: p.Policy.Level.String(),
		LocalAllows: h.engine.LocalAllows(), Findings: findings, Settings: h.engine.Settings(),
		Incidents: h.lately.Incidents(),
	}.Build(), nil
}

// healthPause is the least time between two messages of a health stream.
const healthPause = 100 * time.Millisecond

func (h *Helper) watchHealth(ctx context.Context, _ *hostv1.WatchHealthRequest, send func(*hostv1.WatchHealthResponse) error) error {
	defer h.agent.attend(h.log, &h.lately)()
	for {
		// Taken before reading, so that no change in between is missed.
		engine, observer := h.engine.Changed(), h.observer.HealthChanged()
		exceptions, total := h.engine.Exceptions()
		err := send(hostv1.WatchHealthResponse_builder{
			Fail2Ban: h.observer.Health(), Enforcer: h.engine.Health(), PolicyLevel: h.engine.Policy().Policy.Level.String(),
			Exceptions: exceptions, ExceptionsTotal: total, Findings: h.findings.of(ctx, h),
		}.Build())
		if err != nil {
			return err
		}
		select {
		case <-engine:
		case <-observer:
		case <-time.After(findingsEvery):
		case <-ctx.Done():
			return ctx.Err()
		}
		select {
		case <-time.After(healthPause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// duration reads milliseconds of a request: 0 is "until further notice".
func duration(ms int64) (time.Duration, error) {
	if ms < 0 || ms > maxDuration.Milliseconds() {
		return 0, localrpc.NewError(connect.CodeInvalidArgument, fleetbanv1.Reason_REASON_INVALID_FIELD,
			errors.New("that duration is negative or longer than ten years"), "Leave --for away to mean until further notice.")
	}
	return time.Duration(ms) * time.Millisecond, nil
}

func internal(err error) error {
	return localrpc.NewError(connect.CodeInternal, fleetbanv1.Reason_REASON_INTERNAL, err, "Look for more with: fleetban-agent doctor")
}

func callerUID(ctx context.Context) uint32 {
	p, _ := localrpc.PeerFrom(ctx)
	return p.UID
}
