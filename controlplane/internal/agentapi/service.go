// Package agentapi serves AgentService: enrolment, and the one long-lived stream of each agent.
//
//	agent ── Hello ──▶ verify ─▶ attach (fence) ─▶ Welcome ─▶ ┌ reader: events, acks, health, offers, results
//	                                                          └ writer: what the feed has, and what is noted for it
//
// The reader runs in the handler; what it wants sent it notes in the stream's mailbox, which holds the latest of each kind
// and so never grows. The writer sends the mailbox and the feed's frames, which all streams of the replica share. An
// agent's own connection is served by package link, and a few goroutines write for all such streams (see pump); a stream that
// comes another way, by a proxy that ends its TLS, has a goroutine that writes. Silence, heartbeats and retries of all streams are
// looked after by one ticker.
//
// All streams of one organisation on this replica share a tenant: its feed, its settings, and the batches that go to
// Redis: one for acknowledgements, one for presence, one for health.
//
// Loss of Redis drops no stream. A batch of events is recorded before the next message is read, however long that takes:
// what isn't acknowledged stays in the agent's spool. When Redis is back without its data, hosts are attached anew under
// the streams that stand.
package agentapi

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/fleetban/fleetban/controlplane/internal/apierr"
	"github.com/fleetban/fleetban/controlplane/internal/audit"
	"github.com/fleetban/fleetban/controlplane/internal/feed"
	"github.com/fleetban/fleetban/controlplane/internal/hosts"
	"github.com/fleetban/fleetban/controlplane/internal/keys"
	"github.com/fleetban/fleetban/controlplane/internal/metrics"
	"github.com/fleetban/fleetban/controlplane/internal/orgs"
	"github.com/fleetban/fleetban/controlplane/internal/sets"
	"github.com/fleetban/fleetban/controlplane/internal/store"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/v1/fleetbanv1connect"
)

const (
	// Protocol is the one that this server speaks.
	Protocol = 1
	// MaxMessage bounds one message of an agent, bytes.
	MaxMessage = 1 << 20

	// silentAfter is how many heartbeats may be missing before the peer counts as gone.
	silentAfter = 2.5
	helloWithin = 10 * time.Second
	touchEvery  = 10 * time.Second
)

// Options of New. All but the marked fields are required.
type Options struct {
	// Replica names this process to people and to the route of hosts; no two of a fleet may be the same.
	Replica string
	Keys    *keys.Keys
	Store   *store.Store
	Sets    *sets.Sets
	Feeds   *feed.Feeds
	Hosts   *hosts.Hosts
	Orgs    *orgs.Orgs
	// Now is the server's clock; optional, default time.Now.
	Now func() time.Time
	// Told is the server's clock as hosts are told it, which may be set back, and how often it was set; optional, default Now.
	Told func() (at time.Time, steps uint32)
	// Heartbeat is how often each side speaks when it has nothing to say, at most 25 s; optional, default 20 s.
	Heartbeat time.Duration
	// ClientCAs are the authorities of hosts' client certificates; nil where hosts need none.
	ClientCAs func() *x509.CertPool
	// Audit records who enrolled, changed keys, was quarantined. Nil, in tests, records nothing.
	Audit *audit.Log
	// Logger and Metrics are optional.
	Logger  *slog.Logger
	Metrics *metrics.Metrics
}

// Service implements AgentService. Safe for concurrent use.
type Service struct {
	Options

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup
	// storeAway is what hosts are told of Redis.
	storeAway atomic.Bool
	pump      *pump
	// Of links; set by Handler.
	interceptors  []connect.Interceptor
	connectSchema protoreflect.MethodDescriptor

	mu       sync.Mutex
	tenants  map[string]*tenant
	streams  map[*stream]struct{}
	changed  chan struct{} // closed and replaced when a stream ends
	draining bool
	closing  bool
}

var _ fleetbanv1connect.AgentServiceHandler = (*handlerStub)(nil)

// handlerStub states that the generated interface is the one this package serves; Connect is registered by hand, for
// its frames are encoded once for all streams.
type handlerStub struct {
	*Service
	fleetbanv1connect.UnimplementedAgentServiceHandler
}

