package machine

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/fleetban/fleetban/scripts/lab/internal/await"
)

// Where the site itself is on its network: as the machines' gateway, and as somebody else.
const (
	GatewayAddr  = "192.0.2.1"
	StrangerAddr = "192.0.2.66"
)

// Site is one network with booted machines on it.
type Site struct {
	dir      string // of this machine, empty but in the site's namespaces
	holder   *exec.Cmd
	lease    io.Closer
	cgroups  []string
	machines []*Machine
}

// needed are the programs that booting takes, and the packages that bring them.
var needed = []struct{ program, what string }{
	{"systemd-nspawn", "apt-get install systemd-container"},
	{"systemctl", "apt-get install systemd"},
	{"/lib/systemd/systemd", "apt-get install systemd"},
	{"/lib/systemd/systemd-networkd", "apt-get install systemd"},
	{"nsenter", "apt-get install util-linux"},
	{"script", "apt-get install bsdutils"},
	{"ip", "apt-get install iproute2"},
	{"fail2ban-server", "apt-get install fail2ban"},
	{"redis-server", "apt-get install redis-server"},
}

// check says what this machine lacks for booting others.
func check() error {
	if os.Geteuid() != 0 {
		return errors.New("booting a machine needs root: run this with sudo")
	}
	for _, n := range needed {
		if _, err := exec.LookPath(n.program); err != nil {
			return fmt.Errorf("booting a machine needs %s: make setup, or %s", n.program, n.what)
		}
	}
	// fail2ban runs without it, but can neither read nor write a journal.
	if out, err := exec.Command("/usr/bin/python3", "-c", "import systemd.journal").CombinedOutput(); err != nil { //nolint:noctx // ends at once
		return fmt.Errorf("fail2ban can't use a journal here: make setup, or apt-get install python3-systemd: %s", out)
	}
	systems, err := os.ReadFile("/proc/filesystems")
	if err == nil && !strings.Contains(string(systems), "\toverlay\n") {
		return errors.New("booting a machine needs a kernel with overlayfs, and /proc/filesystems doesn't name it: modprobe overlay")
	}
	return nil
}

// hierarchies are the control group trees in which systemd keeps its units.
func hierarchies() []string {
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		return []string{"/sys/fs/cgroup"}
	}
	var found []string
	for _, dir := range []string{"/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified"} {
		if _, err := os.Stat(filepath.Join(dir, "cgroup.procs")); err == nil {
			found = append(found, dir)
		}
	}
	return found
}

// dirPrefix, and the number of the process that made it, begin the name of a site's folder and control groups.
const dirPrefix = "fleetban-machines-"

// clearDead removes what sites left whose process was killed: an empty folder, and control groups in which nothing runs.
func clearDead(trees []string) {
	for _, parent := range append([]string{"/var/tmp"}, trees...) {
		left, _ := filepath.Glob(filepath.Join(parent, dirPrefix+"*"))
		for _, path := range left {
			maker, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(path), dirPrefix), "-")
			if _, err := os.Stat("/proc/" + maker); errors.Is(err, os.ErrNotExist) {
				_ = removeTree(path)
			}
		}
	}
}

// holderScript is the first process of the site's namespaces. It ends, and all in them with it, when the test does.
const holderScript = `set -eu
mount -t proc proc /proc
mount -t tmpfs -o mode=0755 tmpfs /run
mount -t tmpfs -o mode=0755,size=2g tmpfs "$1"
ip link set lo up
ip link add site0 type bridge
ip addr add 192.0.2.1/24 dev site0
ip addr add 192.0.2.66/24 dev site0
ip link set site0 up
echo ready
exec cat >/dev/null`

// New makes a site. Close ends it.
func New(ctx context.Context) (_ *Site, err error) {
	if err := check(); err != nil {
		return nil, err
	}
	s := &Site{}
	trees := hierarchies()
	if len(trees) == 0 {
		return nil, errors.New("booting a machine needs control groups, and /sys/fs/cgroup has neither version 2 nor a systemd hierarchy: " +
			"mount -t cgroup2 cgroup2 /sys/fs/cgroup")
	}
	clearDead(trees)
	if s.dir, err = os.MkdirTemp("/var/tmp", fmt.Sprintf("%s%d-", dirPrefix, os.Getpid())); err != nil {
		return nil, err
	}
	defer func() { //nolint:contextcheck // what was begun is undone, whoever waits
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	for _, tree := range trees {
		group := filepath.Join(tree, filepath.Base(s.dir))
		if err := os.Mkdir(group, 0o755); err != nil {
			return nil, fmt.Errorf("booting a machine needs a control group of its own: %w", err)
		}
		s.cgroups = append(s.cgroups, group)
	}
	cmd := exec.CommandContext(context.WithoutCancel(ctx), "/bin/sh", "-c", holderScript, "sh", s.dir)
	lease, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	var said strings.Builder
	cmd.Stderr = &said
	cmd.Env = []string{path}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:     true,
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID, Unshareflags: syscall.CLONE_NEWNS,
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("make namespaces for machines: %w", err)
	}
	s.holder, s.lease = cmd, lease
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		s.holder = nil
		return nil, fmt.Errorf("make a network for machines: %w: %s", err, strings.TrimSpace(said.String()))
	}
	return s, nil
}

const path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// command is a program in the site's namespaces.
func (s *Site) command(ctx context.Context, args ...string) *exec.Cmd {
	in := []string{"--target", fmt.Sprint(s.holder.Process.Pid), "--mount", "--net", "--pid", "--"}
	cmd := exec.CommandContext(ctx, "nsenter", append(in, args...)...)
	cmd.Env = []string{path, "LC_ALL=C.UTF-8"}
	return cmd
}

// Exec runs a program on the site's network, on none of its machines, and returns what it prints.
func (s *Site) Exec(ctx context.Context, args ...string) (string, error) {
	return output(s.command(ctx, args...))
}

func output(cmd *exec.Cmd) (string, error) {
	var out, diag strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &diag
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(diag.String()))
	}
	return out.String(), nil
}

// Close ends all machines at once, as pulling the plug would, and leaves nothing of the site.
func (s *Site) Close() error {
	if s.holder != nil {
		_ = s.lease.Close()
		_ = s.holder.Process.Kill()
		_ = s.holder.Wait()
	}
	for _, m := range s.machines {
		<-m.ended
	}
	var failed error
	for _, group := range s.cgroups {
		failed = errors.Join(failed, await.Within(context.Background(), 20*time.Second, "control group "+group+" to be empty", func() error {
			return removeTree(group)
		}))
	}
	return errors.Join(failed, os.Remove(s.dir))
}

// removeTree removes a control group and those in it. They can be removed when what ran in them has ended.
func removeTree(group string) error {
	entries, err := os.ReadDir(group)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(group, e.Name())); err != nil {
				return err
			}
		}
	}
	return os.Remove(group)
}
