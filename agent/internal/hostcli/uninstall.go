package hostcli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fleetban/fleetban/agent/internal/helper"
	"github.com/fleetban/fleetban/agent/internal/nft"
)

// uninstall undoes what installing and running did, in an order in which nothing can put it back.
func (c *cli) uninstall(ctx context.Context, _ []string) error {
	o := &c.opts
	if os.Geteuid() != 0 {
		return errors.New("uninstall needs root; run it with sudo")
	}
	if !o.yes {
		c.printf("This removes Fleetban from this host: its bans in the kernel, its identity, its settings and its program.\nfail2ban and its bans stay. Go on? [y/N] ")
		line, _ := bufio.NewReader(c.in).ReadString('\n')
		if a := strings.ToLower(strings.TrimSpace(line)); a != "y" && a != "yes" {
			c.printf("Nothing was done.\n")
			return nil
		}
	}
	var failed []error
	step := func(did, undone string, err error) {
		if err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", undone, err))
			return
		}
		c.printf("%s\n", did)
	}
	standard := o.stateDir == "" // the one that the installer made
	if standard && haveSystemd() {
		for _, name := range units() {
			if _, err := os.Lstat(filepath.Join(unitDir, name)); err == nil {
				step("Stopped "+name, "stop "+name, systemctl(ctx, "disable", "--now", "--quiet", name))
			}
		}
	}
	for _, socket := range []string{o.socket, o.helperSocket} {
		if stopPeer(ctx, socket) && answersAgain(ctx, socket) {
			return fmt.Errorf("what serves %s was stopped and started again: stop fleetban-agent where this machine supervises its services, then run uninstall again", socket)
		}
	}
	n, err := helper.Restore(ctx, o.helperDir, o.fail2banSocket)
	if err == nil && n > 0 {
		step(fmt.Sprintf("Took what was allowed out of %d of fail2ban's jails", n), "", nil)
	} else if err != nil {
		// A fail2ban that isn't there has forgotten it.
		c.printf("fail2ban couldn't be told to forget what was allowed (%v); it does at its next restart\n", err)
	}
	step("Took the bans out of the kernel", "take the bans out of the kernel", removeTable(ctx, o.table))
	if standard {
		var err error
		for _, name := range units() {
			err = errors.Join(err, remove(filepath.Join(unitDir, name)))
		}
		if err != nil {
			failed = append(failed, err)
		}
		if haveSystemd() {
			_ = systemctl(ctx, "daemon-reload")
		}
	}
	step("Removed the state", "remove the state", errors.Join(os.RemoveAll(o.agentDir), os.RemoveAll(o.helperDir), removeSocket(o.helperSocket), removeSocket(o.socket)))
	if !standard {
		_ = os.Remove(o.stateDir) // others may have something there
	} else {
		// A control plane on this machine has its own file there.
		step("Removed the settings", "remove the settings", removeFrom("/etc/fleetban", "policy.toml", "policy.toml.new", "agent.env"))
		if _, _, err := helper.LookUpUser(o.runUser); err == nil && o.runUser == defaultUser {
			step("Removed the user "+defaultUser, "remove the user "+defaultUser, removeUser(ctx, defaultUser))
		}
		if self, err := os.Executable(); err == nil && filepath.Base(self) == "fleetban-agent" {
			step("Removed "+self, "remove "+self, remove(self))
		}
	}
	if len(failed) > 0 {
		return fmt.Errorf("some of it is left; run this again when this is mended: %w", errors.Join(failed...))
	}
	c.printf("Fleetban is gone from this host. It stays in the list of hosts until: fleetban forget HOST\n")
	return nil
}

const unitDir = "/etc/systemd/system"

func units() []string { return []string{"fleetban-agent.service", "fleetban-helper.service"} }

// removeFrom removes files of a folder, and the folder if nothing else is in it.
func removeFrom(dir string, names ...string) error {
	var err error
	for _, name := range names {
		err = errors.Join(err, remove(filepath.Join(dir, name)))
	}
	_ = os.Remove(dir) // others may have something there
	return err
}

