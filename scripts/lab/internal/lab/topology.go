package lab

import (
	"fmt"
	"net/netip"
	"strings"
)

// Names of the machines that every lab has. Hosts are "a", "b", "c" and so on.
const (
	Switch       = "switch"
	ControlPlane = "cp"
	Attacker     = "attacker"
	Admin        = "admin"
	// Box is the container-like machine behind the last host, reached through that host's BoxEchoPort and BoxHTTPPort.
	Box = "box"
)

// Ports that hosts serve, and those the last host forwards to its box.
const (
	EchoPort    = 7
	SSHPort     = 22
	HTTPPort    = 80
	BoxEchoPort = 8007
	BoxHTTPPort = 8080
)

// ControlPlaneName is the name hosts and people know the control plane by, and which its certificate is for.
const ControlPlaneName = "control.lab.fleetban.test"

// maxHosts keeps host names to one letter and their addresses clear of the others'.
const maxHosts = 26

var (
	fleetGateway4 = netip.MustParseAddr("203.0.113.1")
	fleetGateway6 = netip.MustParseAddr("2001:db8:113::1")
	// AttackerAddr is where the attacker comes from unless told otherwise.
	AttackerAddr = netip.MustParseAddr("198.51.100.66")
	// AttackerAddr6 is the same in IPv6.
	AttackerAddr6 = netip.MustParseAddr("2001:db8:bad:66::66")
	// AdminAddr is where people work.
	AdminAddr = netip.MustParseAddr("192.0.2.200")
	// AdminAddr6 is the same in IPv6.
	AdminAddr6 = netip.MustParseAddr("2001:db8:ad::200")

	attackerPrefixes = []netip.Prefix{
		netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("192.0.2.0/25"), netip.MustParsePrefix("2001:db8:bad::/48"),
	}
	adminPrefixes = []netip.Prefix{netip.MustParsePrefix("192.0.2.128/25"), netip.MustParsePrefix("2001:db8:ad::/64")}
)

// hostName is the name of the i-th host.
func hostName(i int) string { return string(rune('a' + i)) }

func hostAddr(i int) netip.Addr  { return netip.AddrFrom4([4]byte{203, 0, 113, byte(11 + i)}) }
func hostAddr6(i int) netip.Addr { return v6Of("2001:db8:113::", byte(0x11+i)) }

var (
	controlPlaneAddr  = netip.MustParseAddr("203.0.113.5")
	controlPlaneAddr6 = netip.MustParseAddr("2001:db8:113::5")
)

func v6Of(base string, last byte) netip.Addr {
	b := netip.MustParseAddr(base).As16()
	b[15] = last
	return netip.AddrFrom16(b)
}

// SourceAddr returns the i-th address the attacker can come from, i in 0…199, none of which is AttackerAddr.
func SourceAddr(i int) netip.Addr {
	if i < 100 {
		return netip.AddrFrom4([4]byte{198, 51, 100, byte(100 + i)})
	}
	return netip.AddrFrom4([4]byte{192, 0, 2, byte(i - 100 + 10)})
}

// SourceAddr6 returns the i-th IPv6 address the attacker can come from, each in a /64 of its own.
func SourceAddr6(i int) netip.Addr {
	b := netip.MustParseAddr("2001:db8:bad::66").As16()
	b[6], b[7] = byte((i+1)>>8), byte(i+1)
	return netip.AddrFrom16(b)
}

// wiring is the input of `ip -batch` in the switch's network: links to all machines, known by the PIDs that hold theirs.
func (l *Lab) wiring() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("link add fleet type bridge")
	line("link set fleet up")
	line("addr add %s/24 dev fleet", fleetGateway4)
	line("addr add %s/64 dev fleet nodad", fleetGateway6)
	for _, n := range l.nodes {
		switch n.role {
		case roleHost, roleControlPlane:
			line("link add name %s type veth peer name eth0 netns %d", n.Name, n.PID)
			line("link set dev %s master fleet up", n.Name)
		case roleAttacker, roleAdmin:
			net, prefixes := transit(n.role)
			line("link add name %s type veth peer name eth0 netns %d", n.Name, n.PID)
			line("link set dev %s up", n.Name)
			line("addr add 10.255.%d.1/30 dev %s", net, n.Name)
			line("addr add fe80::1/64 dev %s nodad", n.Name)
			for _, p := range prefixes {
				via := fmt.Sprintf("10.255.%d.2", net)
				if p.Addr().Is6() {
					via = "fe80::2"
				}
				line("route add %s via %s dev %s", p, via, n.Name)
			}
		case roleBox:
			line("link add name box netns %d type veth peer name eth0 netns %d", l.boxHost().PID, n.PID)
		case roleSwitch:
		}
	}
	return b.String()
}

func transit(r role) (net int, prefixes []netip.Prefix) {
	if r == roleAttacker {
		return 1, attackerPrefixes
	}
	return 2, adminPrefixes
}

// addressing is the input of `ip -batch` in a machine that has been wired.
func (l *Lab) addressing(n *Node) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("link set lo up")
	if n.role != roleSwitch {
		line("link set eth0 up")
	}
	switch n.role {
	case roleHost, roleControlPlane:
		line("addr add %s/24 dev eth0", n.Addr)
		line("addr add %s/64 dev eth0 nodad", n.Addr6)
		line("route add default via %s", fleetGateway4)
		line("route add default via %s", fleetGateway6)
		if l.options.Box && n == l.boxHost() {
			line("link set box up")
			line("addr add 10.88.0.1/24 dev box")
			line("addr add fd88::1/64 dev box nodad")
		}
	case roleAttacker, roleAdmin:
		net, prefixes := transit(n.role)
		line("addr add 10.255.%d.2/30 dev eth0", net)
		line("addr add fe80::2/64 dev eth0 nodad")
		line("addr add %s/32 dev lo", n.Addr)
		line("addr add %s/128 dev lo nodad", n.Addr6)
		for _, p := range prefixes {
			line("route add local %s dev lo", p)
		}
		line("route add default via 10.255.%d.1 src %s", net, n.Addr)
		line("route add default via fe80::1 dev eth0 src %s", n.Addr6)
	case roleBox:
		line("addr add %s/24 dev eth0", n.Addr)
		line("addr add %s/64 dev eth0 nodad", n.Addr6)
		line("route add default via 10.88.0.1")
		line("route add default via fd88::1")
	case roleSwitch:
	}
	return b.String()
}

// forwarding is the ruleset of the host in front of the box: what a container engine does for a published port.
const forwarding = `
table ip lab_dnat {
  chain prerouting {
    type nat hook prerouting priority dstnat;
    ip daddr 203.0.113.0/24 tcp dport 8007 dnat to 10.88.0.2:7
    ip daddr 203.0.113.0/24 tcp dport 8080 dnat to 10.88.0.2:80
  }
}
table ip6 lab_dnat {
  chain prerouting {
    type nat hook prerouting priority dstnat;
    ip6 daddr 2001:db8:113::/64 tcp dport 8007 dnat to [fd88::2]:7
    ip6 daddr 2001:db8:113::/64 tcp dport 8080 dnat to [fd88::2]:80
  }
}
`
