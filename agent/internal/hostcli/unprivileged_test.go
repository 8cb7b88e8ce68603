package hostcli

import (
	"bytes"
	"context"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fleetban/fleetban/proto/gen/go/fleetban/v1/fleetbanv1connect"
)

// TestUnprivileged runs the two halves as every supervisor should: the helper as root, run as somebody without any right.
func TestUnprivileged(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Fatal("run this as root: the helper needs it")
	}
	nobody, err := user.Lookup("nobody")
	if err != nil {
		t.Fatal(err)
	}
	uid, err := strconv.Atoi(nobody.Uid)
	if err != nil {
		t.Fatal(err)
	}
	gid, err := strconv.Atoi(nobody.Gid)
	if err != nil {
		t.Fatal(err)
	}
	c := &control{asked: make(chan string, 10), answer: make(chan struct{}), connected: make(chan struct{}, 1)}
	close(c.answer)
	mux := http.NewServeMux()
	mux.Handle(fleetbanv1connect.NewAgentServiceHandler(c))
	server := httptest.NewUnstartedServer(mux)
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)

	// A place of theirs that nobody can reach and read, as in an installation.
	dir := t.TempDir()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "fleetban-agent")
	if out, err := exec.Command("install", "-m", "0755", self, program).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	ca, token := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "token")
	for path, text := range map[string][]byte{
		ca: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), token: []byte(secret),
	} {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	state := filepath.Join(dir, "state")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	agent := func(before []string, args ...string) *exec.Cmd {
		argv := append(append(before, program), args...)
		argv = append(argv, "--state-dir", state, "--run-user", "nobody", "--fail2ban-socket", filepath.Join(dir, "no-fail2ban.sock"),
			"--policy", filepath.Join(dir, "policy.toml"))
		cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
		cmd.Env = []string{"FLEETBAN_TEST_AGENT=1", "PATH=" + os.Getenv("PATH")}
		return cmd
	}
	if out, err := agent(nil, "enroll", "--url", server.URL, "--ca-file", ca, "--token-file", token).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	// The helper's rules are to touch no network but one of its own.
	helper := agent([]string{"unshare", "--net", "--"}, "helper")
	run := agent(nil, "run")
	run.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	for _, half := range []*exec.Cmd{helper, run} {
		var log bytes.Buffer
		half.Stdout, half.Stderr = &log, &log
		half.Cancel = func() error { return half.Process.Signal(syscall.SIGTERM) }
		if half == run { // the helper makes the folder for the other half's socket; a supervisor would try until it has
			until(ctx, t, "the helper to make its socket", func() bool {
				_, err := os.Stat(filepath.Join(state, "run", "helper.sock"))
				return err == nil
			})
		}
		if err := half.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			cancel()
			_ = half.Wait()
			if t.Failed() {
				t.Logf("%v:\n%s", half.Args, &log)
			}
		})
	}
	select {
	case <-c.connected:
	case <-ctx.Done():
		t.Fatal("run never connected")
	}
	until(ctx, t, "run to reach the helper", func() bool {
		out, _ := agent(nil, "status", "-o", "json").Output() // it ends with 1, for there is no fail2ban
		return strings.Contains(string(out), `"helper_connected": true`)
	})
	kernel, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", run.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		fmt.Sprintf("\nUid:\t%d\t%d\t%d\t%d\n", uid, uid, uid, uid), "\nCapEff:\t0000000000000000\n", "\nCapPrm:\t0000000000000000\n",
	} {
		if !strings.Contains(string(kernel), want) {
			t.Errorf("run's process doesn't have %q:\n%s", want, kernel)
		}
	}
	// What is whose: nobody else reads the identity or what the helper keeps.
	err = filepath.Walk(state, func(path string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		if info.Mode().IsRegular() && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s can be read by others: %s", path, info.Mode())
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// until looks at a condition that nothing signals until it holds or ctx ends.
func until(ctx context.Context, t *testing.T, what string, cond func() bool) {
	t.Helper()
	for !cond() {
		select {
		case <-ctx.Done():
			t.Fatalf("waited in vain for %s", what)
		case <-time.After(10 * time.Millisecond):
		}
	}
}