// removeSocket removes what listening on a socket left.
func removeSocket(path string) error {
	return removeFrom(filepath.Dir(path), filepath.Base(path), filepath.Base(path)+".lock")
}

// answersAgain waits as long as a supervisor may take, where one is at work that isn't systemd, and reports whether somebody
// serves the socket again.
func answersAgain(ctx context.Context, socket string) bool {
	limit := time.Now().Add(2500 * time.Millisecond)
	for time.Now().Before(limit) && ctx.Err() == nil {
		if conn, err := new(net.Dialer).DialContext(ctx, "unix", socket); err == nil {
			_ = conn.Close()
			return true
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	return false
}

func haveSystemd() bool {
	_, err := os.Stat("/run/systemd/system")
	return err == nil
}

func systemctl(ctx context.Context, args ...string) error {
	return command(ctx, "systemctl", args...)
}

// command runs a program of the system's, for two minutes at most. By os.StartProcess: os/exec would weigh 45 kB for this
// one place, of the 10 MB that the agent has.
func command(ctx context.Context, name string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	path, ok := programAt(name)
	if !ok {
		return fmt.Errorf("%s isn't installed", name)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close() //nolint:errcheck // only read
	p, err := os.StartProcess(path, append([]string{name}, args...), &os.ProcAttr{Files: []*os.File{nil, w, w}})
	_ = w.Close()
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	stop := context.AfterFunc(ctx, func() {
		_ = p.Kill()
		_ = r.SetReadDeadline(time.Now()) // what it started may hold the other end
	})
	defer stop()
	out, _ := io.ReadAll(io.LimitReader(r, 4096))
	_, _ = io.Copy(io.Discard, r) // it isn't to wait for us
	state, err := p.Wait()
	switch {
	case err != nil:
		return fmt.Errorf("%s %s: %w", name, args[0], err)
	case !state.Success():
		return fmt.Errorf("%s %s: %s: %s", name, args[0], state, strings.TrimSpace(string(out)))
	default:
		return nil
	}
}

// programAt finds a program where systems keep theirs: PATH may lack the administrator's folders, or be somebody's.
func programAt(name string) (string, bool) {
	for _, dir := range []string{"/usr/sbin", "/usr/bin", "/sbin", "/bin"} {
		path := filepath.Join(dir, name)
		if fi, err := os.Stat(path); err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0 {
			return path, true
		}
	}
	return "", false
}

func removeUser(ctx context.Context, name string) error {
	if _, ok := programAt("userdel"); ok {
		return command(ctx, "userdel", name)
	}
	return command(ctx, "deluser", name)
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// removeTable takes our table out of the kernel.
func removeTable(ctx context.Context, table string) error {
	e, err := nft.Open(nft.Config{Table: table})
	if err != nil {
		return err
	}
	defer e.Close() //nolint:errcheck // nothing is lost with it
	return e.Off(ctx)
}

// stopPeer ends the process that serves a socket of ours, where no systemd did, and waits until it is gone. The kernel
// says which process that is. It reports whether there was one.
func stopPeer(ctx context.Context, socket string) bool {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return false
	}
	defer conn.Close() //nolint:errcheck // nothing is lost with it
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return false
	}
	var cred *unix.Ucred
	_ = raw.Control(func(fd uintptr) {
		cred, _ = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) //nolint:gosec // a descriptor fits
	})
	if cred == nil || cred.Pid <= 1 {
		return false
	}
	fd, err := unix.PidfdOpen(int(cred.Pid), 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd) //nolint:errcheck // nothing is lost with it
	if unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0) != nil {
		return false
	}
	limit := time.Now().Add(10 * time.Second)
	for time.Now().Before(limit) && ctx.Err() == nil {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 200) //nolint:gosec // a descriptor fits
		if n > 0 || err != nil && !errors.Is(err, unix.EINTR) {
			break
		}
	}
	return true
}
