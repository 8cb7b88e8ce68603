package agentapi_test

import (
	"crypto/ed25519"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/fleetban/fleetban/controlplane/internal/agentapi"
	"github.com/fleetban/fleetban/controlplane/internal/apierr"
	"github.com/fleetban/fleetban/controlplane/internal/audit"
	"github.com/fleetban/fleetban/controlplane/internal/auth"
	"github.com/fleetban/fleetban/controlplane/internal/feed"
	"github.com/fleetban/fleetban/controlplane/internal/hosts"
	"github.com/fleetban/fleetban/controlplane/internal/keys"
	"github.com/fleetban/fleetban/controlplane/internal/link"
	"github.com/fleetban/fleetban/controlplane/internal/metrics"
	"github.com/fleetban/fleetban/controlplane/internal/metrics/metricstest"
	"github.com/fleetban/fleetban/controlplane/internal/orgs"
	"github.com/fleetban/fleetban/controlplane/internal/seal"
	"github.com/fleetban/fleetban/controlplane/internal/sets"
	"github.com/fleetban/fleetban/controlplane/internal/store"
	"github.com/fleetban/fleetban/controlplane/internal/store/redistest"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/v1/fleetbanv1connect"
	"github.com/fleetban/fleetban/proto/wire/banset"
	"github.com/fleetban/fleetban/proto/wire/hostauth"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

// within is the longest that anything here may take, on a machine that runs many tests at once.
const within = time.Minute

// fleet is one Redis and what replicas share.
type fleet struct {
	t      *testing.T
	server *redistest.Server
	org    string
	orgs   *orgs.Orgs
	keys   *keys.Keys
	audit  *audit.Log
	// overHTTP has streams served as those are that come by a proxy.
	overHTTP bool
}

// replica is one control plane without the process around it.
type replica struct {
	*agentapi.Service

	fleet *fleet
	url   string
	// streams is where streams are served: by a link, as an agent's own connection is, or as url is, as one that a proxy carries on.
	streams string
	sets    *sets.Sets
	hosts   *hosts.Hosts
	feeds   *feed.Feeds
	store   *store.Store
	calls   func() int64 // that it made to Redis
	skew    time.Duration
	// metrics are the replica's own.
	metrics *metrics.Metrics
	http    *http.Server
	links   *links
}

func newFleet(t *testing.T) *fleet {
	t.Helper()
	return newFleetOn(t, redistest.Start(t))
}

func newFleetOn(t *testing.T, server *redistest.Server) *fleet {
	t.Helper()
	f := &fleet{t: t, server: server, keys: keys.New([32]byte{1}), overHTTP: os.Getenv("FLEETBAN_TEST_STREAMS") == "http"}
	f.orgs = orgs.New(f.server.Open(), seal.New(f.keys, seal.Options{}))
	made, err := f.orgs.First(t.Context(), "test", fleetbanv1.Mode_MODE_ENFORCE)
	if err != nil {
		t.Fatal(err)
	}
	f.org = made.Organisation.ID
	f.audit = audit.New(audit.Options{Store: f.server.Open(), Signer: f.keys})
	return f
}

type option func(*agentapi.Options)

func heartbeat(d time.Duration) option { return func(o *agentapi.Options) { o.Heartbeat = d } }

func (f *fleet) replica(name string, options ...option) *replica {
	f.t.Helper()
	t := f.t
	st, calls := f.server.OpenCounted()
	logger := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})).With("replica", name)
	r := &replica{fleet: f, store: st, calls: calls, metrics: metrics.New(metrics.Options{}), sets: sets.New(st, sets.Options{RebuildWindow: 5 * time.Second})}
	r.feeds = feed.New(feed.Options{Store: st, Sets: r.sets, Logger: logger, Metrics: r.metrics, Sign: func(org, set string, rec sets.Record) []byte {
		return f.keys.Sign(org, set, rec.Prefix, rec.Kind, rec.Since, rec.Expires)
	}})
	r.hosts = hosts.New(st, r.sets, logger)
	o := agentapi.Options{
		Replica: name, Keys: f.keys, Store: st, Sets: r.sets, Feeds: r.feeds, Hosts: r.hosts, Orgs: orgs.New(st, seal.New(f.keys, seal.Options{})),
		Logger: logger, Metrics: r.metrics, Audit: f.audit,
	}
	for _, set := range options {
		set(&o)
	}
	r.Service = agentapi.New(o)
	r.metrics.Observe(metrics.Sources{Agents: r.State, Sets: r.feeds.State})
	authn, err := auth.NewInterceptor(auth.Options{
		Services: []protoreflect.ServiceDescriptor{fleetbanv1.File_fleetban_v1_agent_proto.Services().ByName("AgentService")},
		Hosts:    r.Service, Limiter: auth.NewLimiter(st, auth.Limits{}, logger),
	})
	if err != nil {
		t.Fatal(err)
	}
	validation, err := auth.NewValidation()
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle(r.Handler(&apierr.Interceptor{Now: time.Now, Logger: logger}, authn, validation))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	protocols := &http.Protocols{}
	protocols.SetUnencryptedHTTP2(true)
	r.http = &http.Server{Handler: mux, Protocols: protocols, ReadHeaderTimeout: 10 * time.Second}
	r.url = "http://" + l.Addr().String()
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = r.http.Serve(l)
	}()
	r.streams = r.url
	if !f.overHTTP {
		r.links = listenForLinks(t, r.Service)
		r.streams = "http://" + r.links.Addr().String()
	}
	t.Cleanup(func() {
		if r.links != nil {
			r.links.close()
		}
		r.Close()
		_ = r.http.Close()
		<-served
		r.sets.Close()
		r.feeds.Close()
	})
	return r
}

