package server_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/agent/stream"
	"github.com/fleetban/fleetban/controlplane/internal/requestid"
	"github.com/fleetban/fleetban/controlplane/internal/server"
	"github.com/fleetban/fleetban/controlplane/internal/store/redistest"
	"github.com/fleetban/fleetban/controlplane/internal/testwait"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1/operatorv1connect"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/v1/fleetbanv1connect"
	"github.com/fleetban/fleetban/proto/wire/banset"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

const within = time.Minute

var apiToken = regexp.MustCompile(`\bfbt_[0-9A-Za-z]+\b`)

// buffer is a bytes.Buffer that several may write.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// process is one control plane, as `serve` runs it.
type process struct {
	*server.Server

	notices, log *buffer
	stop         context.CancelFunc
	done         chan struct{}
}

func (p *process) addr() string { return p.Addr().String() }

func secretFile(t *testing.T, fill byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, bytes.Repeat([]byte{fill}, 32), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func serve(t *testing.T, c server.Config) *process {
	t.Helper()
	if c.DataDir == "" {
		c.DataDir = t.TempDir()
	}
	if c.Listen == "" {
		c.Listen = "127.0.0.1:0"
	}
	c.Organisation, c.Mode = "test", "enforce"
	if err := c.Complete(); err != nil {
		t.Fatal(err)
	}
	p := &process{notices: &buffer{}, log: &buffer{}, done: make(chan struct{})}
	ctx, stop := context.WithCancel(context.Background())
	p.stop = stop
	logger := slog.New(requestid.Handler{Handler: slog.NewJSONHandler(io.MultiWriter(p.log, t.Output()), &slog.HandlerOptions{Level: slog.LevelInfo})})
	var err error
	if p.Server, err = server.New(ctx, c, logger, p.notices); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.done)
		if err := p.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() {
		stop()
		<-p.done
	})
	return p
}

// setup makes the organisation of replicas that share a secret and returns its administrator's token.
func setup(t *testing.T, b server.Backend) string {
	t.Helper()
	b.DataDir = t.TempDir()
	return setupIn(t, b)
}

func setupIn(t *testing.T, b server.Backend) string {
	t.Helper()
	var out bytes.Buffer
	logger := slog.New(slog.NewTextHandler(t.Output(), nil))
	if err := server.Setup(t.Context(), server.SetupOptions{Backend: b, Organisation: "test", Mode: "enforce"}, logger, nil, &out); err != nil {
		t.Fatal(err)
	}
	return apiToken.FindString(out.String())
}

// pinned is a client that trusts the pinned key alone, as Fleetban's programs do.
func pinned(pin string) *tls.Config {
	return &tls.Config{InsecureSkipVerify: true, VerifyPeerCertificate: func(raw [][]byte, _ [][]*x509.Certificate) error { //nolint:gosec // it verifies the pin
		leaf, err := x509.ParseCertificate(raw[0])
		if err != nil {
			return err
		}
		if sum := sha256.Sum256(leaf.RawSubjectPublicKeyInfo); pin != "sha256//"+base64.StdEncoding.EncodeToString(sum[:]) {
			return errors.New("another key than the pinned one")
		}
		return nil
	}}
}

func httpClient(t *testing.T, pin string) *http.Client {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: pinned(pin), ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func ready(t *testing.T, p *process) (int, server.Report) {
	t.Helper()
	res, err := httpClient(t, p.Pin()).Get("https://" + p.addr() + "/readyz")
	if err != nil {
		return 0, server.Report{}
	}
	defer func() { _ = res.Body.Close() }()
	var report server.Report
	if err := json.NewDecoder(res.Body).Decode(&report); err != nil {
		t.Error(err)
	}
	return res.StatusCode, report
}

func (p *process) awaitReady(t *testing.T) {
	t.Helper()
	testwait.For(t, "it is ready", func() bool { code, _ := ready(t, p); return code == http.StatusOK })
}

// balancer sends each connection to the first replica that is ready, as a cloud's balancer in TCP mode would.
type balancer struct {
	l     net.Listener
	to    atomic.Pointer[string]
	conns sync.WaitGroup
}

func newBalancer(t *testing.T) *balancer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &balancer{l: l}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			b.conns.Go(func() {
				defer func() { _ = in.Close() }()
				out, err := net.Dial("tcp", *b.to.Load())
				if err != nil {
					return
				}
				stop := context.AfterFunc(ctx, func() { _, _ = in.Close(), out.Close() })
				defer stop()
				go func() {
					_, _ = io.Copy(out, in)
					_ = out.Close()
				}()
				_, _ = io.Copy(in, out)
			})
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		cancel()
		b.conns.Wait()
	})
	return b
}

