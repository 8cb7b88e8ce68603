package run_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/agent/internal/fail2ban/fail2bantest"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/v1/fleetbanv1connect"
	"github.com/fleetban/fleetban/proto/wire/banset"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

// patience is the longest that anything here may take, on a machine that runs many tests at once.
const patience = time.Minute

// controlPlane is the protocol's other end: it enrols whoever asks and gives each stream to the test.
type controlPlane struct {
	fleetbanv1connect.UnimplementedAgentServiceHandler
	streams chan *call
	// What its heartbeats say: that its store is away, and by how many milliseconds its clock is ahead.
	storeAway atomic.Bool
	ahead     atomic.Int64
}

type call struct {
	t     *testing.T
	hello *fleetbanv1.Hello
	in    chan *fleetbanv1.ConnectRequest
	out   chan *fleetbanv1.ConnectResponse
	gone  chan struct{}
	// broken is closed by a test that has the stream end.
	broken chan struct{}
	seen   []*fleetbanv1.ConnectRequest
}

func (*controlPlane) Enroll(_ context.Context, req *connect.Request[fleetbanv1.EnrollRequest]) (*connect.Response[fleetbanv1.EnrollResponse], error) {
	return connect.NewResponse(fleetbanv1.EnrollResponse_builder{
		HostId: "H1", Name: req.Msg.GetName(), OrganisationId: "O1", OrganisationName: "Acme", Grant: "grant", Audience: "fleetban:test",
		Mode: fleetbanv1.Mode_MODE_ENFORCE,
	}.Build()), nil
}