// Enroll resolves the ambiguity of the two embedded ones.
func (h *handlerStub) Enroll(ctx context.Context, r *connect.Request[fleetbanv1.EnrollRequest]) (*connect.Response[fleetbanv1.EnrollResponse], error) {
	return h.Service.Enroll(ctx, r)
}

// RotateKey resolves the ambiguity of the two embedded ones.
func (h *handlerStub) RotateKey(ctx context.Context, r *connect.Request[fleetbanv1.RotateKeyRequest]) (*connect.Response[fleetbanv1.RotateKeyResponse], error) {
	return h.Service.RotateKey(ctx, r)
}

// Connect resolves the ambiguity of the two embedded ones.
func (h *handlerStub) Connect(ctx context.Context, s *connect.BidiStream[fleetbanv1.ConnectRequest, fleetbanv1.ConnectResponse]) error {
	return h.UnimplementedAgentServiceHandler.Connect(ctx, s)
}

// New makes a Service; Close ends it.
func New(o Options) *Service {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Told == nil {
		o.Told = func() (time.Time, uint32) { return o.Now(), 0 }
	}
	if o.Heartbeat <= 0 || o.Heartbeat > 25*time.Second {
		o.Heartbeat = 20 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &Service{
		Options: o, ctx: ctx, cancel: cancel,
		tenants: map[string]*tenant{}, streams: map[*stream]struct{}{}, changed: make(chan struct{}),
		pump: newPump(max(2, runtime.GOMAXPROCS(0))),
	}
	s.wg.Go(s.watch)
	s.wg.Go(s.watchStore)
	return s
}

// Descriptor is what the service serves.
func Descriptor() protoreflect.ServiceDescriptor {
	return fleetbanv1.File_fleetban_v1_agent_proto.Services().ByName("AgentService")
}

// Handler serves the service's paths. The interceptors must authenticate with s.AuthenticateHost, check messages against
// the rules of their protos, and map errors.
func (s *Service) Handler(interceptors ...connect.Interceptor) (string, http.Handler) {
	methods := Descriptor().Methods()
	options := []connect.HandlerOption{
		connect.WithInterceptors(interceptors...),
		connect.WithReadMaxBytes(MaxMessage),
		// Frames are shared, small, and full of MACs: compressing them for each stream would cost more than it saves.
		connect.WithCompressMinBytes(1 << 30),
	}
	rotate := connect.NewUnaryHandler(fleetbanv1connect.AgentServiceRotateKeyProcedure, s.RotateKey,
		connect.WithSchema(methods.ByName("RotateKey")), connect.WithHandlerOptions(options...))
	enroll := connect.NewUnaryHandler(fleetbanv1connect.AgentServiceEnrollProcedure, s.Enroll,
		connect.WithSchema(methods.ByName("Enroll")), connect.WithHandlerOptions(options...))
	s.interceptors, s.connectSchema = interceptors, methods.ByName("Connect")
	overHTTP := func(ctx context.Context, conn *connect.BidiStream[fleetbanv1.ConnectRequest, outgoing]) error {
		if c, ok := ctx.Value(controllerKey{}).(*http.ResponseController); ok {
			return s.connect(ctx, served{conn}, c, nil)
		}
		return s.connect(ctx, served{conn}, nil, nil)
	}
	stream := connect.NewBidiStreamHandler(fleetbanv1connect.AgentServiceConnectProcedure, overHTTP,
		connect.WithSchema(methods.ByName("Connect")), connect.WithHandlerOptions(options...), connect.WithCodec(frameCodec{}))
	return "/" + fleetbanv1connect.AgentServiceName + "/", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := withCertificates(r.Context(), r.TLS)
		switch r.URL.Path {
		case fleetbanv1connect.AgentServiceEnrollProcedure:
			enroll.ServeHTTP(w, r)
		case fleetbanv1connect.AgentServiceRotateKeyProcedure:
			rotate.ServeHTTP(w, r.WithContext(ctx))
		case fleetbanv1connect.AgentServiceConnectProcedure:
			controller := http.NewResponseController(w)
			stream.ServeHTTP(w, r.WithContext(context.WithValue(ctx, controllerKey{}, controller)))
		default:
			http.NotFound(w, r)
		}
	})
}