func (b *balancer) send(addr string) { b.to.Store(&addr) }

// sink is a host's kernel and saved sets, in memory, with the digest recomputed from what it holds.
type sink struct {
	mu      sync.Mutex
	records map[string]map[string]*fleetbanv1.Record
	cursors map[string]*fleetbanv1.SetCursor
	loading map[string]map[string]*fleetbanv1.Record
}

func newSink() *sink {
	return &sink{records: map[string]map[string]*fleetbanv1.Record{}, cursors: map[string]*fleetbanv1.SetCursor{}, loading: map[string]map[string]*fleetbanv1.Record{}}
}

func (s *sink) Cursors(context.Context) ([]*fleetbanv1.SetCursor, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*fleetbanv1.SetCursor
	for _, c := range s.cursors {
		out = append(out, c)
	}
	return out, nil
}

func (s *sink) Begin(context.Context, *fleetbanv1.Welcome, int64, []netip.Addr) error { return nil }
func (s *sink) Settings(context.Context, *fleetbanv1.Settings, int64) error           { return nil }
func (s *sink) Exceptions(context.Context) (stream.Exceptions, error) {
	return stream.Exceptions{}, nil
}

func (s *sink) Held(_ context.Context, set string, _ uint64, page func([]*fleetbanv1.Record) error) error {
	s.mu.Lock()
	var all []*fleetbanv1.Record
	for _, r := range s.records[set] {
		all = append(all, r)
	}
	s.mu.Unlock()
	if len(all) == 0 {
		return nil
	}
	return page(all)
}

func (s *sink) Execute(_ context.Context, c *fleetbanv1.Command, _ int64) *fleetbanv1.CommandResult {
	return fleetbanv1.CommandResult_builder{CommandId: c.GetCommandId(), Outcome: fleetbanv1.CommandOutcome_COMMAND_OUTCOME_DONE}.Build()
}

func (s *sink) Apply(_ context.Context, u stream.Update, _ int64) (stream.Applied, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case u.Sync != nil:
		s.cursors[u.Sync.GetCursor().GetSet()] = u.Sync.GetCursor()
		return stream.Applied{Outcome: stream.Done, Cursor: u.Sync.GetCursor()}, nil
	case u.Page != nil:
		p := u.Page
		if p.GetPage() == 0 {
			s.loading[p.GetSet()] = map[string]*fleetbanv1.Record{}
		}
		merge(s.loading[p.GetSet()], p.GetRecords())
		if !p.GetLast() {
			return stream.Applied{Outcome: stream.More}, nil
		}
		s.records[p.GetSet()] = s.loading[p.GetSet()]
		return s.at(p.GetSet(), p.GetEpoch(), p.GetVersion(), p.GetDigest(), p.GetPartial()), nil
	default:
		d := u.Delta
		have := s.cursors[d.GetSet()]
		if have.GetVersion() >= d.GetVersion() && have.GetEpoch() == d.GetEpoch() {
			return stream.Applied{Outcome: stream.Done, Cursor: have}, nil
		}
		if have.GetVersion() < d.GetFromVersion() {
			return stream.Applied{Outcome: stream.Gap, Cursor: have}, nil
		}
		if s.records[d.GetSet()] == nil {
			s.records[d.GetSet()] = map[string]*fleetbanv1.Record{}
		}
		merge(s.records[d.GetSet()], d.GetRecords())
		return s.at(d.GetSet(), d.GetEpoch(), d.GetVersion(), d.GetDigest(), false), nil
	}
}

func merge(into map[string]*fleetbanv1.Record, records []*fleetbanv1.Record) {
	for _, r := range records {
		if r.GetKind() == fleetbanv1.RecordKind_RECORD_KIND_EXPIRED {
			delete(into, string(r.GetPrefix()))
			continue
		}
		into[string(r.GetPrefix())] = r
	}
}

