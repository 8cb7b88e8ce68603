package installer_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/cli"
	"github.com/fleetban/fleetban/controlplane/internal/store/redistest"
)

// build builds a program, with files of its tree replaced.
func build(ctx context.Context, t *testing.T, dir, pkg, out string, replace map[string]string) {
	t.Helper()
	args := []string{"build", "-trimpath", "-o", out}
	if replace != nil {
		text, err := json.Marshal(map[string]any{"Replace": replace})
		if err != nil {
			t.Fatal(err)
		}
		overlay := filepath.Join(t.TempDir(), "overlay.json")
		if err := os.WriteFile(overlay, text, 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "-overlay", overlay)
	}
	cmd := exec.CommandContext(ctx, "go", append(args, pkg)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, text)
	}
}

// notices collects what a program prints.
type notices struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (n *notices) Write(p []byte) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.text.Write(p)
}

func (n *notices) String() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.text.String()
}

// controlPlane runs the real program with its own Redis, serving the agent that was built here.
type controlPlane struct {
	url, pin, token string
	// home is the owner's, who is logged in there.
	home string
}

// linkForm is the set-up link: where, the secret, and the server's key.
var linkForm = regexp.MustCompile(`https://[^']*/setup#fbs_[A-Za-z0-9_-]+\.([A-Za-z0-9_-]{43})`)

func startControlPlane(ctx context.Context, t *testing.T, dir string) controlPlane {
	t.Helper()
	top, err := filepath.Abs(filepath.Join("..", "..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	agent, program := filepath.Join(dir, "agent"), filepath.Join(dir, "controlplane")
	build(ctx, t, filepath.Join(top, "agent"), "./cmd/fleetban-agent", agent, nil)
	build(ctx, t, filepath.Join(top, "controlplane"), "./cmd/fleetban-controlplane", program, map[string]string{
		filepath.Join(top, "controlplane/internal/installer/dist/fleetban-agent-linux-"+runtime.GOARCH): agent,
	})
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(redistest.FreePort(t)))
	cp := controlPlane{url: "https://" + address}
	out := &notices{}
	cmd := exec.CommandContext(ctx, program, "serve", "--data-dir", filepath.Join(dir, "data"), "--listen", address, "--public-url", cp.url, "--drain-window", "100ms")
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var link []string
	for link == nil {
		select {
		case <-ctx.Done():
			t.Fatalf("the control plane shows no link:\n%s", out)
		case <-tick.C:
		}
		link = linkForm.FindStringSubmatch(out.String())
	}
	key, err := base64.RawURLEncoding.DecodeString(link[1])
	if err != nil {
		t.Fatal(err)
	}
	cp.pin, cp.home = "sha256//"+base64.StdEncoding.EncodeToString(key), t.TempDir()
	var nothing struct{}
	cp.types(ctx, t, "seven-brass-kettles-71\n", &nothing, "setup", link[0], "--email", "owner@example.com", "--password-stdin")
	var made struct{ Secret string }
	cp.fleetban(ctx, t, &made, "tokens", "create", "test", "-O", "--role", "admin")
	cp.token = made.Secret
	return cp
}

// fleetban runs the operator's command and returns its JSON.
func (cp controlPlane) fleetban(ctx context.Context, t *testing.T, into any, args ...string) {
	t.Helper()
	cp.types(ctx, t, "", into, args...)
}

// types is fleetban with a text on its standard input.
func (cp controlPlane) types(ctx context.Context, t *testing.T, input string, into any, args ...string) {
	t.Helper()
	var out, errs bytes.Buffer
	env := map[string]string{"FLEETBAN_URL": cp.url, "FLEETBAN_PIN": cp.pin, "HOME": cp.home}
	code := cli.Run(ctx, append(args, "-o", "json"), &cli.Env{
		Stdin: strings.NewReader(input), Stdout: &out, Stderr: &errs, Now: time.Now, Getenv: func(name string) string { return env[name] },
	})
	if code != 0 {
		t.Fatalf("fleetban %v: %d\n%s%s", args, code, &out, &errs)
	}
	if err := json.Unmarshal(out.Bytes(), into); err != nil {
		t.Fatal(err)
	}
}

// machine is this machine with a disk of its own on top: what is written there is seen nowhere else.
type machine struct{ dir string }

func newMachine(t *testing.T) machine {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root: it mounts an overlay")
	}
	m := machine{dir: t.TempDir()}
	for _, sub := range []string{"upper", "work", "root"} {
		if err := os.Mkdir(filepath.Join(m.dir, sub), 0o755); err != nil { //nolint:gosec // a root folder
			t.Fatal(err)
		}
	}
	return m
}

