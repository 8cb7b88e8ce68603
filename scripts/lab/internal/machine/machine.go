package machine

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/fleetban/fleetban/scripts/lab/internal/await"
)

// Options say what a machine is.
type Options struct {
	// Name is its host name.
	Name string
	// Addr is its address on the site's network, 192.0.2.0/24; .1 is the site itself.
	Addr netip.Addr
	// Files are written before it boots: path and text.
	Files map[string]string
	// Programs are put at /usr/local/bin, read-only: name and where it is on this machine.
	Programs map[string]string
	// Enable are units that start at boot, besides the network.
	Enable []string
}

// Machine is one booted machine.
type Machine struct {
	Options
	site  *Site
	ended chan struct{} // closed when it is off
}

// rootScript lays out a machine's root. /usr and /etc are this machine's with a layer above that takes what is changed;
// /etc loses what somebody set up here.
const rootScript = `set -eu
umask 022
mkdir -p "$1/root" && cd "$1"
for part in usr etc; do
	mkdir -p "layer/$part" "work/$part" "root/$part"
	mount -t overlay -o "lowerdir=/$part,upperdir=$1/layer/$part,workdir=$1/work/$part" overlay "root/$part"
done
cd root
for link in bin sbin lib lib32 lib64 libx32; do
	[ ! -L "/$link" ] || cp -a "/$link" "$link"
done
mkdir -p dev home media mnt opt proc root run srv sys tmp var/cache var/lib/fail2ban var/log/journal var/spool var/tmp
chmod 700 root
chmod 1777 tmp var/tmp
ln -s /run var/run
rm -rf etc/systemd/system etc/systemd/network etc/fleetban etc/nftables.d
rm -f etc/machine-id etc/resolv.conf etc/nftables.conf etc/fail2ban/*.local etc/fail2ban/jail.d/*.local etc/fail2ban/fail2ban.d/*.conf
rm -f etc/fail2ban/fail2ban.d/*.local usr/local/bin/fleetban*
mkdir -p etc/systemd/system etc/systemd/network
for list in passwd group shadow gshadow; do
	sed -i '/^fleetban:/d' "etc/$list"
	rm -f "etc/$list-"
done
: >etc/fstab`

// Boot makes a machine and starts it; AwaitUp waits until it is up.
func (s *Site) Boot(ctx context.Context, options Options) (*Machine, error) {
	m := &Machine{Options: options, site: s, ended: make(chan struct{})}
	if _, err := s.Exec(ctx, "/bin/sh", "-c", rootScript, "sh", m.dir()); err != nil {
		return nil, fmt.Errorf("lay out %s: %w", m.Name, err)
	}
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		return nil, err
	}
	files := map[string]string{
		"/etc/hostname":    m.Name + "\n",
		"/etc/machine-id":  hex.EncodeToString(id) + "\n",
		"/etc/hosts":       "127.0.0.1 localhost " + m.Name + "\n::1 localhost\n",
		"/etc/resolv.conf": "",
		"/etc/systemd/network/10-site.network": "[Match]\nName=host0\n[Network]\nAddress=" + m.Addr.String() +
			"/24\nGateway=192.0.2.1\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n",
	}
	for path, text := range options.Files {
		files[path] = text
	}
	for path, text := range files {
		if err := m.WriteFile(path, text); err != nil {
			return nil, err
		}
	}
	for _, unit := range []string{"console-getty.service", "getty.target", "systemd-timesyncd.service"} {
		if err := os.Symlink("/dev/null", m.outside("/etc/systemd/system/"+unit)); err != nil {
			return nil, err
		}
	}
	enable := append([]string{"systemctl", "--quiet", "--root=" + m.root(), "enable", "systemd-networkd.service"}, m.Enable...)
	if _, err := s.Exec(ctx, enable...); err != nil {
		return nil, fmt.Errorf("enable the units of %s: %w", m.Name, err)
	}
	if err := m.start(ctx); err != nil {
		return nil, err
	}
	s.machines = append(s.machines, m)
	return m, nil
}