func (s *sink) at(set string, epoch, version, digest uint64, partial bool) stream.Applied {
	var own uint64
	for _, r := range s.records[set] {
		if r.GetKind() == fleetbanv1.RecordKind_RECORD_KIND_PRESENT {
			own ^= banset.Hash(r.GetPrefix(), r.GetExpiresUnixMs())
		}
	}
	c := fleetbanv1.SetCursor_builder{Set: set, Epoch: epoch, Version: version, Digest: own}.Build()
	s.cursors[set] = c
	if own != digest && !partial {
		return stream.Applied{Outcome: stream.Gap, Cursor: c}
	}
	return stream.Applied{Outcome: stream.Done, Cursor: c}
}

func (s *sink) holds(set, text string) bool {
	p, err := prefix.Parse(text)
	if err != nil {
		panic(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.records[set][string(prefix.Pack(p))]
	return r.GetKind() == fleetbanv1.RecordKind_RECORD_KIND_PRESENT
}

// source is a spool in memory.
type source struct {
	mu     sync.Mutex
	events []*fleetbanv1.Event
	acked  uint64
	more   chan struct{}
}

func newSource() *source { return &source{more: make(chan struct{}, 1)} }

func (s *source) ID() string                { return "spool" }
func (s *source) Begin(uint64) error        { return nil }
func (s *source) Appended() <-chan struct{} { return s.more }

func (s *source) Next(after uint64, limit int) ([]*fleetbanv1.Event, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	from := min(int(after), len(s.events)) //nolint:gosec // small
	return s.events[from:min(from+limit, len(s.events))], nil
}

func (s *source) Ack(_ string, through uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.acked = max(s.acked, through)
}

func (s *source) ban(jail, text string) {
	p, err := prefix.Parse(text)
	if err != nil {
		panic(err)
	}
	s.mu.Lock()
	s.events = append(s.events, fleetbanv1.Event_builder{
		Seq: uint64(len(s.events) + 1), Jail: jail, Prefix: prefix.Pack(p),
		Ban: fleetbanv1.ObservedBan_builder{DurationMs: time.Hour.Milliseconds()}.Build(),
	}.Build())
	s.mu.Unlock()
	select {
	case s.more <- struct{}{}:
	default:
	}
}

func (s *source) through() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.acked
}

// agent is a host whose stream is the real one.
type agent struct {
	*stream.Client

	sink   *sink
	source *source
	name   string
	log    *buffer
}

func enrol(t *testing.T, base, pin, token, name string) *agent {
	t.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	client := fleetbanv1connect.NewAgentServiceClient(httpClient(t, pin), base, connect.WithGRPC())
	res, err := client.Enroll(t.Context(), connect.NewRequest(fleetbanv1.EnrollRequest_builder{JoinToken: token, PublicKey: public, Name: name}.Build()))
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	a := &agent{sink: newSink(), source: newSource(), name: res.Msg.GetName(), log: &buffer{}}
	a.Client = stream.New(stream.Config{
		URL: u, TLS: pinned(pin), Key: private, HostID: res.Msg.GetHostId(), Audience: res.Msg.GetAudience(), Grant: res.Msg.GetGrant(),
		Instance: name, Facts: func() *fleetbanv1.HostFacts { return &fleetbanv1.HostFacts{} }, Health: func() *fleetbanv1.Health { return &fleetbanv1.Health{} },
		Sink: a.sink, Source: a.source, Log: slog.New(slog.NewTextHandler(io.MultiWriter(a.log, t.Output()), nil)).With("agent", name),
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = a.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return a
}

func bearer(token string) connect.Option {
	return connect.WithInterceptors(authInterceptor(token))
}

type authInterceptor string

func (a authInterceptor) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
		r.Header().Set("Authorization", "Bearer "+string(a))
		return next(ctx, r)
	}
}

func (a authInterceptor) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		conn := next(ctx, spec)
		conn.RequestHeader().Set("Authorization", "Bearer "+string(a))
		return conn
	}
}

func (authInterceptor) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

