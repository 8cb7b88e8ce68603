package nft_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fleetban/fleetban/agent/internal/nft"
)

// A lab is three machines on one wire each: attacker ── host ── container. The host forwards port 8080 to the
// container.
type lab struct {
	attacker, host, container string
}

var labs atomic.Int32

func newLab(t testing.TB) lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("these tests make network namespaces: run them as root")
	}
	id := fmt.Sprintf("fbnft%d-%d", os.Getpid(), labs.Add(1))
	l := lab{attacker: id + "a", host: id + "h", container: id + "c"}
	for _, ns := range []string{l.attacker, l.host, l.container} {
		run(t, "ip", "netns", "add", ns)
		t.Cleanup(func() { run(t, "ip", "netns", "del", ns) })
		run(t, "ip", "-n", ns, "link", "set", "lo", "up")
	}
	wire := func(a, an, aip, aip6, b, bn, bip, bip6 string) {
		run(t, "ip", "-n", a, "link", "add", an, "type", "veth", "peer", "name", bn, "netns", b)
		for _, end := range [][4]string{{a, an, aip, aip6}, {b, bn, bip, bip6}} {
			run(t, "ip", "-n", end[0], "addr", "add", end[2], "dev", end[1])
			run(t, "ip", "-n", end[0], "-6", "addr", "add", end[3], "dev", end[1], "nodad")
			run(t, "ip", "-n", end[0], "link", "set", end[1], "up")
		}
	}
	wire(l.attacker, "eth0", "203.0.113.9/24", "2001:db8:1::9/64", l.host, "eth0", "203.0.113.1/24", "2001:db8:1::1/64")
	wire(l.host, "eth1", "10.77.0.1/24", "2001:db8:77::1/64", l.container, "eth0", "10.77.0.2/24", "2001:db8:77::2/64")
	run(t, "ip", "-n", l.container, "route", "add", "default", "via", "10.77.0.1")
	run(t, "ip", "netns", "exec", l.host, "sysctl", "-qw", "net.ipv4.ip_forward=1")
	nftCommand(t, l.host, `table ip docker {
		chain pre { type nat hook prerouting priority -100; tcp dport 8080 dnat to 10.77.0.2:80; }
		chain post { type nat hook postrouting priority 100; }
	}
	table inet f2b-table { set addr-set-sshd { type ipv4_addr; elements = { 198.51.100.7 } }
		chain f2b-chain { type filter hook input priority -1; policy accept; ip saddr @addr-set-sshd reject
		}
	}`)
	return l
}

func path(ns string) string { return "/run/netns/" + ns }

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func nftCommand(t testing.TB, ns, commands string) string {
	t.Helper()
	cmd := exec.Command("ip", "netns", "exec", ns, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(commands)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("nft in %s: %v\n%s", ns, err, out)
	}
	return string(out)
}

// within runs f on a thread in the namespace. What f opens stays there.
func within(t testing.TB, ns string, f func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		file, err := os.Open(path(ns))
		if err == nil {
			err = unix.Setns(int(file.Fd()), unix.CLONE_NEWNET)
			_ = file.Close()
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// echo serves what it gets on addr in ns, until the test ends.
func echo(t testing.TB, ns, addr string) {
	t.Helper()
	var l net.Listener
	if err := within(t, ns, func() (err error) { l, err = net.Listen("tcp", addr); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close() //nolint:errcheck // a test's end
				_, _ = io.Copy(c, c)
			}()
		}
	}()
}

const (
	patience = 30 * time.Second       // for what must work
	silence  = 400 * time.Millisecond // for what must not: a drop can only be seen as nothing
)

func dial(t testing.TB, ns, addr string, timeout time.Duration) (c net.Conn, err error) {
	t.Helper()
	err = within(t, ns, func() (err error) {
		c, err = (&net.Dialer{Timeout: timeout}).Dial("tcp", addr)
		return err
	})
	return c, err
}

func mustDial(t testing.TB, ns, addr string) net.Conn {
	t.Helper()
	c, err := dial(t, ns, addr, patience)
	if err != nil {
		t.Fatalf("dial %s: %v", addr, err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := ping(c, patience); err != nil {
		t.Fatalf("over %s: %v", addr, err)
	}
	return c
}

func mustNotDial(t testing.TB, ns, addr string) {
	t.Helper()
	c, err := dial(t, ns, addr, silence)
	if err == nil {
		_ = c.Close()
		t.Fatalf("dial %s worked", addr)
	}
	if timeout := net.Error(nil); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Fatalf("dial %s failed otherwise than by silence: %v", addr, err)
	}
}

// ping sends a byte and waits for it to come back.
func ping(c net.Conn, timeout time.Duration) error {
	if err := c.SetDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	if _, err := c.Write([]byte{'x'}); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 1))
	return err
}

func open(t testing.TB, ns string, more ...func(*nft.Config)) *nft.Enforcer {
	t.Helper()
	cfg := nft.Config{NetNS: path(ns)}
	for _, f := range more {
		f(&cfg)
	}
	e, err := nft.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	return e
}

func elements(list ...nft.Element) func(func(nft.Element) bool) {
	return func(yield func(nft.Element) bool) {
		for _, e := range list {
			if !yield(e) {
				return
			}
		}
	}
}

func el(p string, remaining time.Duration) nft.Element {
	return nft.Element{Prefix: netip.MustParsePrefix(p), Remaining: remaining}
}

// listed is the bans in the kernel.
func listed(t testing.TB, e *nft.Enforcer) map[string]time.Duration {
	t.Helper()
	got := make(map[string]time.Duration)
	if err := e.List(context.Background(), func(el nft.Element, allow bool) error {
		name := el.Prefix.String()
		if allow {
			name = "allow " + name
		}
		got[name] = el.Remaining
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return got
}

// until polls for a condition that nothing announces.
func until(t testing.TB, what string, f func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !f() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", patience, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