func (m *Machine) dir() string  { return filepath.Join(m.site.dir, m.Name) }
func (m *Machine) root() string { return filepath.Join(m.dir(), "root") }

// outside is where a file of the machine's disk is seen from this one, whether the machine is on or off.
func (m *Machine) outside(path string) string {
	return fmt.Sprintf("/proc/%d/root%s%s", m.site.holder.Process.Pid, m.root(), path)
}

// WriteFile writes a file on the machine's disk.
func (m *Machine) WriteFile(path, text string) error {
	if err := os.MkdirAll(filepath.Dir(m.outside(path)), 0o755); err != nil {
		return err
	}
	return os.WriteFile(m.outside(path), []byte(text), 0o644)
}

// ReadFile reads a file of the machine's disk.
func (m *Machine) ReadFile(path string) (string, error) {
	b, err := os.ReadFile(m.outside(path))
	return string(b), err
}

// rebootCode is what systemd-nspawn ends with when the machine wants to be started again.
const rebootCode = 133

// start switches the machine on, and on again whenever it reboots itself: each time its kernel network begins empty.
func (m *Machine) start(ctx context.Context) error {
	args := []string{
		"systemd-nspawn", "--quiet", "--boot", "--directory=" + m.root(), "--machine=" + m.Name, "--register=no", "--keep-unit",
		"--network-bridge=site0", "--settings=no", "--link-journal=no", "--resolv-conf=off", "--timezone=off", "--console=pipe",
	}
	for name, path := range m.Programs {
		abs, err := filepath.Abs(path)
		if err != nil {
			return err
		}
		args = append(args, "--bind-ro="+abs+":/usr/local/bin/"+name)
	}
	// Of its own for each machine: systemd-nspawn makes folders of fixed names in it.
	var enter strings.Builder
	for _, group := range m.site.cgroups {
		own := filepath.Join(group, m.Name)
		if err := os.MkdirAll(own, 0o755); err != nil {
			return err
		}
		fmt.Fprintf(&enter, "echo 0 >%s/cgroup.procs\n", own)
	}
	// The machine outlives the call that starts it.
	ctx = context.WithoutCancel(ctx)
	on := func() (*exec.Cmd, error) {
		said, err := os.OpenFile(m.outside("/../console"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return nil, err
		}
		defer said.Close()
		cmd := m.site.command(ctx, append([]string{"/bin/sh", "-ec", enter.String() + `exec "$@"`, "sh"}, args...)...)
		// Control groups as machines of today have them, also where this one has the older kind.
		cmd.Env = append(cmd.Env, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1")
		cmd.Stdout, cmd.Stderr = said, said
		return cmd, cmd.Start()
	}
	cmd, err := on()
	if err != nil {
		return err
	}
	go func() {
		defer close(m.ended)
		for {
			var exit *exec.ExitError
			if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != rebootCode {
				return
			}
			if cmd, err = on(); err != nil {
				return
			}
		}
	}()
	return nil
}

// errOff is what is said of a machine that isn't on.
var errOff = errors.New("it isn't on")

// Leader finds the machine's first process, as this machine numbers it: the first one of a PID namespace within the site's
// that has the machine's name.
func (m *Machine) Leader() (int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			continue
		}
		_, rest, _ := strings.Cut(string(status), "\nNSpid:")
		line, _, _ := strings.Cut(rest, "\n")
		if ids := strings.Fields(line); len(ids) != 3 || ids[2] != "1" {
			continue
		}
		if link, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err != nil || filepath.Base(link) != "systemd" {
			continue
		}
		// systemd-nspawn has laid out the root when there is a name in it.
		if name, err := os.ReadFile(fmt.Sprintf("/proc/%d/root/etc/hostname", pid)); err != nil || strings.TrimSpace(string(name)) != m.Name {
			continue
		}
		id, err := os.ReadFile(fmt.Sprintf("/proc/%d/root/etc/machine-id", pid))
		if own, err2 := m.ReadFile("/etc/machine-id"); err == nil && err2 == nil && own == string(id) {
			return pid, nil
		}
	}
	return 0, fmt.Errorf("%s: %w", m.Name, errOff)
}

