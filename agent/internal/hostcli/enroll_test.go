package hostcli

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
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
	"golang.org/x/sys/unix"

	"github.com/fleetban/fleetban/agent/internal/identity"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/v1/fleetbanv1connect"
)

const (
	secret   = "fbj_a-secret-that-nobody-else-may-see"
	patience = time.Minute
)

// control is a control plane that enrols one host and sees it connect.
type control struct {
	fleetbanv1connect.UnimplementedAgentServiceHandler
	asked     chan string // the token of an Enroll
	answer    chan struct{}
	connected chan struct{}
}

func (c *control) Enroll(ctx context.Context, req *connect.Request[fleetbanv1.EnrollRequest]) (*connect.Response[fleetbanv1.EnrollResponse], error) {
	c.asked <- req.Msg.GetJoinToken()
	select {
	case <-c.answer:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return connect.NewResponse(fleetbanv1.EnrollResponse_builder{
		HostId: "H1", Name: "web-1", OrganisationId: "O1", OrganisationName: "Test", Grant: "g", Audience: "a", Mode: fleetbanv1.Mode_MODE_WATCH,
	}.Build()), nil
}

func (c *control) Connect(context.Context, *connect.BidiStream[fleetbanv1.ConnectRequest, fleetbanv1.ConnectResponse]) error {
	select {
	case c.connected <- struct{}{}:
	default:
	}
	return connect.NewError(connect.CodeUnavailable, errors.New("that's all"))
}

// proxy is a CONNECT proxy, the only one who knows where example.com is. It returns its URL and how often it was used.
func proxy(t *testing.T, target string) (string, *atomic.Int32) {
	t.Helper()
	used := new(atomic.Int32)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodConnect || r.Host != "example.com:443" {
			http.Error(w, "no", http.StatusForbidden)
			return
		}
		used.Add(1)
		there, err := net.Dial("tcp", target)
		if err != nil {
			t.Error(err)
			return
		}
		defer there.Close() //nolint:errcheck // a test's end
		w.WriteHeader(http.StatusOK)
		here, buffered, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer here.Close()                              //nolint:errcheck // a test's end
		go func() { _, _ = io.Copy(there, buffered) }() // what the agent sends
		_, _ = io.Copy(here, there)
	}))
	t.Cleanup(s.CloseClientConnections)
	return s.URL, used
}

// TestEnrolThroughAProxy is a newcomer's day in a company: a certificate of an own authority, a way out through a proxy only,
// and a token that is typed.
func TestEnrolThroughAProxy(t *testing.T) {
	t.Parallel()
	c := &control{asked: make(chan string, 10), answer: make(chan struct{}), connected: make(chan struct{}, 1)}
	mux := http.NewServeMux()
	mux.Handle(fleetbanv1connect.NewAgentServiceHandler(c))
	server := httptest.NewUnstartedServer(mux)
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)
	proxyURL, used := proxy(t, server.Listener.Addr().String())
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	state := filepath.Join(dir, "state")
	agent := func(ctx context.Context, args ...string) *exec.Cmd {
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(ctx, self, append(args, "--state-dir", state, "--run-user", "nobody")...)
		cmd.Env = append(os.Environ(), "FLEETBAN_TEST_AGENT=1", "HTTPS_PROXY="+proxyURL, "NO_PROXY=")
		return cmd
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()

	// The wrong key: said clearly, at once, and nobody sees the token.
	wrong := agent(ctx, "enroll", "--url", "https://example.com", "--pin", identity.PinPrefix+strings.Repeat("A", 43)+"=", "--token-file", "-")
	wrong.Stdin = strings.NewReader(secret)
	if out, err := wrong.CombinedOutput(); err == nil || !bytes.Contains(out, []byte("not the pinned one")) || bytes.Contains(out, []byte(secret)) {
		t.Errorf("a wrong pin: %v, %s", err, out)
	}
	if len(c.asked) > 0 {
		t.Error("a server with another key was given the token")
	}

	enrol := agent(ctx, "enroll", "--url", "https://example.com", "--ca-file", ca)
	shown := onTerminal(t, enrol, "Join token: ", secret)
	select {
	case token := <-c.asked:
		if token != secret {
			t.Errorf("the token arrived as %q", token)
		}
	case <-ctx.Done():
		t.Fatal("it never asked to be enrolled")
	}
	// While it waits for the answer.
	for _, file := range []string{"cmdline", "environ"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", enrol.Process.Pid, file)) //nolint:gosec // a test's
		if err != nil || len(b) == 0 || bytes.Contains(b, []byte(secret)) {
			t.Errorf("%s: %q, %v", file, b, err)
		}
	}
	close(c.answer)
	if err := enrol.Wait(); err != nil {
		t.Errorf("enroll: %v", err)
	}
	if text := shown(); !strings.Contains(text, "Enrolled: web-1 of Test") || !strings.Contains(text, "watching") || strings.Contains(text, secret) {
		t.Errorf("on the terminal: %q", text)
	}
	if used.Load() == 0 {
		t.Error("the proxy wasn't used")
	}

	// The other half goes the same way, with the authority that was kept.
	before := used.Load()
	stop, stopAgent := context.WithCancel(ctx)
	run := agent(stop, "run")
	var log bytes.Buffer
	run.Stdout, run.Stderr = &log, &log
	run.Cancel = func() error { return run.Process.Signal(syscall.SIGTERM) }
	if err := run.Start(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-c.connected:
	case <-ctx.Done():
		t.Error("it never connected")
	}
	stopAgent()
	_ = run.Wait()
	if used.Load() == before {
		t.Errorf("the stream went past the proxy; log:\n%s", &log)
	}
	if bytes.Contains(log.Bytes(), []byte(secret)) {
		t.Errorf("the token is in the log:\n%s", &log)
	}
}

// onTerminal starts cmd on a terminal of its own, answers its prompt, and returns what gives all that was shown when it has ended.
func onTerminal(t *testing.T, cmd *exec.Cmd, prompt, answer string) func() string {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = master.Close() })
	fd := int(master.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = slave.Close()
	var all []byte
	b := make([]byte, 4096)
	for !strings.Contains(string(all), prompt) {
		n, err := master.Read(b)
		if all = append(all, b[:n]...); err != nil {
			t.Fatalf("it ended without asking: %q", all)
		}
	}
	if _, err := master.WriteString(answer + "\n"); err != nil {
		t.Fatal(err)
	}
	rest := make(chan []byte, 1)
	go func() {
		b, _ := io.ReadAll(master) // ends with an error when nobody has the terminal any more
		rest <- b
	}()
	return func() string { return string(slices.Concat(all, <-rest)) }
}