func (p *controlPlane) Connect(ctx context.Context, s *connect.BidiStream[fleetbanv1.ConnectRequest, fleetbanv1.ConnectResponse]) error {
	m, err := s.Receive()
	if err != nil {
		return err
	}
	c := &call{hello: m.GetHello(), in: make(chan *fleetbanv1.ConnectRequest, 10_000), out: make(chan *fleetbanv1.ConnectResponse), gone: make(chan struct{}), broken: make(chan struct{})}
	go func() {
		defer close(c.gone)
		for {
			m, err := s.Receive()
			if err != nil {
				return
			}
			c.in <- m
		}
	}()
	p.streams <- c
	for {
		select {
		case m := <-c.out:
			if err := s.Send(m); err != nil {
				return err
			}
		case <-c.gone:
			return nil
		case <-c.broken:
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

func (p *controlPlane) next(t *testing.T, through uint64) *call {
	t.Helper()
	select {
	case c := <-p.streams:
		c.t = t
		c.send(fleetbanv1.ConnectResponse_builder{Welcome: fleetbanv1.Welcome_builder{
			ServerUnixMs: time.Now().UnixMilli(), Replica: "r1", HostId: "H1", HostName: "web-1", Epoch: 1, HeartbeatMs: 10_000, EventsThrough: through,
			Sets: []*fleetbanv1.SetInfo{
				fleetbanv1.SetInfo_builder{Set: banset.All, Kind: fleetbanv1.SetKind_SET_KIND_BAN}.Build(),
				fleetbanv1.SetInfo_builder{Set: banset.Allow, Kind: fleetbanv1.SetKind_SET_KIND_ALLOW}.Build(),
			},
		}.Build()}.Build())
		go func() { // it speaks as often as it promised
			for {
				beat := fleetbanv1.ConnectResponse_builder{Heartbeat: fleetbanv1.ServerHeartbeat_builder{
					ServerUnixMs: time.Now().UnixMilli() + p.ahead.Load(), StoreAway: p.storeAway.Load(),
				}.Build()}.Build()
				select {
				case <-c.gone:
					return
				case <-time.After(500 * time.Millisecond):
				}
				select {
				case <-c.gone:
					return
				case c.out <- beat:
				}
			}
		}()
		return c
	case <-time.After(patience):
		t.Fatal("no stream was opened")
		return nil
	}
}

func (c *call) send(m *fleetbanv1.ConnectResponse) {
	c.t.Helper()
	select {
	case c.out <- m:
	case <-time.After(patience):
		c.t.Fatal("the agent doesn't read")
	}
}

// recordsOf makes bans of three hours.
func recordsOf(addrs ...string) (records []*fleetbanv1.Record) {
	for _, a := range addrs {
		records = append(records, fleetbanv1.Record_builder{
			Prefix: prefix.Pack(prefix.Single(netip.MustParseAddr(a))), Kind: fleetbanv1.RecordKind_RECORD_KIND_PRESENT,
			SinceUnixMs: time.Now().UnixMilli(), ExpiresUnixMs: time.Now().Add(3 * time.Hour).UnixMilli(),
		}.Build())
	}
	return records
}

// set sends a whole set, in pages.
func (c *call) set(name string, kind fleetbanv1.SetKind, version uint64, addrs ...string) {
	c.t.Helper()
	records := recordsOf(addrs...)
	var digest uint64
	for _, r := range records {
		digest ^= banset.Hash(r.GetPrefix(), r.GetExpiresUnixMs())
	}
	parts := slices.Collect(slices.Chunk(records, 1000))
	if len(parts) == 0 {
		parts = append(parts, nil)
	}
	page := uint32(0)
	for _, part := range parts {
		c.send(fleetbanv1.ConnectResponse_builder{Snapshot: fleetbanv1.SnapshotPage_builder{
			Set: name, Kind: kind, Epoch: 1, Version: version, Digest: digest, Page: page, Records: part,
			Last: int(page+1)*1000 >= len(records),
		}.Build()}.Build())
		page++
	}
}

func (c *call) await(what string, f func(*fleetbanv1.ConnectRequest) bool) *fleetbanv1.ConnectRequest {
	c.t.Helper()
	limit := time.After(patience)
	for {
		select {
		case m := <-c.in:
			c.seen = append(c.seen, m)
			if f(m) {
				return m
			}
		case <-limit:
			c.t.Fatalf("the agent never sent %s", what)
		}
	}
}

func (c *call) awaitAck(set string, version uint64) {
	c.t.Helper()
	c.await(fmt.Sprintf("an acknowledgement of %s %d", set, version), func(m *fleetbanv1.ConnectRequest) bool {
		for _, cur := range m.GetAck().GetCursors() {
			if cur.GetSet() == set && cur.GetVersion() == version {
				return true
			}
		}
		return false
	})
}

func (c *call) awaitEvent(what string, f func(*fleetbanv1.Event) bool) *fleetbanv1.Event {
	c.t.Helper()
	var found *fleetbanv1.Event
	look := func(m *fleetbanv1.ConnectRequest) bool {
		for _, e := range m.GetEvents().GetEvents() {
			if f(e) {
				found = e
			}
		}
		return found != nil
	}
	if !slices.ContainsFunc(c.seen, look) { // it may have come before what was waited for last
		c.await(what, look)
	}
	return found
}

// host is one agent with the helper in a network namespace of its own.
type host struct {
	t         *testing.T
	bin, dir  string
	namespace string
	fail2ban  *fail2bantest.Server
}

func (h *host) command(args ...string) *exec.Cmd {
	args = append(args, "--state-dir", h.dir, "--run-user", "root", "--fail2ban-socket", h.fail2ban.Socket,
		"--fail2ban-config-dir", h.fail2ban.ConfigDir, "--policy", filepath.Join(h.dir, "policy.toml"))
	return exec.Command(h.bin, args...) //nolint:gosec // a test's own
}

func (h *host) cli(args ...string) string {
	h.t.Helper()
	out, err := h.command(args...).CombinedOutput()
	if err != nil {
		h.t.Fatalf("%v: %v\n%s", args, err, out)
	}
	return string(out)
}

// log is what a half says, whichever process it is by now.
func (h *host) log(verb string) string { return filepath.Join(h.dir, verb+".log") }

func (h *host) start(inNamespace bool, verb string) *exec.Cmd {
	h.t.Helper()
	cmd := h.command(verb)
	if inNamespace {
		cmd.Args = append([]string{"ip", "netns", "exec", h.namespace}, cmd.Args...)
		cmd.Path, _ = exec.LookPath("ip")
	}
	log, err := os.OpenFile(h.log(verb), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		h.t.Fatal(err)
	}
	defer log.Close()
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if h.t.Failed() {
			text, _ := os.ReadFile(h.log(verb))
			h.t.Logf("%s:\n%s", verb, text)
		}
	})
	return cmd
}

func (h *host) kernel() string {
	out, _ := exec.Command("ip", "netns", "exec", h.namespace, "nft", "list", "table", "inet", "fleetban").CombinedOutput() //nolint:gosec // a test's own
	return string(out)
}

func newHost(t *testing.T) *host {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("run this as root: it makes a network namespace and starts fail2ban")
	}
	h := &host{t: t, dir: t.TempDir(), namespace: fmt.Sprintf("fbrun%d", os.Getpid())}
	h.bin = filepath.Join(h.dir, "fleetban-agent")
	if out, err := exec.Command("../../../scripts/build-agent", h.bin).CombinedOutput(); err != nil { //nolint:gosec // a test's own
		t.Fatalf("%v\n%s", err, out)
	}
	if out, err := exec.Command("ip", "netns", "add", h.namespace).CombinedOutput(); err != nil { //nolint:gosec // a test's own
		t.Fatalf("%v\n%s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", h.namespace).Run() }) //nolint:gosec // a test's own
	h.fail2ban = fail2bantest.Start(t, fail2bantest.Options{})
	return h
}