// scrape reads what Prometheus would.
func (r *replica) scrape() metricstest.Samples {
	r.fleet.t.Helper()
	return metricstest.Scrape(r.fleet.t, r.metrics.Handler(slog.New(slog.DiscardHandler)))
}

// kill ends the replica as a power cut would: connections break, nothing is written.
func (r *replica) kill() {
	_ = r.store.Close()
	_ = r.http.Close()
	if r.links != nil {
		r.links.close()
	}
}

// links is a listener of agents' own connections, without TLS.
type links struct {
	net.Listener

	mu    sync.Mutex
	conns []net.Conn
	done  sync.WaitGroup
}

func listenForLinks(t *testing.T, s *agentapi.Service) *links {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	out := &links{Listener: l}
	out.done.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			out.mu.Lock()
			out.conns = append(out.conns, c)
			out.mu.Unlock()
			out.done.Go(func() {
				wire := link.NewWire(c)
				s.ServeLink(wire, wire)
			})
		}
	})
	return out
}

// close cuts all connections.
func (l *links) close() {
	_ = l.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.conns {
		_ = c.Close()
	}
}

// host is a host with an identity, and no stream yet.
type host struct {
	f                         *fleet
	key                       ed25519.PrivateKey
	id, name, grant, audience string
}

func client(t *testing.T, url string) fleetbanv1connect.AgentServiceClient {
	t.Helper()
	protocols := &http.Protocols{}
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: protocols}
	t.Cleanup(transport.CloseIdleConnections)
	return fleetbanv1connect.NewAgentServiceClient(&http.Client{Transport: transport}, url, connect.WithGRPC())
}

func (f *fleet) joinToken(n orgs.NewJoinToken) string {
	f.t.Helper()
	token, err := f.orgs.CreateJoinToken(f.t.Context(), f.org, n)
	if err != nil {
		f.t.Fatal(err)
	}
	return token.Secret
}

// enrol enrols a host through a replica.
func (r *replica) enrol(name string, tags map[string]string) *host {
	r.fleet.t.Helper()
	t := r.fleet.t
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := client(t, r.url).Enroll(t.Context(), connect.NewRequest(fleetbanv1.EnrollRequest_builder{
		JoinToken: r.fleet.joinToken(orgs.NewJoinToken{Tags: tags}), PublicKey: public, Name: name,
	}.Build()))
	if err != nil {
		t.Fatal(err)
	}
	return &host{f: r.fleet, key: private, id: res.Msg.GetHostId(), name: res.Msg.GetName(), grant: res.Msg.GetGrant(), audience: res.Msg.GetAudience()}
}

// session is one stream of a host.
type session struct {
	t       *testing.T
	stream  *connect.BidiStreamForClient[fleetbanv1.ConnectRequest, fleetbanv1.ConnectResponse]
	welcome *fleetbanv1.Welcome
	got     chan *fleetbanv1.ConnectResponse
	last    *fleetbanv1.ConnectResponse // that next returned

	mu  sync.Mutex
	err error
}

// dial opens a stream and sends Hello; err is what the first answer was instead of a Welcome.
func (h *host) dial(r *replica, hello fleetbanv1.Hello_builder) (*session, error) {
	h.f.t.Helper()
	assertion, err := hostauth.Sign(h.key, h.id, h.audience, time.Now().Add(r.skew))
	if err != nil {
		h.f.t.Fatal(err)
	}
	return h.dialWith(r, assertion, hello)
}

func (h *host) dialWith(r *replica, assertion string, hello fleetbanv1.Hello_builder) (*session, error) {
	t := h.f.t
	t.Helper()
	if hello.Instance == "" {
		hello.Instance = "instance"
	}
	if hello.Spool == "" {
		hello.Spool = "spool"
	}
	if hello.Protocol == 0 {
		hello.Protocol = agentapi.Protocol
	}
	s := &session{t: t, stream: client(t, r.streams).Connect(t.Context()), got: make(chan *fleetbanv1.ConnectResponse, 1000)}
	s.stream.RequestHeader().Set("Authorization", "Bearer "+assertion)
	s.stream.RequestHeader().Set(hostauth.GrantHeader, h.grant)
	s.send(fleetbanv1.ConnectRequest_builder{Hello: hello.Build()})
	first, err := s.stream.Receive()
	if err != nil {
		s.close()
		return nil, err
	}
	s.welcome = first.GetWelcome()
	if s.welcome == nil {
		t.Fatalf("the first message is %v", first)
	}
	t.Cleanup(s.close)
	go s.receive()
	return s, nil
}

