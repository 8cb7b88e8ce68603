package localrpc_test

import (
	"bufio"
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/agent/internal/localrpc"
	hostv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/host/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/host/v1/hostv1connect"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

func serve(t *testing.T, path string, procedures ...localrpc.Procedure) {
	t.Helper()
	serveAs(t, path, localrpc.SocketOptions{Mode: 0o660, UID: -1, GID: -1}, procedures...)
}

func serveAs(t *testing.T, path string, o localrpc.SocketOptions, procedures ...localrpc.Procedure) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	server, err := localrpc.Listen(ctx, path, o, slog.New(slog.DiscardHandler), procedures...)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Serve: %v", err)
			}
		case <-time.After(time.Minute):
			t.Error("Serve didn't end")
		}
	})
}

func turnOff(_ context.Context, req *hostv1.TurnOffRequest) (*hostv1.TurnOffResponse, error) {
	return hostv1.TurnOffResponse_builder{UntilUnixMs: req.GetDurationMs() + 1}.Build(), nil
}

func TestCallsAndGuard(t *testing.T) {
	t.Parallel()
	me := localrpc.Allow{uint32(os.Getuid())} //nolint:gosec // a uid
	others := localrpc.Allow{me[0] + 1, 4_000_000}
	path := filepath.Join(t.TempDir(), "s")
	ended := make(chan struct{})
	var once sync.Once
	observe := func(ctx context.Context, _ *hostv1.ObserveRequest, send func(*hostv1.ObserveResponse) error) error {
		for range 3 {
			if err := send(hostv1.ObserveResponse_builder{Change: hostv1.Change_builder{Jail: "sshd"}.Build()}.Build()); err != nil {
				return err
			}
		}
		<-ctx.Done()
		once.Do(func() { close(ended) })
		return ctx.Err()
	}
	health := func(_ context.Context, _ *hostv1.WatchHealthRequest, _ func(*hostv1.WatchHealthResponse) error) error {
		t.Error("the guard let a stranger through to a stream")
		return nil
	}
	serve(t, path,
		localrpc.Unary(hostv1connect.HelperServiceTurnOffProcedure, me, turnOff),
		localrpc.Unary(hostv1connect.HelperServiceTurnOnProcedure, others, func(context.Context, *hostv1.TurnOnRequest) (*hostv1.TurnOnResponse, error) {
			t.Error("the guard let a stranger through")
			return &hostv1.TurnOnResponse{}, nil
		}),
		localrpc.ServerStream(hostv1connect.HelperServiceObserveProcedure, me, observe),
		localrpc.ServerStream(hostv1connect.HelperServiceWatchHealthProcedure, others, health),
	)
	if fi, err := os.Lstat(path); err != nil || fi.Mode().Perm() != 0o660 || fi.Mode().Type() != os.ModeSocket {
		t.Fatalf("socket: %v, %v", fi.Mode(), err)
	}
	client := localrpc.NewClient(path)
	defer client.Close()
	ctx := t.Context()

	var off hostv1.TurnOffResponse
	if err := client.Call(ctx, hostv1connect.HelperServiceTurnOffProcedure, hostv1.TurnOffRequest_builder{DurationMs: 41}.Build(), &off); err != nil || off.GetUntilUnixMs() != 42 {
		t.Fatalf("TurnOff: %v, %v", &off, err)
	}
	err := client.Call(ctx, hostv1connect.HelperServiceTurnOnProcedure, &hostv1.TurnOnRequest{}, &hostv1.TurnOnResponse{})
	if connect.CodeOf(err) != connect.CodePermissionDenied || localrpc.InfoOf(err).GetReason() != fleetbanv1.Reason_REASON_PERMISSION_DENIED {
		t.Errorf("unary by a stranger: %v", err)
	}
	err = localrpc.Stream(ctx, client, hostv1connect.HelperServiceWatchHealthProcedure, &hostv1.WatchHealthRequest{}, func(*hostv1.WatchHealthResponse) error { return nil })
	if connect.CodeOf(err) != connect.CodePermissionDenied {
		t.Errorf("stream by a stranger: %v", err)
	}
	// The generated client speaks the same wire.
	generated := hostv1connect.NewHelperServiceClient(client.HTTPClient(), "http://localhost")
	if res, err := generated.TurnOff(ctx, connect.NewRequest(hostv1.TurnOffRequest_builder{DurationMs: 1}.Build())); err != nil || res.Msg.GetUntilUnixMs() != 2 {
		t.Errorf("generated client: %v, %v", res, err)
	}

	streamCtx, cancel := context.WithCancel(ctx)
	n := 0
	err = localrpc.Stream(streamCtx, client, hostv1connect.HelperServiceObserveProcedure, &hostv1.ObserveRequest{}, func(r *hostv1.ObserveResponse) error {
		if r.GetChange().GetJail() != "sshd" {
			t.Errorf("got %v", r)
		}
		if n++; n == 3 {
			cancel()
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) || n != 3 {
		t.Errorf("stream: %d messages, %v", n, err)
	}
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Error("the server didn't notice that the caller went")
	}
}

func TestMessageBound(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	serve(t, path, localrpc.Unary(hostv1connect.HelperServiceApplyProcedure, localrpc.Allow{uint32(os.Getuid())}, //nolint:gosec // a uid
		func(context.Context, *hostv1.ApplyRequest) (*hostv1.ApplyResponse, error) {
			return &hostv1.ApplyResponse{}, nil
		}))
	// The bound holds whoever the client is: the generated one has none of its own.
	client := localrpc.NewClient(path)
	defer client.Close()
	generated := hostv1connect.NewHelperServiceClient(client.HTTPClient(), "http://localhost")
	big := hostv1.ApplyRequest_builder{Sync: fleetbanv1.SetSync_builder{Cursor: fleetbanv1.SetCursor_builder{Set: strings.Repeat("x", 5<<20)}.Build()}.Build()}.Build()
	if _, err := generated.Apply(t.Context(), connect.NewRequest(big)); connect.CodeOf(err) != connect.CodeResourceExhausted {
		t.Errorf("5 MiB: %v", err)
	}
}

// The other half, taken over, can't keep a person from the off switch, nor fill the memory with calls that never end.
func TestConnectionsOfOneUserAreBounded(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Fatal("this test becomes another user: run it as root")
	}
	const nobody, tries = 65534, 100
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s")
	serveAs(t, path, localrpc.SocketOptions{Mode: 0o660, UID: -1, GID: nobody},
		localrpc.Unary(hostv1connect.HelperServiceTurnOffProcedure, localrpc.Allow{0}, turnOff))
	// A shell's worth of connections that say half a request and wait.
	flood := exec.Command("/usr/bin/python3", "-c", `
import socket, sys, time
held = []
for _ in range(int(sys.argv[2])):
    s = socket.socket(socket.AF_UNIX); s.settimeout(60); s.connect(sys.argv[1])
    try: s.send(b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n")
    except OSError: pass
    held.append(s)
refused, until = 0, time.time() + 60
while refused < int(sys.argv[2]) // 2 and time.time() < until:
    for s in list(held):
        s.settimeout(0.02)
        try: over = s.recv(1) == b""
        except TimeoutError: over = False
        except OSError: over = True
        if over:
            held.remove(s)
            refused += 1
print(refused, flush=True)
sys.stdin.read()
`, path, strconv.Itoa(tries))
	flood.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	hold, err := flood.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := flood.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := flood.Start(); err != nil {
		t.Fatal(err)
	}
	defer flood.Wait() //nolint:errcheck // a test's end
	defer hold.Close() //nolint:errcheck // a test's end
	line, err := bufio.NewReader(out).ReadString('\n')
	if refused, _ := strconv.Atoi(strings.TrimSpace(line)); err != nil || refused < tries/2 {
		t.Errorf("%q of %d connections were turned away, %v", line, tries, err)
	}
	client := localrpc.NewClient(path)
	defer client.Close()
	if err := client.Call(t.Context(), hostv1connect.HelperServiceTurnOffProcedure, &hostv1.TurnOffRequest{}, &hostv1.TurnOffResponse{}); err != nil {
		t.Errorf("root: %v", err)
	}
}