// The whole way, over TLS: two replicas behind a balancer, real agents' streams, the operator's API.
func TestFleetOverTLS(t *testing.T) {
	t.Parallel()
	redis, secret, lb := redistest.Start(t), secretFile(t, 1), newBalancer(t)
	base := "https://" + lb.l.Addr().String()
	config := func(name string) server.Config {
		return server.Config{
			Backend: server.Backend{RedisURL: redis.URL(), SecretFile: secret, PublicURL: base}, Replica: name, DrainWindow: 100 * time.Millisecond,
		}
	}
	tokens := []string{setup(t, config("").Backend)}
	one, two := serve(t, config("one")), serve(t, config("two"))
	if one.Pin() != two.Pin() || !strings.HasPrefix(one.Pin(), "sha256//") {
		t.Fatalf("pins %q and %q: what a host pins must hold for both replicas", one.Pin(), two.Pin())
	}
	one.awaitReady(t)
	two.awaitReady(t)
	if shown := one.notices.String() + two.notices.String(); shown != "" {
		t.Fatalf("after set-up serve shows %q", shown)
	}
	lb.send(one.addr())
	client := httpClient(t, one.Pin())
	joins := operatorv1connect.NewJoinTokenServiceClient(client, base, bearer(tokens[0]))
	join, err := joins.CreateJoinToken(t.Context(), connect.NewRequest(operatorv1.CreateJoinTokenRequest_builder{Uses: 2}.Build()))
	if err != nil {
		t.Fatal(err)
	}
	if line := join.Msg.GetInstallLine(); !strings.Contains(line, one.Pin()) || !strings.Contains(line, base) {
		t.Errorf("the line to paste: %s", line)
	}
	a := enrol(t, base, one.Pin(), join.Msg.GetSecret(), "a")
	testwait.For(t, "a is connected to one", func() bool { return a.Status().Replica == "one" })
	lb.send(two.addr())
	b := enrol(t, base, one.Pin(), join.Msg.GetSecret(), "b")
	testwait.For(t, "b is connected to two", func() bool { return b.Status().Replica == "two" })

	// A ban that a's fail2ban made is held by b.
	began := time.Now()
	a.source.ban("sshd", "203.0.113.9")
	testwait.For(t, "b holds it", func() bool { return b.sink.holds("all", "203.0.113.9") })
	t.Logf("from spool to the other host's sink in %s", time.Since(began))
	testwait.For(t, "the event is acknowledged", func() bool { return a.source.through() == 1 })

	// A person's ban, with its receipt.
	bans := operatorv1connect.NewBanServiceClient(httpClient(t, one.Pin()), base, bearer(tokens[0]))
	banned, err := bans.Ban(t.Context(), connect.NewRequest(operatorv1.BanRequest_builder{Prefixes: []string{"203.0.113.77"}, DurationS: 3600}.Build()))
	if err != nil {
		t.Fatal(err)
	}
	receipts, err := bans.WatchReceipts(t.Context(), connect.NewRequest(operatorv1.WatchReceiptsRequest_builder{
		Cursor: banned.Msg.GetCursor(), Prefixes: []string{"203.0.113.77"},
	}.Build()))
	if err != nil {
		t.Fatal(err)
	}
	var last *operatorv1.WatchReceiptsResponse
	for receipts.Receive() {
		last = receipts.Msg()
	}
	if err := receipts.Err(); err != nil || !last.GetComplete() || last.GetEnforced() != 2 {
		t.Fatalf("%v, %v", last, err)
	}

	// The unban reaches both, and orders a to unban it in its jails too.
	if _, err := bans.Unban(t.Context(), connect.NewRequest(operatorv1.UnbanRequest_builder{Prefixes: []string{"203.0.113.9"}}.Build())); err != nil {
		t.Fatal(err)
	}
	testwait.For(t, "nobody holds it", func() bool { return !a.sink.holds("all", "203.0.113.9") && !b.sink.holds("all", "203.0.113.9") })
	hosts := operatorv1connect.NewHostServiceClient(httpClient(t, one.Pin()), base, bearer(tokens[0]))
	testwait.For(t, "a has carried out the order", func() bool {
		commands, err := hosts.ListCommands(t.Context(), connect.NewRequest(operatorv1.ListCommandsRequest_builder{Host: "a"}.Build()))
		return err == nil && len(commands.Msg.GetCommands()) == 1 &&
			commands.Msg.GetCommands()[0].GetResult().GetOutcome() == fleetbanv1.CommandOutcome_COMMAND_OUTCOME_DONE
	})

	// The replica that holds a's stream is stopped: a goes to the other one, and what it bans meanwhile arrives.
	a.source.ban("sshd", "203.0.113.10")
	one.stop()
	a.source.ban("sshd", "203.0.113.11")
	<-one.done
	testwait.For(t, "a is connected to two", func() bool { return a.Status().Connected && a.Status().Replica == "two" })
	testwait.For(t, "b holds both", func() bool { return b.sink.holds("all", "203.0.113.10") && b.sink.holds("all", "203.0.113.11") })

	// Redis loses everything: the agents give back what they hold.
	redis.Empty()
	testwait.For(t, "both are back, and hold what they held", func() bool {
		listed, err := a.sink.Cursors(t.Context())
		if err != nil || !b.sink.holds("all", "203.0.113.77") || !a.sink.holds("all", "203.0.113.10") || !b.sink.holds("all", "203.0.113.11") {
			return false
		}
		for _, c := range listed {
			if c.GetSet() == "all" && c.GetEpoch() > banned.Msg.GetCursor().GetEpoch() {
				return true
			}
		}
		return false
	})
}