// serve starts a control plane and returns its URL.
func serve(t *testing.T) (*controlPlane, string) {
	t.Helper()
	p := &controlPlane{streams: make(chan *call, 8)}
	mux := http.NewServeMux()
	mux.Handle(fleetbanv1connect.NewAgentServiceHandler(p))
	server := httptest.NewUnstartedServer(mux)
	server.Config.Protocols = new(http.Protocols)
	server.Config.Protocols.SetUnencryptedHTTP2(true)
	server.Config.Protocols.SetHTTP1(true)
	server.Start()
	t.Cleanup(server.CloseClientConnections)
	return p, server.URL
}

func (h *host) enrol(url string) {
	h.t.Helper()
	token := filepath.Join(h.dir, "token")
	if err := os.WriteFile(token, []byte("secret\n"), 0o600); err != nil {
		h.t.Fatal(err)
	}
	if out := h.cli("enroll", "--url", url, "--token-file", token); !strings.Contains(out, "Acme") {
		h.t.Errorf("enroll says %s", out)
	}
}

// tenThousand is as many addresses.
func tenThousand() []string {
	addrs := make([]string, 0, 10_000)
	for i := range 10_000 {
		addrs = append(addrs, fmt.Sprintf("198.51.%d.%d", i/250, i%250))
	}
	return addrs
}