func TestSocketFile(t *testing.T) {
	t.Parallel()
	logger := slog.New(slog.DiscardHandler)
	o := localrpc.SocketOptions{UID: -1, GID: -1}

	t.Run("two servers", func(t *testing.T) {
		t.Parallel()
		path := filepath.Join(t.TempDir(), "s")
		serve(t, path)
		if _, err := localrpc.Listen(t.Context(), path, o, logger); !errors.Is(err, localrpc.ErrInUse) {
			t.Errorf("second server: %v", err)
		}
	})
	t.Run("stale", func(t *testing.T) {
		t.Parallel()
		path := filepath.Join(t.TempDir(), "s")
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		l.(*net.UnixListener).SetUnlinkOnClose(false)
		_ = l.Close()
		serve(t, path, localrpc.Unary(hostv1connect.HelperServiceTurnOffProcedure, localrpc.Allow{uint32(os.Getuid())}, turnOff)) //nolint:gosec // a uid
		client := localrpc.NewClient(path)
		defer client.Close()
		if err := client.Call(t.Context(), hostv1connect.HelperServiceTurnOffProcedure, &hostv1.TurnOffRequest{}, &hostv1.TurnOffResponse{}); err != nil {
			t.Error(err)
		}
	})
	t.Run("a file", func(t *testing.T) {
		t.Parallel()
		path := filepath.Join(t.TempDir(), "s")
		if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := localrpc.Listen(t.Context(), path, o, logger); err == nil {
			t.Error("a file was taken for a stale socket")
		}
		if b, _ := os.ReadFile(path); string(b) != "precious" {
			t.Error("the file is gone")
		}
	})
	t.Run("long path", func(t *testing.T) {
		t.Parallel()
		if _, err := localrpc.Listen(t.Context(), filepath.Join(t.TempDir(), strings.Repeat("x", 110)), o, logger); err == nil || !strings.Contains(err.Error(), "107") {
			t.Errorf("got %v", err)
		}
	})
}

func TestUnreachable(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "nobody")
	client := localrpc.NewClient(path)
	var unreachable *localrpc.UnreachableError
	err := client.Call(t.Context(), hostv1connect.HelperServiceTurnOffProcedure, &hostv1.TurnOffRequest{}, &hostv1.TurnOffResponse{})
	if !errors.As(err, &unreachable) || unreachable.Path != path || !strings.HasSuffix(err.Error(), "no such file or directory") {
		t.Errorf("got %v", err)
	}
}