// Command is a program on the machine, with root's environment of a login and env.
func (m *Machine) Command(ctx context.Context, env []string, args ...string) (*exec.Cmd, error) {
	pid, err := m.Leader()
	if err != nil {
		return nil, err
	}
	in := []string{"--target", fmt.Sprint(pid), "--all", "--", "env", "-C", "/"}
	cmd := exec.CommandContext(ctx, "nsenter", append(in, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // whoever runs the tests has a terminal, the machine hasn't
	cmd.Env = append([]string{path, "HOME=/root", "LANG=C.UTF-8", "TERM=xterm"}, env...)
	return cmd, nil
}

// Exec runs a program on the machine and returns what it prints.
func (m *Machine) Exec(ctx context.Context, args ...string) (string, error) {
	return m.ExecEnv(ctx, nil, args...)
}

// ExecEnv is Exec with variables.
func (m *Machine) ExecEnv(ctx context.Context, env []string, args ...string) (string, error) {
	cmd, err := m.Command(ctx, env, args...)
	if err != nil {
		return "", err
	}
	out, err := output(cmd)
	if err != nil {
		return out, fmt.Errorf("on %s: %w", m.Name, err)
	}
	return out, nil
}

// BootID tells one boot from another.
func (m *Machine) BootID(ctx context.Context) (string, error) {
	id, err := m.Exec(ctx, "cat", "/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(id), err
}

// AwaitUp waits until the machine has booted, another time than before (a BootID, "" for the first), and all its units
// have started; it is an error if one failed.
func (m *Machine) AwaitUp(ctx context.Context, before string) error {
	var failed error
	err := await.Until(ctx, m.Name+" to boot", func() error {
		select {
		case <-m.ended:
			failed = fmt.Errorf("%s didn't boot, or switched itself off; it said:\n%s", m.Name, m.Console())
			return nil
		default:
		}
		id, err := m.BootID(ctx)
		if err != nil {
			return err
		}
		if id == before {
			return errors.New("it hasn't gone down yet")
		}
		state, err := m.Exec(ctx, "systemctl", "is-system-running", "--wait")
		switch strings.TrimSpace(state) {
		case "running":
			return nil
		case "degraded":
			units, _ := m.Exec(ctx, "systemctl", "--failed", "--plain", "--no-legend")
			failed = fmt.Errorf("%s booted, but of its units these failed:\n%s", m.Name, units)
			return nil
		default:
			return fmt.Errorf("it is %q: %w", strings.TrimSpace(state), err)
		}
	})
	return errors.Join(err, failed)
}

// Reboot has the machine reboot itself and waits until it is up again.
func (m *Machine) Reboot(ctx context.Context) error {
	before, err := m.BootID(ctx)
	if err != nil {
		return err
	}
	if _, err := m.Exec(ctx, "systemctl", "reboot"); err != nil {
		return err
	}
	return m.AwaitUp(ctx, before)
}

// Console is what the machine and systemd-nspawn printed.
func (m *Machine) Console() string {
	b, err := os.ReadFile(m.outside("/../console"))
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// Journal is the end of the machine's journal, of some units or of all.
func (m *Machine) Journal(ctx context.Context, lines int, units ...string) string {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	args := []string{"journalctl", "--no-pager", "--output=short-precise", "--lines=" + strconv.Itoa(lines)}
	for _, unit := range units {
		args = append(args, "--unit="+unit)
	}
	out, err := m.Exec(ctx, args...)
	if err != nil {
		return err.Error()
	}
	return out
}