func (h *host) connect(r *replica) *session {
	h.f.t.Helper()
	s, err := h.dial(r, fleetbanv1.Hello_builder{})
	if err != nil {
		h.f.t.Fatal(err)
	}
	return s
}

func (s *session) receive() {
	for {
		m, err := s.stream.Receive()
		if err != nil {
			s.mu.Lock()
			s.err = err
			s.mu.Unlock()
			close(s.got)
			return
		}
		s.got <- m
	}
}

func (s *session) close() {
	_ = s.stream.CloseRequest()
	_ = s.stream.CloseResponse()
}

func (s *session) send(b fleetbanv1.ConnectRequest_builder) { _ = s.stream.Send(b.Build()) }

// next waits for a message that ok wants; others are passed over.
func (s *session) next(what string, ok func(*fleetbanv1.ConnectResponse) bool) *fleetbanv1.ConnectResponse {
	s.t.Helper()
	timer := time.NewTimer(within)
	defer timer.Stop()
	for {
		select {
		case m, open := <-s.got:
			if !open {
				s.mu.Lock()
				defer s.mu.Unlock()
				s.t.Fatalf("the stream ended while waiting for %s: %v", what, s.err)
			}
			if ok(m) {
				s.last = m
				return m
			}
		case <-timer.C:
			s.t.Fatalf("never came: %s", what)
		}
	}
}

// ended waits until the stream ends, and returns why.
func (s *session) ended() error {
	s.t.Helper()
	timer := time.NewTimer(within)
	defer timer.Stop()
	for {
		select {
		case _, open := <-s.got:
			if !open {
				s.mu.Lock()
				defer s.mu.Unlock()
				return s.err
			}
		case <-timer.C:
			s.t.Fatal("the stream never ended")
		}
	}
}

// delta waits for a delta or a snapshot that makes the prefix what kind says, and returns the cursor it leads to.
func (s *session) delta(set, text string, kind fleetbanv1.RecordKind) *fleetbanv1.SetCursor {
	s.t.Helper()
	want := string(prefix.Pack(mustPrefix(text)))
	m := s.next(kind.String()+" "+text+" in "+set, func(m *fleetbanv1.ConnectResponse) bool {
		for _, r := range append(m.GetDelta().GetRecords(), m.GetSnapshot().GetRecords()...) {
			if m.GetDelta().GetSet()+m.GetSnapshot().GetSet() == set && string(r.GetPrefix()) == want && r.GetKind() == kind {
				return true
			}
		}
		return false
	})
	if d := m.GetDelta(); d != nil {
		return fleetbanv1.SetCursor_builder{Set: set, Epoch: d.GetEpoch(), Version: d.GetVersion(), Digest: d.GetDigest()}.Build()
	}
	p := m.GetSnapshot()
	return fleetbanv1.SetCursor_builder{Set: set, Epoch: p.GetEpoch(), Version: p.GetVersion(), Digest: p.GetDigest()}.Build()
}

func (s *session) ack(cursors ...*fleetbanv1.SetCursor) {
	s.send(fleetbanv1.ConnectRequest_builder{Ack: fleetbanv1.Ack_builder{Cursors: cursors}.Build()})
}

func (s *session) ban(seq uint64, jail, text string, d time.Duration) {
	s.send(fleetbanv1.ConnectRequest_builder{Events: fleetbanv1.EventBatch_builder{Spool: "spool", Events: []*fleetbanv1.Event{
		fleetbanv1.Event_builder{
			Seq: seq, Jail: jail, Prefix: prefix.Pack(mustPrefix(text)),
			Ban: fleetbanv1.ObservedBan_builder{DurationMs: d.Milliseconds(), Failures: 5}.Build(),
		}.Build(),
	}}.Build()})
}

func (s *session) eventAck(through uint64) {
	s.t.Helper()
	s.next("acknowledgement of event", func(m *fleetbanv1.ConnectResponse) bool { return m.GetEventAck().GetThrough() >= through })
}

func mustPrefix(text string) netip.Prefix {
	p, err := prefix.Parse(text)
	if err != nil {
		panic(err)
	}
	return p
}

func wantReason(t *testing.T, err error, code connect.Code, reason fleetbanv1.Reason) {
	t.Helper()
	info := apierr.Info(err)
	if err == nil || connect.CodeOf(err) != code || info.GetReason() != reason {
		t.Errorf("got %v with %v; want %v with %v", err, info, code, reason)
		return
	}
	if off := time.Since(time.UnixMilli(info.GetServerUnixMs())).Abs(); off > time.Minute {
		t.Errorf("server_unix_ms is %s off", off)
	}
}

func (r *replica) manual(text string, d time.Duration) sets.Cursor {
	r.fleet.t.Helper()
	res, err := r.sets.Ban(r.fleet.t.Context(), r.fleet.org, sets.BanInput{Prefixes: []netip.Prefix{mustPrefix(text)}, Set: banset.All, Duration: d, Actor: "test"})
	if err != nil {
		r.fleet.t.Fatal(err)
	}
	return res.Cursor
}
