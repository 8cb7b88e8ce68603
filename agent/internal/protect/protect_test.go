package protect_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/fleetban/fleetban/agent/internal/policy"
	"github.com/fleetban/fleetban/agent/internal/protect"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// root writes a machine's files under a temporary folder.
func root(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		full := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(full), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(full, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func addresses(list ...string) func() ([]net.Addr, error) {
	return func() ([]net.Addr, error) {
		var out []net.Addr
		for _, s := range list {
			ip, n, err := net.ParseCIDR(s)
			if err != nil {
				return nil, err
			}
			out = append(out, &net.IPNet{IP: ip, Mask: n.Mask})
		}
		return out, nil
	}
}

// hex4 is an address as /proc writes it.
func hex4(s string) string {
	a := netip.MustParseAddr(s).As4()
	return fmt.Sprintf("%08X", binary.NativeEndian.Uint32(a[:]))
}

func hex6(s string) string {
	a := netip.MustParseAddr(s).As16()
	out := ""
	for i := range 4 {
		out += fmt.Sprintf("%08X", binary.NativeEndian.Uint32(a[i*4:]))
	}
	return out
}

func check(t *testing.T, p *protect.Protector, want map[string]fleetbanv1.Refusal) {
	t.Helper()
	for s, w := range want {
		got, refused := p.Check(netip.MustParsePrefix(s))
		if got != w || refused != (w != 0) {
			t.Errorf("Check(%s) = %v, %v; want %v", s, got, refused, w)
		}
	}
}

func TestLastingProtections(t *testing.T) {
	t.Parallel()
	dir := root(t, map[string]string{
		"proc/net/route": "Iface\tDestination\tGateway\tFlags\n" +
			"eth0\t00000000\t" + hex4("198.51.100.1") + "\t0003\t0\t0\t0\t00000000\n" +
			"eth0\t" + hex4("198.51.100.0") + "\t00000000\t0001\t0\t0\t0\t00FFFFFF\n" + "rubbish\n",
		"proc/net/ipv6_route": "00000000000000000000000000000000 00 00000000000000000000000000000000 00 20010db8000100000000000000000001 00000400 00000001 00000000 00000003 eth0\n" +
			"20010db8000200000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001 eth0\n",
		"etc/resolv.conf":                  "# x\nnameserver 127.0.0.53\nsearch example.org\n",
		"run/systemd/resolve/resolv.conf":  "nameserver 192.0.2.53\nnameserver 2001:db8:5::53%eth0\nnameserver rubbish\n",
		"run/systemd/resolve/unrelated.rc": "nameserver 192.0.2.54\n",
	})
	pol := policy.Default()
	pol.NeverBan = []netip.Prefix{netip.MustParsePrefix("203.0.113.128/25")}
	pol.AllowReserved = []netip.Prefix{netip.MustParsePrefix("10.20.0.0/16")}
	p := protect.New(protect.Config{Root: dir, Addresses: addresses("198.51.100.7/24", "2001:db8:1::7/64", "fe80::1/64")}, pol)
	if changed, err := p.Refresh(t.Context()); err != nil || !changed {
		t.Fatal(changed, err)
	}
	if changed, err := p.Refresh(t.Context()); err != nil || changed {
		t.Errorf("nothing changed: %v, %v", changed, err)
	}
	p.SetControlPlane([]netip.Addr{netip.MustParseAddr("192.0.2.200")})
	p.SetFleet([]netip.Prefix{netip.MustParsePrefix("192.0.2.100/32"), netip.MustParsePrefix("2001:db8:100::/48")})
	const none = fleetbanv1.Refusal_REFUSAL_UNSPECIFIED
	check(t, p, map[string]fleetbanv1.Refusal{
		"198.51.100.7/32":     fleetbanv1.Refusal_REFUSAL_OWN_ADDRESS,
		"2001:db8:1::7/128":   fleetbanv1.Refusal_REFUSAL_OWN_ADDRESS,
		"198.51.100.1/32":     fleetbanv1.Refusal_REFUSAL_GATEWAY,
		"2001:db8:1::1/128":   fleetbanv1.Refusal_REFUSAL_GATEWAY,
		"192.0.2.53/32":       fleetbanv1.Refusal_REFUSAL_RESOLVER,
		"2001:db8:5::/64":     fleetbanv1.Refusal_REFUSAL_RESOLVER,
		"192.0.2.200/32":      fleetbanv1.Refusal_REFUSAL_CONTROL_PLANE,
		"192.0.2.100/32":      fleetbanv1.Refusal_REFUSAL_FLEET_HOST,
		"2001:db8:100:1::/64": fleetbanv1.Refusal_REFUSAL_FLEET_HOST, // inside a protected prefix
		"2001:db8:100::/40":   fleetbanv1.Refusal_REFUSAL_FLEET_HOST, // around one
		"203.0.113.200/32":    fleetbanv1.Refusal_REFUSAL_HOST_POLICY,
		"203.0.113.0/24":      fleetbanv1.Refusal_REFUSAL_HOST_POLICY,
		"203.0.113.100/32":    none,
		"192.0.2.54/32":       none,
		"192.0.2.99/32":       none,
		"10.1.1.1/32":         fleetbanv1.Refusal_REFUSAL_RESERVED_RANGE,
		"fe80::99/128":        fleetbanv1.Refusal_REFUSAL_RESERVED_RANGE,
		"10.20.1.1/32":        none,
		"10.20.0.0/16":        none,
		"10.16.0.0/12":        fleetbanv1.Refusal_REFUSAL_RESERVED_RANGE,
		"9.0.0.0/15":          fleetbanv1.Refusal_REFUSAL_TOO_WIDE,
		"9.1.0.0/16":          none,
		"2a00::/31":           fleetbanv1.Refusal_REFUSAL_TOO_WIDE,
		"0.0.0.0/0":           fleetbanv1.Refusal_REFUSAL_OWN_ADDRESS,
	})
	pol.NeverBan = nil
	p.SetPolicy(pol)
	check(t, p, map[string]fleetbanv1.Refusal{"203.0.113.200/32": none})
}

// TestUnreadableKeepsWhatWasKnown: a host that can't list its addresses for a moment still has them.
func TestUnreadableKeepsWhatWasKnown(t *testing.T) {
	t.Parallel()
	broken := false
	good := addresses("198.51.100.7/24")
	p := protect.New(protect.Config{Root: t.TempDir(), Addresses: func() ([]net.Addr, error) {
		if broken {
			return nil, errors.New("no")
		}
		return good()
	}}, policy.Default())
	if _, err := p.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	broken = true
	if changed, err := p.Refresh(t.Context()); err == nil || changed {
		t.Errorf("%v, %v", changed, err)
	}
	check(t, p, map[string]fleetbanv1.Refusal{"198.51.100.7/32": fleetbanv1.Refusal_REFUSAL_OWN_ADDRESS})
}

// process writes one of /proc's folders; sockets are the inodes it holds.
func process(t testing.TB, dir, pid, comm, title string, sockets ...int) {
	t.Helper()
	base := filepath.Join(dir, "proc", pid)
	if err := os.MkdirAll(filepath.Join(base, "fd"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"comm": comm + "\n", "cmdline": title + "\x00\x00"} {
		if err := os.WriteFile(filepath.Join(base, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for i, inode := range sockets {
		if err := os.Symlink(fmt.Sprintf("socket:[%d]", inode), filepath.Join(base, "fd", fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSSHPeersByTitle(t *testing.T) {
	t.Parallel()
	line := func(peer, state string, inode int) string {
		return fmt.Sprintf("   1: %s:0016 %s:C001 %s 00000000:00000000 00:00000000 00000000     0        0 %d 1 0000000000000000 20 4 30 10 -1\n", hex4("198.51.100.7"), peer, state, inode)
	}
	dir := root(t, map[string]string{
		"proc/net/tcp": "  sl  local_address rem_address   st\n" +
			line(hex4("203.0.113.1"), "01", 101) + line(hex4("203.0.113.2"), "01", 102) + line(hex4("203.0.113.3"), "01", 103) +
			line(hex4("203.0.113.4"), "01", 104) + line(hex4("203.0.113.5"), "06", 105) + line(hex4("203.0.113.6"), "01", 106) +
			line(hex4("203.0.113.7"), "01", 107),
		"proc/net/tcp6": "  sl\n" + line(hex6("2001:db8:9::9"), "01", 201) + line(hex6("::ffff:203.0.113.90"), "01", 202) + line("rubbish", "01", 203),
	})
	process(t, dir, "10", "sshd", "sshd: /usr/sbin/sshd -D [listener] 0 of 10-100 startups", 1)
	process(t, dir, "11", "sshd", "sshd: alice [priv]", 101)
	process(t, dir, "12", "sshd", "sshd: alice@pts/0", 101)
	process(t, dir, "13", "sshd", "sshd: root [priv]", 102)
	process(t, dir, "14", "sshd", "sshd: root [net]", 102)
	process(t, dir, "15", "sshd", "sshd: [accepted]", 103)
	process(t, dir, "16", "sshd-session", "sshd-session: bob@notty", 104)
	process(t, dir, "17", "sshd", "sshd: carol", 201)
	process(t, dir, "18", "sshd", "sshd: dave@pts/1,pts/2", 202, 105)
	process(t, dir, "19", "nginx", "sshd: eve@pts/0", 106)
	process(t, dir, "20", "sshd", "sshd: unknown [preauth]", 107)
	p := protect.New(protect.Config{Root: dir, Addresses: addresses()}, policy.Default())
	const none, peer = fleetbanv1.Refusal_REFUSAL_UNSPECIFIED, fleetbanv1.Refusal_REFUSAL_SSH_PEER
	check(t, p, map[string]fleetbanv1.Refusal{
		"203.0.113.1/32": peer, // logged in
		"203.0.113.2/32": none, // still guessing root's password
		"203.0.113.3/32": none,
		"203.0.113.4/32": peer, // newer OpenSSH
		"203.0.113.5/32": none, // closed
		"203.0.113.6/32": none, // another program
		"203.0.113.7/32": none,
		"203.0.113.0/24": peer, "203.0.113.0/30": peer,
		"2001:db8:9::9/128": peer, "2001:db8:9::/64": peer, "203.0.113.90/32": peer,
		"203.0.113.8/32": none, "2001:db8:8::/64": none,
	})
	if got := p.Problem(); got != "" {
		t.Errorf("problem %q", got)
	}
	seen := 0
	p.Connected(func(netip.Addr) bool { seen++; return true })
	if seen != 8 {
		t.Errorf("%d connections", seen)
	}
}

// BenchmarkCheck is the hot path: an address that nobody here talks to. The look at the connections is counted in, as
// often as it really happens.
func BenchmarkCheck(b *testing.B) {
	p := protect.New(protect.Config{}, policy.Default())
	if _, err := p.Refresh(context.Background()); err != nil {
		b.Fatal(err)
	}
	a := netip.MustParsePrefix("203.0.113.9/32")
	for b.Loop() {
		if _, refused := p.Check(a); refused {
			b.Fatal("refused")
		}
	}
}
