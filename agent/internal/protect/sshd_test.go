package protect_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fleetban/fleetban/agent/internal/policy"
	"github.com/fleetban/fleetban/agent/internal/protect"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

const inside = "FLEETBAN_TEST_INSIDE"

// TestRealSSHD logs in to a real sshd in a network namespace, and looks at who is protected before, during and after.
// What it looks at is /proc of a process in that namespace, so the test runs itself again inside.
func TestRealSSHD(t *testing.T) {
	if os.Getenv(inside) == "" {
		if os.Geteuid() != 0 {
			t.Fatal("this test makes a network namespace and runs sshd: run it as root")
		}
		ns := fmt.Sprintf("fbssh%d", os.Getpid())
		mustRun(t, "ip", "netns", "add", ns)
		t.Cleanup(func() { mustRun(t, "ip", "netns", "del", ns) })
		for _, args := range [][]string{{"link", "set", "lo", "up"}, {"addr", "add", "198.51.100.7/32", "dev", "lo"}, {"addr", "add", "203.0.113.9/32", "dev", "lo"}, {"addr", "add", "203.0.113.66/32", "dev", "lo"}} {
			mustRun(t, "ip", append([]string{"-n", ns}, args...)...)
		}
		cmd := exec.Command("ip", "netns", "exec", ns, os.Args[0], "-test.run=^TestRealSSHD$", "-test.v")
		cmd.Env = append(os.Environ(), inside+"=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	dir := t.TempDir()
	for _, key := range []string{"host", "user"} {
		mustRun(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, key))
	}
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil { //nolint:gosec // sshd wants it so
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	sshd := exec.CommandContext(ctx, "/usr/sbin/sshd", "-D", "-e", "-f", "/dev/null", "-h", filepath.Join(dir, "host"), "-p", "2222",
		"-o", "AuthorizedKeysFile="+filepath.Join(dir, "user.pub"), "-o", "StrictModes=no", "-o", "PermitRootLogin=yes", "-o", "UsePAM=no", "-o", "PidFile=none")
	stderr, err := sshd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := sshd.Start(); err != nil {
		t.Fatal(err)
	}
	defer sshd.Wait() //nolint:errcheck // killed by its context
	defer cancel()
	lines := bufio.NewScanner(stderr)
	for lines.Scan() && !strings.Contains(lines.Text(), "listening on 0.0.0.0") {
	}
	go func() {
		for lines.Scan() { // sshd must not block on a full pipe
		}
	}()

	// The host's own addresses are those of the clients here: leave them out.
	p := protect.New(protect.Config{Addresses: func() ([]net.Addr, error) { return nil, nil }}, policy.Default())
	admin, attacker := netip.MustParsePrefix("203.0.113.9/32"), netip.MustParsePrefix("203.0.113.66/32")
	want := func(step string, b netip.Prefix, refused bool) {
		t.Helper()
		deadline := time.Now().Add(time.Minute)
		for {
			r, got := p.Check(b)
			if got == refused && (!got || r == fleetbanv1.Refusal_REFUSAL_SSH_PEER) {
				return
			}
			if time.Now().After(deadline) {
				titles, _ := exec.Command("sh", "-c", "grep -a sshd /proc/*/cmdline | tr '\\0' ' '").Output()
				t.Fatalf("%s: Check(%s) is %v, want %v\n%s", step, b, got, refused, titles)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	want("before", admin, false)
	client := func(from string, more ...string) *exec.Cmd {
		args := append([]string{
			"-F", "/dev/null", "-b", from, "-p", "2222", "-i", filepath.Join(dir, "user"), "-o", "IdentitiesOnly=yes",
			"-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes",
		}, more...)
		return exec.CommandContext(ctx, "ssh", args...)
	}
	// Somebody who has only said that they are root.
	c, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("203.0.113.66")}}).Dial("tcp", "198.51.100.7:2222")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // a test's end
	if _, err := bufio.NewReader(c).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	for _, session := range [][]string{{"root@198.51.100.7", "sleep", "300"}, {"-N", "root@198.51.100.7"}} {
		ssh := client("203.0.113.9", session...)
		if err := ssh.Start(); err != nil {
			t.Fatal(err)
		}
		want("logged in", admin, true)
		want("logged in, around it", netip.MustParsePrefix("203.0.113.0/28"), true)
		want("the attacker", attacker, false)
		_ = ssh.Process.Kill()
		_ = ssh.Wait()
		want("logged out", admin, false)
	}
}

func mustRun(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}