func TestReadiness(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t)
	st := redis.Open()
	ctx := t.Context()
	p := serve(t, server.Config{Backend: server.Backend{RedisURL: redis.URL(), SecretFile: secretFile(t, 1)}})
	p.awaitReady(t)
	unready := func(code string) {
		t.Helper()
		testwait.For(t, "it says "+code, func() bool {
			status, report := ready(t, p)
			return status == http.StatusServiceUnavailable && len(report.Reasons) == 1 && report.Reasons[0].Code == code && report.Reasons[0].Fix != ""
		})
	}
	set := redis.Set
	set("appendfsync", "everysec")
	unready("durability")
	other := serve(t, server.Config{Backend: server.Backend{RedisURL: redis.URL(), SecretFile: secretFile(t, 2)}, AcceptDurability: []string{"everysec"}})
	testwait.For(t, "the other secret is refused", func() bool {
		_, report := ready(t, other)
		return len(report.Reasons) == 1 && report.Reasons[0].Code == "secret-differs" && report.Durability == "everysec"
	})
	// However an agent got here, it isn't told that its identity is bad.
	_, err := fleetbanv1connect.NewAgentServiceClient(httpClient(t, other.Pin()), "https://"+other.addr(), connect.WithGRPC()).Enroll(ctx,
		connect.NewRequest(fleetbanv1.EnrollRequest_builder{JoinToken: "x", PublicKey: make([]byte, 32), Name: "a"}.Build()))
	if info := stream.InfoOf(err); connect.CodeOf(err) != connect.CodeUnavailable || info.GetReason() != fleetbanv1.Reason_REASON_REPLICA_DISAGREES || info.GetFix() == "" {
		t.Errorf("a replica with another secret answers %v", err)
	}
	set("appendfsync", "always")
	p.awaitReady(t)
	set("maxmemory", "100mb")
	set("maxmemory-policy", "allkeys-lru")
	unready("eviction")
	set("maxmemory", "0")
	p.awaitReady(t)
	if err := st.Client().HSet(ctx, "fb:schema", "min_writer", 2).Err(); err != nil {
		t.Fatal(err)
	}
	unready("schema")
	st.Client().HSet(ctx, "fb:schema", "min_writer", 1)
	redis.Kill()
	unready("redis-unreachable")
	redis.Start()
	p.awaitReady(t)
	if other.notices.String() != "" {
		t.Error("a replica with another secret shows a link")
	}
}

func TestEmbeddedFirstStart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := serve(t, server.Config{Backend: server.Backend{DataDir: dir}, MetricsListen: "127.0.0.1:0"})
	p.awaitReady(t)
	testwait.For(t, "it shows a link", func() bool { return setupLink.MatchString(p.notices.String()) })
	link := setupLink.FindString(p.notices.String())
	if strings.Contains(p.log.String(), link[strings.Index(link, "#")+1:]) {
		t.Error("the link is in the log")
	}
	made, err := useLink(t, p, link, ownerEmail)
	if err != nil || made.GetMode() != fleetbanv1.Mode_MODE_ENFORCE {
		t.Fatal(made, err)
	}
	token := made.GetTokens().GetAccessToken()
	fleet := operatorv1connect.NewFleetServiceClient(httpClient(t, p.Pin()), "https://"+p.addr(), bearer(token))
	got, err := fleet.GetFleet(t.Context(), connect.NewRequest(&operatorv1.GetFleetRequest{}))
	if err != nil || got.Msg.GetOrganisationName() != "test" || got.Msg.GetDurability() != "always" || got.Msg.GetRebuildUntilUnixMs() != 0 {
		t.Fatalf("%v, %v", got, err)
	}
	p.stop()
	<-p.done
	pin := p.Pin()
	p = serve(t, server.Config{Backend: server.Backend{DataDir: dir}})
	p.awaitReady(t)
	if p.notices.String() != "" || p.Pin() != pin {
		t.Errorf("the second start shows %q, pin %s before and %s now", p.notices, pin, p.Pin())
	}
	fleet = operatorv1connect.NewFleetServiceClient(httpClient(t, p.Pin()), "https://"+p.addr(), bearer(token))
	if _, err := fleet.GetFleet(t.Context(), connect.NewRequest(&operatorv1.GetFleetRequest{})); err != nil {
		t.Fatalf("the token after a restart: %v", err)
	}
}