// TestBothHalves takes real fail2ban, the real kernel and the real binary through a host's life.
func TestBothHalves(t *testing.T) {
	h := newHost(t)
	p, url := serve(t)
	h.enrol(url)
	if out := h.cli("enroll", "--url", url); !strings.Contains(out, "already") {
		t.Errorf("a second enroll says %s", out)
	}
	if out, err := h.command("enroll", "--url", "https://elsewhere.example").CombinedOutput(); err == nil || !strings.Contains(string(out), "--force") {
		t.Errorf("enroll elsewhere: %v, %s", err, out)
	}

	helper := h.start(true, "helper")
	h.start(false, "run")
	c := p.next(t, 0)
	h.fail2ban.Attack("sshd", "203.0.113.77")
	if e := c.awaitEvent("the ban", func(e *fleetbanv1.Event) bool { return e.HasBan() }); e.GetJail() != "sshd" || e.GetBan().GetPreexisting() || e.GetBan().GetDurationMs() != 600_000 {
		t.Errorf("event %v", e)
	}

	c.set(banset.All, fleetbanv1.SetKind_SET_KIND_BAN, 5, tenThousand()...)
	c.awaitAck(banset.All, 5)
	if k := h.kernel(); !strings.Contains(k, "198.51.0.1 ") {
		t.Errorf("acknowledged and not in the kernel:\n%.500s", k)
	}

	command := func(id string, c *call, b fleetbanv1.Command_builder) *fleetbanv1.CommandResult {
		t.Helper()
		b.CommandId, b.NotAfterUnixMs = id, time.Now().Add(time.Minute).UnixMilli()
		c.send(fleetbanv1.ConnectResponse_builder{Command: b.Build()}.Build())
		return c.await("the result of "+id, func(m *fleetbanv1.ConnectRequest) bool { return m.GetCommandResult().GetCommandId() == id }).GetCommandResult()
	}
	ban := func(addr string) fleetbanv1.Command_builder {
		return fleetbanv1.Command_builder{BanInJail: fleetbanv1.BanInJail_builder{Jail: "sshd", Prefixes: [][]byte{prefix.Pack(prefix.Single(netip.MustParseAddr(addr)))}}.Build()}
	}
	if r := command("C1", c, ban("203.0.113.88")); r.GetOutcome() != fleetbanv1.CommandOutcome_COMMAND_OUTCOME_DONE {
		t.Errorf("ban in a jail: %v", r)
	}
	c.awaitEvent("the ban by command", func(e *fleetbanv1.Event) bool { return e.GetBan().GetCommandId() == "C1" })
	if r := command("C2", c, ban("127.0.0.1")); r.GetOutcome() != fleetbanv1.CommandOutcome_COMMAND_OUTCOME_REFUSED {
		t.Errorf("ban of loopback: %v", r)
	}

	// What is allowed is unbanned in fail2ban and ignored there, also after a reload.
	c.set(banset.Allow, fleetbanv1.SetKind_SET_KIND_ALLOW, 3, "203.0.113.77")
	c.awaitAck(banset.Allow, 3)
	c.awaitEvent("the unban for the allowlist", func(e *fleetbanv1.Event) bool {
		return e.HasUnban() && e.GetUnban().GetCause() == fleetbanv1.UnbanCause_UNBAN_CAUSE_COMMAND
	})
	fail2bantest.Eventually(t, patience, "fail2ban ignores it", func() bool {
		return strings.Contains(h.fail2ban.Command("get", "sshd", "ignoreip"), "203.0.113.77")
	})

	// The helper is killed: the stream stays up and says so; it comes back, and what is held is told anew.
	_ = helper.Process.Signal(syscall.SIGKILL)
	_, _ = helper.Process.Wait()
	c.await("that the helper is away", func(m *fleetbanv1.ConnectRequest) bool {
		for _, f := range m.GetHealth().GetFindings() {
			if f.GetCode() == "helper-away" {
				return true
			}
		}
		return false
	})
	h.start(true, "helper")
	c = p.next(t, 3)
	held := map[string]uint64{}
	for _, cur := range c.hello.GetCursors() {
		held[cur.GetSet()] = cur.GetVersion()
	}
	if held[banset.All] != 5 || held[banset.Allow] != 3 {
		t.Errorf("after a restart of the helper it holds %v", held)
	}
	if r := command("C1", c, ban("203.0.113.88")); r.GetOutcome() != fleetbanv1.CommandOutcome_COMMAND_OUTCOME_DONE {
		t.Errorf("the same command again: %v", r)
	}

	if out := h.cli("off"); !strings.Contains(out, "Off") {
		t.Errorf("off says %s", out)
	}
	c.await("that it is off", func(m *fleetbanv1.ConnectRequest) bool { return m.GetAck().GetInert() == fleetbanv1.Inert_INERT_OFF })
	if k := h.kernel(); strings.Contains(k, "198.51.0.1 ") {
		t.Error("off, and still in the kernel")
	}
	h.cli("on")
	fail2bantest.Eventually(t, patience, "on again", func() bool { return strings.Contains(h.kernel(), "198.51.0.1 ") })
	if out := h.cli("status"); !strings.Contains(out, "replica r1") || !strings.Contains(out, "10000") {
		t.Errorf("status:\n%s", out)
	}
}