// controllerKey finds the http.ResponseController of a stream: its deadlines are what unblocks a Receive.
type controllerKey struct{}

// watch beats for all streams, and ends those that fell silent.
func (s *Service) watch() {
	tick := time.NewTicker(max(s.Heartbeat/20, 20*time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case now := <-tick.C:
			s.mu.Lock()
			for st := range s.streams {
				st.tick(now)
			}
			s.mu.Unlock()
		}
	}
}

func (s *Service) add(st *stream) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining {
		return errDraining
	}
	s.streams[st] = struct{}{}
	return nil
}

func (s *Service) remove(st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.streams, st)
	close(s.changed)
	s.changed = make(chan struct{})
}

// Drain refuses new streams, asks the agents to go elsewhere within window, spread evenly, and returns when they have,
// or window and grace are over; those that stayed are ended then.
func (s *Service) Drain(ctx context.Context, window, grace time.Duration) {
	s.mu.Lock()
	s.draining = true
	for st := range s.streams {
		after := time.Duration(0)
		if window > 0 {
			after = rand.N(window) //nolint:gosec // spreads load, keeps no secret
		}
		st.note(func(m *mailbox) { m.drain = &after })
	}
	left := len(s.streams)
	s.mu.Unlock()
	s.Logger.Info("draining streams", slog.Int("streams", left), slog.Duration("window", window))
	ctx, cancel := context.WithTimeout(ctx, window+grace)
	defer cancel()
	s.waitEmpty(ctx)
	s.mu.Lock()
	for st := range s.streams {
		st.end(errDraining, "its replica was shut down")
	}
	s.mu.Unlock()
	last, cancelLast := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
	defer cancelLast()
	s.waitEmpty(last)
}

func (s *Service) waitEmpty(ctx context.Context) {
	for {
		s.mu.Lock()
		left, changed := len(s.streams), s.changed
		s.mu.Unlock()
		if left == 0 {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// Close ends every stream at once and waits for what it started. The HTTP server must not route to it any more.
func (s *Service) Close() {
	s.Drain(s.ctx, 0, 0)
	s.mu.Lock()
	s.closing = true
	s.mu.Unlock()
	s.cancel()
	s.wg.Wait()
	s.pump.close()
}

// Errors that end streams.
var (
	errDraining = apierr.New(connect.CodeUnavailable, fleetbanv1.Reason_REASON_SHUTTING_DOWN, "",
		"this replica is being shut down", "connect again: another one serves")
	errDisplaced = apierr.New(connect.CodeAborted, fleetbanv1.Reason_REASON_STREAM_DISPLACED, "",
		"a newer stream of this host took over", "nothing needs to be done, unless it happens again and again: then two agents use this identity")
	errHostDeleted = apierr.New(connect.CodePermissionDenied, fleetbanv1.Reason_REASON_HOST_DISABLED, "",
		"this host was removed from the fleet", "to join again, enrol it with a new join token: fleetban-agent enroll --force")
	errHostDisabled = apierr.New(connect.CodePermissionDenied, fleetbanv1.Reason_REASON_HOST_DISABLED, "",
		"this host was disabled by a person", "fleetban hosts enable NAME lets it in again; what it enforces stays as it is")
	errSilent = apierr.New(connect.CodeDeadlineExceeded, fleetbanv1.Reason_REASON_UNSPECIFIED, "",
		"nothing was heard from the host for too long", "connect again")
	errSlow = apierr.New(connect.CodeDeadlineExceeded, fleetbanv1.Reason_REASON_UNSPECIFIED, "",
		"the host does not take what is sent to it", "connect again")
)

func clonedError(cause string) error {
	return apierr.New(connect.CodePermissionDenied, fleetbanv1.Reason_REASON_HOST_CLONED, "", cause,
		"enrol the copy anew (fleetban-agent enroll --force), then: fleetban hosts release NAME")
}

// isStore reports whether err means that Redis is away and the same may be tried again.
func isStore(err error) bool {
	return errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrOutcomeUnknown)
}