func TestCommands(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t)
	backend := server.Backend{RedisURL: redis.URL(), SecretFile: secretFile(t, 1), DataDir: t.TempDir()}
	logger := slog.New(slog.NewTextHandler(t.Output(), nil))
	var out bytes.Buffer
	if err := server.CreateToken(t.Context(), server.TokenOptions{Backend: backend, Name: "x"}, logger, &out); err == nil || !strings.Contains(err.Error(), "setup") {
		t.Errorf("a token before set-up: %v", err)
	}
	setup := func() string {
		t.Helper()
		out.Reset()
		if err := server.Setup(t.Context(), server.SetupOptions{Backend: backend, Organisation: "Lab", Mode: "watch"}, logger, nil, &out); err != nil {
			t.Fatal(err)
		}
		return apiToken.FindString(out.String())
	}
	if setup() == "" {
		t.Fatalf("set-up printed no token: %s", out.String())
	}
	if setup() != "" || !strings.Contains(out.String(), "stands already") {
		t.Errorf("a second set-up printed %s", out.String())
	}
	if err := server.CreateToken(t.Context(), server.TokenOptions{Backend: backend, Name: "x"}, logger, &out); err != nil || !apiToken.MatchString(out.String()) {
		t.Errorf("%v: %s", err, out.String())
	}
	out.Reset()
	if err := server.Check(t.Context(), server.CheckOptions{Backend: backend}, logger, &out); err != nil {
		t.Error(err)
	}
	redis.Kill()
	out.Reset()
	if err := server.Check(t.Context(), server.CheckOptions{Backend: backend}, logger, &out); !errors.Is(err, server.ErrNotReady) || !strings.Contains(out.String(), "--redis-url") {
		t.Errorf("%v: %s", err, out.String())
	}
}