// sh runs a line on the machine with no terminal, in namespaces that end with it. /run is empty but for what `before` puts there.
func (m machine) sh(ctx context.Context, before string, env []string, line string) (string, error) {
	mounts := fmt.Sprintf(`set -e
cd %q
mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root
mount --rbind /dev root/dev
mount -t proc proc root/proc
mount -t tmpfs tmpfs root/run
mount -t tmpfs tmpfs root/tmp
%s
exec chroot root setsid --wait sh -c "$LINE"`, m.dir, before)
	cmd := exec.CommandContext(ctx, "unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private", "sh", "-c", mounts)
	cmd.Env = append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LINE=" + line}, env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// path is a file that was written on the machine.
func (m machine) path(name string) string { return filepath.Join(m.dir, "upper", name) }

// The line that `fleetban join-token create` prints, run for real: a machine, a control plane, an agent.
func TestInstall(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cp := startControlPlane(ctx, t, t.TempDir())
	m := newMachine(t)
	var created struct{ Secret, InstallLine string }
	cp.fleetban(ctx, t, &created, "join-token", "create")
	env := []string{"FLEETBAN_JOIN_TOKEN=" + created.Secret}
	identity := m.path("var/lib/fleetban-agent/identity.json")

	// Without a token, with a wrong one, from another server: refused, and no identity is made.
	for name, tc := range map[string]struct {
		line string
		env  []string
		says string
	}{
		"no token":     {created.InstallLine, nil, "FLEETBAN_JOIN_TOKEN"},
		"API token":    {created.InstallLine, []string{"FLEETBAN_JOIN_TOKEN=" + cp.token}, "API token"},
		"unknown":      {created.InstallLine, []string{"FLEETBAN_JOIN_TOKEN=" + created.Secret[:20]}, "not enrolled"},
		"in arguments": {created.InstallLine + " -s -- " + created.Secret, nil, "argument list"},
		"other server": {strings.Replace(created.InstallLine, "sha256//", "sha256//AAAA", 1), env, "curl"},
		"other option": {created.InstallLine + " -s -- --frobnicate", env, "--help"},
	} {
		// With the PATH that somebody has who became root by su.
		out, err := m.sh(ctx, "", tc.env, "export PATH=/usr/local/bin:/usr/bin:/bin:/usr/games; "+tc.line)
		if err == nil && name != "other server" || !strings.Contains(out, tc.says) { // of a pipe, sh's own end counts
			t.Errorf("%s: %v\n%s", name, err, out)
		}
		if strings.Contains(out, created.Secret) || strings.Contains(out, cp.token) {
			t.Errorf("%s: a token is shown", name)
		}
	}
	if _, err := os.Stat(identity); err == nil {
		t.Fatal("an identity was made")
	}

	out, err := m.sh(ctx, "", env, created.InstallLine)
	if err != nil {
		t.Fatalf("install: %v\n%s", err, out)
	}
	t.Log(out)
	for _, want := range []string{"fail2ban    ", "nftables    ", "fleetban-agent off", "fleetban-agent uninstall", "fleetban-agent helper", "Enrolled: "} {
		if !strings.Contains(out, want) {
			t.Errorf("the installer doesn't say %q", want)
		}
	}
	if strings.Contains(out, created.Secret) {
		t.Error("the join token is shown")
	}
	for name, mode := range map[string]os.FileMode{
		"usr/local/bin/fleetban-agent": 0o755, "etc/fleetban/policy.toml": 0o644, "var/lib/fleetban-agent": 0o700 | os.ModeDir,
		"var/lib/fleetban-helper": 0o700 | os.ModeDir, "var/lib/fleetban-agent/identity.json": 0o600,
	} {
		info, err := os.Stat(m.path(name))
		if err != nil || info.Mode() != mode {
			t.Errorf("%s: %v, %v, want %v", name, info, err, mode)
		}
	}
	passwd, err := os.ReadFile(m.path("etc/passwd"))
	if err != nil || !regexp.MustCompile(`(?m)^fleetban:.*nologin$`).Match(passwd) {
		t.Errorf("no user was made: %v", err)
	}
	if owner, err := m.sh(ctx, "", nil, "stat -c %U /var/lib/fleetban-agent /var/lib/fleetban-agent/identity.json"); err != nil || owner != "fleetban\nfleetban\n" {
		t.Errorf("the agent's folder is of %q, %v", owner, err)
	}
	var hosts struct {
		Hosts []struct{ Name, Presence string }
	}
	if cp.fleetban(ctx, t, &hosts, "hosts"); len(hosts.Hosts) != 1 || hosts.Hosts[0].Presence != "PRESENCE_NEW" {
		t.Errorf("hosts %v", hosts)
	}
	err = filepath.WalkDir(m.path(""), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		text, err := os.ReadFile(path)
		if bytes.Contains(text, []byte(created.Secret)) {
			t.Errorf("the join token was left in %s", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	upgrade(ctx, t, cp, m, created.InstallLine)
}

// upgrade runs the line again, with no token, where systemd is in charge: the host keeps its identity and its policy.
// systemd can't run here; what is asked of it is recorded.
func upgrade(ctx context.Context, t *testing.T, cp controlPlane, m machine, line string) {
	t.Helper()
	read := func(name string) string {
		t.Helper()
		text, err := os.ReadFile(m.path(name))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	identity := read("var/lib/fleetban-agent/identity.json")
	out, err := m.sh(ctx, `mkdir -p root/run/systemd/system
echo '# mine' >> root/etc/fleetban/policy.toml
printf '#!/bin/sh\necho "$@" >> /var/log/systemctl\n' > root/usr/local/sbin/systemctl
chmod 755 root/usr/local/sbin/systemctl`, nil, line+" -s -- --yes")
	if err != nil {
		t.Fatalf("install again: %v\n%s", err, out)
	}
	if read("var/lib/fleetban-agent/identity.json") != identity {
		t.Error("the second run changed the identity")
	}
	if !strings.HasSuffix(read("etc/fleetban/policy.toml"), "# mine\n") {
		t.Error("the second run changed the policy")
	}
	asked := read("var/log/systemctl")
	for _, want := range []string{"daemon-reload", "enable --quiet fleetban-helper.service fleetban-agent.service", "restart fleetban-helper.service fleetban-agent.service"} {
		if !strings.Contains(asked, want) {
			t.Errorf("systemd wasn't asked to %s:\n%s", want, asked)
		}
	}
	for _, unit := range []string{"fleetban-agent.service", "fleetban-helper.service"} {
		want, err := os.ReadFile(unit)
		if err != nil || read("etc/systemd/system/"+unit) != string(want) {
			t.Errorf("%s isn't installed (%v)", unit, err)
		}
	}
	var hosts struct{ Hosts []struct{ Name string } }
	if cp.fleetban(ctx, t, &hosts, "hosts"); len(hosts.Hosts) != 1 {
		t.Errorf("hosts after the second run: %v", hosts)
	}
}
