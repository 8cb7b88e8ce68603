// Package run is the agent's unprivileged half: it joins the stream to the control plane, the spool of events and the
// helper, and answers `fleetban-agent status`.
//
//	fail2ban ◀─▶ helper ── Observe, WatchHealth ──▶ link ──▶ spool ──▶ stream ──▶ control plane
//	                ▲                                                    │
//	                └───── Apply, SetSession, Execute, Held ◀── link ◀───┘
//
// Each part may be away for as long as it likes: without the helper the stream stays up and says so; without the control
// plane the helper goes on enforcing and the spool goes on filling.
package run

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/fleetban/fleetban/agent/internal/footprint"
	"github.com/fleetban/fleetban/agent/internal/identity"
	"github.com/fleetban/fleetban/agent/internal/lately"
	"github.com/fleetban/fleetban/agent/internal/localrpc"
	"github.com/fleetban/fleetban/agent/internal/spool"
	"github.com/fleetban/fleetban/agent/internal/version"
	"github.com/fleetban/fleetban/agent/stream"
	hostv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/host/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/host/v1/hostv1connect"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// Config is what `run` is started with.
type Config struct {
	// StateDir holds the identity and the spool.
	StateDir string
	// HelperSocket is where HelperService is served, Socket where RunService will be.
	HelperSocket, Socket string
	Log                  *slog.Logger
	// RotateKeyEvery is how old the host's key may be; 0: it stays.
	RotateKeyEvery time.Duration
	// callAtMost bounds calls of the helper; 0: 30 s. Tests don't wait that long.
	callAtMost time.Duration
}

// firstHelper is how long the first Hello waits for the helper, so that it can say what is held.
const firstHelper = 5 * time.Second

// Runner is the running process.
type Runner struct {
	log    *slog.Logger
	id     *identity.Identity
	spool  *spool.Spool
	client *stream.Client
	link   *link
	lately lately.Log
}