func TestConfigErrors(t *testing.T) {
	t.Parallel()
	for want, c := range map[string]server.Config{
		"--listen (FLEETBAN_LISTEN)":                       {Listen: "nonsense"},
		"--tls-cert (FLEETBAN_TLS_CERT)":                   {Listen: ":1", TLSCert: "x"},
		"--tls-off (FLEETBAN_TLS_OFF)":                     {Listen: ":1", TLSCert: "x", TLSKey: "y", TLSOff: true},
		"--public-url (FLEETBAN_PUBLIC_URL)":               {Listen: ":1", Backend: server.Backend{PublicURL: "fleet.example.com", DataDir: "x"}},
		"--accept-durability (FLEETBAN_ACCEPT_DURABILITY)": {Listen: ":1", AcceptDurability: []string{"sometimes"}},
		"--trusted-proxy (FLEETBAN_TRUSTED_PROXIES)":       {Listen: ":1", TrustedProxies: []string{"10.0.0.1/33"}},
		"--proxy-protocol (FLEETBAN_PROXY_PROTOCOL)":       {Listen: ":1", ProxyProtocol: []string{"balancer"}},
		"--data-dir (FLEETBAN_DATA_DIR)":                   {Listen: ":1"},
		"--acme-accept-terms (FLEETBAN_ACME_ACCEPT_TERMS)": {Listen: ":1", ACMEDomains: []string{"fleet.example.com"}},
		"--acme-directory (FLEETBAN_ACME_DIRECTORY)":       {Listen: ":1", ACMEDomains: []string{"fleet.example.com"}, ACMEAcceptTerms: true, ACMEDirectory: "http://ca.example"},
		"--acme-http-listen (FLEETBAN_ACME_HTTP_LISTEN)":   {Listen: ":1", ACMEDomains: []string{"fleet.example.com"}, ACMEAcceptTerms: true, ACMEHTTPListen: "80"},
	} {
		var config *server.ConfigError
		if err := c.Complete(); !errors.As(err, &config) || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	for name, c := range map[string]server.Config{
		"no name":             {ACMEAcceptTerms: true},
		"an address":          {ACMEAcceptTerms: true, ACMEDomains: []string{"192.0.2.1"}},
		"a wildcard":          {ACMEAcceptTerms: true, ACMEDomains: []string{"*.example.com"}},
		"a certificate given": {ACMEAcceptTerms: true, ACMEDomains: []string{"fleet.example.com"}, TLSCert: "x", TLSKey: "y"},
		"no TLS":              {ACMEAcceptTerms: true, ACMEDomains: []string{"fleet.example.com"}, TLSOff: true},
		"another public name": {ACMEAcceptTerms: true, ACMEDomains: []string{"fleet.example.com"}, Backend: server.Backend{PublicURL: "https://other.example.com"}},
	} {
		var config *server.ConfigError
		c.Listen = ":1"
		if err := c.Complete(); !errors.As(err, &config) || config.Flag != "acme-domain" {
			t.Errorf("ACME, %s: %v", name, err)
		}
	}
	c := server.Config{Listen: "[::1]:8443", Backend: server.Backend{DataDir: "x"}}
	if err := c.Complete(); err != nil || c.PublicURL != "https://localhost:8443" || c.Replica == "" {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestUnknownPathsAndBigRequests(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t)
	backend := server.Backend{RedisURL: redis.URL(), SecretFile: secretFile(t, 1)}
	token := setup(t, backend)
	p := serve(t, server.Config{Backend: backend})
	p.awaitReady(t)
	client := httpClient(t, p.Pin())
	for path, want := range map[string]int{"/healthz": 200, "/": 200, "/nothing": 404, "/install.sh": 200} {
		res, err := client.Get("https://" + p.addr() + path)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if res.StatusCode != want || res.Header.Get("X-Request-Id") == "" {
			t.Errorf("%s: %s", path, res.Status)
		}
	}
	bans := operatorv1connect.NewBanServiceClient(client, "https://"+p.addr(), bearer(token))
	_, err := bans.Ban(t.Context(), connect.NewRequest(operatorv1.BanRequest_builder{Reason: strings.Repeat("x", 10<<20), DurationS: 1, Prefixes: []string{"203.0.113.9"}}.Build()))
	tooLarge(t, "10 MB", err)
	base := "https://" + p.addr()
	big := connect.NewRequest(fleetbanv1.EnrollRequest_builder{JoinToken: strings.Repeat("x", 2<<20), PublicKey: make([]byte, 32), Name: "a"}.Build())
	_, err = fleetbanv1connect.NewAgentServiceClient(client, base).Enroll(t.Context(), big)
	tooLarge(t, "enrolment", err)
	_, err = fleetbanv1connect.NewAgentServiceClient(client, base, connect.WithGRPC()).Enroll(t.Context(), big)
	tooLarge(t, "enrolment over gRPC, which doesn't say its length", err)
	chunked, err := http.NewRequestWithContext(t.Context(), http.MethodPost, base+fleetbanv1connect.AgentServiceEnrollProcedure, io.MultiReader(bytes.NewReader(make([]byte, 2<<20))))
	if err != nil {
		t.Fatal(err)
	}
	chunked.Header.Set("Content-Type", "application/proto")
	res, err := client.Do(chunked)
	if err != nil {
		t.Fatal(err)
	}
	text, _ := io.ReadAll(res.Body)
	_ = res.Body.Close()
	if res.StatusCode != http.StatusTooManyRequests || !strings.Contains(string(text), "fleetban.v1.ErrorInfo") {
		t.Errorf("chunked: %s %s", res.Status, text)
	}
	// One that just fits is understood, whatever it is.
	_, err = fleetbanv1connect.NewAgentServiceClient(client, base, connect.WithGRPC()).Enroll(t.Context(),
		connect.NewRequest(fleetbanv1.EnrollRequest_builder{JoinToken: strings.Repeat("x", 1<<20-100), PublicKey: make([]byte, 32), Name: "a"}.Build()))
	if connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("just below the limit: %v", err)
	}
}

func tooLarge(t *testing.T, what string, err error) {
	t.Helper()
	info := stream.InfoOf(err)
	if connect.CodeOf(err) != connect.CodeResourceExhausted || info.GetReason() != fleetbanv1.Reason_REASON_MESSAGE_TOO_LARGE || info.GetFix() == "" || info.GetServerUnixMs() == 0 {
		t.Errorf("%s: %v with %v", what, err, info)
	}
}