// Run runs until ctx ends. ready, if not nil, is called once it answers on its socket.
func Run(ctx context.Context, cfg Config, ready func()) error {
	footprint.Limit()
	id, err := identity.Load(cfg.StateDir)
	if err != nil {
		return err
	}
	tlsConfig, err := id.TLS()
	if err != nil {
		return err
	}
	u, err := identity.ParseURL(id.URL)
	if err != nil {
		return err
	}
	r := &Runner{log: cfg.Log, id: id}
	if r.spool, err = spool.Open(cfg.StateDir, spool.Options{}); err != nil {
		return err
	}
	defer r.spool.Close() //nolint:errcheck // each event was synced when it was written
	r.lately.Log = cfg.Log
	r.link = newLink(cfg.HelperSocket, r.spool, u.Hostname(), cfg.Log)
	r.link.lately = &r.lately
	if cfg.callAtMost > 0 {
		r.link.callAtMost = cfg.callAtMost
	}
	r.client = stream.New(stream.Config{
		URL: u, TLS: tlsConfig, Proxy: http.ProxyFromEnvironment, Key: id.Key, HostID: id.HostID, Audience: id.Audience, Grant: id.Grant,
		Credentials: r.credentials(cfg.StateDir),
		Instance:    instance(), Facts: identity.Facts, Health: r.health, Sink: r.link, Source: r.spool, Log: cfg.Log, Lately: &r.lately,
	})
	r.link.healthChanged, r.link.exceptionsChanged, r.link.back = r.client.HealthChanged, r.client.ExceptionsChanged, r.client.Resync

	server, err := localrpc.Listen(ctx, cfg.Socket, localrpc.SocketOptions{Mode: 0o660, UID: -1, GID: -1}, cfg.Log,
		localrpc.Unary(hostv1connect.RunServiceStatusProcedure, localrpc.Allow{0, uint32(os.Getuid())}, r.status)) //nolint:gosec // a uid
	if err != nil {
		return err
	}
	if ready != nil {
		ready()
	}
	r.log.Info("agent is up", "host", id.HostName, "organisation", id.Organisation, "url", id.URL)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	parts := []func(context.Context) error{server.Serve, r.link.run, r.keepStream, func(ctx context.Context) error { return r.keepKey(ctx, cfg) }}
	errs := make([]error, len(parts))
	for i, part := range parts {
		wg.Go(func() {
			defer cancel()
			if err := part(ctx); err != nil && !errors.Is(err, context.Canceled) {
				errs[i] = err
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// keepStream waits a little for the helper, then keeps the stream whether it is there or not.
func (r *Runner) keepStream(ctx context.Context) error {
	select {
	case <-r.link.first:
	case <-time.After(firstHelper):
	case <-ctx.Done():
		return ctx.Err()
	}
	return r.client.Run(ctx)
}

// credentials are read for each stream: fleetban-agent rotate-key changes them beside this process.
func (r *Runner) credentials(dir string) func(context.Context) (ed25519.PrivateKey, string) {
	return func(ctx context.Context) (ed25519.PrivateKey, string) {
		if now, err := identity.Settle(ctx, dir); err == nil && now.HostID == r.id.HostID && now.URL == r.id.URL {
			return now.Key, now.Grant
		}
		return r.id.Key, r.id.Grant
	}
}

// keyLook is how often the key's age is looked at; a change that failed is tried again then.
const keyLook = time.Hour

// keepKey changes the key when it is old, while the control plane can be asked. The stream ends by it and is made anew.
func (r *Runner) keepKey(ctx context.Context, cfg Config) error {
	look := time.NewTicker(min(keyLook, max(cfg.RotateKeyEvery/4, time.Second)))
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-look.C:
		}
		if cfg.RotateKeyEvery <= 0 || identity.KeyAge(cfg.StateDir) < cfg.RotateKeyEvery || !r.client.Status().Connected {
			continue
		}
		if _, err := identity.Rotate(ctx, cfg.StateDir, -1, -1); err != nil {
			r.log.Warn("the host's key is old and could not be changed; trying again in an hour", "error", err)
			continue
		}
		r.log.Info("the host has a new key; the former one is refused from now on")
	}
}

// health is what the control plane is told.
func (r *Runner) health() *fleetbanv1.Health {
	b := fleetbanv1.Health_builder{Spool: r.spool.Health()}
	h, problem := r.link.health()
	if h != nil {
		b.Fail2Ban, b.Enforcer, b.PolicyLevel, b.Findings = h.GetFail2Ban(), h.GetEnforcer(), h.GetPolicyLevel(), h.GetFindings()
	}
	if problem != "" {
		b.Findings = append(b.Findings[:len(b.Findings):len(b.Findings)], fleetbanv1.Finding_builder{
			Severity: fleetbanv1.Finding_SEVERITY_ERROR, Code: "helper-away", Problem: problem,
			Fix: "See what it says and start it: journalctl -u fleetban-helper; systemctl restart fleetban-helper.",
		}.Build())
	}
	return b.Build()
}

func (r *Runner) status(context.Context, *hostv1.RunStatusRequest) (*hostv1.RunStatusResponse, error) {
	s := r.client.Status()
	acked, last := r.spool.Positions()
	_, problem := r.link.health()
	b := hostv1.RunStatusResponse_builder{
		Version: version.Version, HostId: r.id.HostID, HostName: r.id.HostName, OrganisationName: r.id.Organisation, Url: r.id.URL,
		Stream: hostv1.StreamStatus_builder{
			Connected: s.Connected, Replica: s.Replica, SinceUnixMs: s.Since.UnixMilli(), Problem: s.Problem,
			Reconnects: s.Reconnects, RoundTripUs: uint32(s.RoundTrip.Microseconds()), //nolint:gosec // seconds at most
		}.Build(),
		Spool: r.spool.Health(), HelperConnected: problem == "", HelperProblem: problem,
		EventsThrough: acked, EventsLast: last, ClockOffsetMs: s.Offset.Milliseconds(), Cursors: s.Cursors,
		Incidents: r.lately.Incidents(),
	}
	if !s.StoreAway.IsZero() {
		b.Stream.SetStoreAwaySinceUnixMs(s.StoreAway.UnixMilli())
	}
	if s.HostName != "" {
		b.HostName, b.OrganisationName = s.HostName, s.Organisation
	}
	if !s.Retry.IsZero() {
		b.Stream.SetRetryUnixMs(s.Retry.UnixMilli())
	}
	return b.Build(), nil
}

func instance() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// unreachable says what is wrong with the helper, for a person.
func unreachable(err error) string {
	var u *localrpc.UnreachableError
	if errors.As(err, &u) {
		return u.Error()
	}
	return fmt.Sprintf("the helper: %v", err)
}
