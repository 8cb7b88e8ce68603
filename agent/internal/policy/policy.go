// Package policy reads the host's own policy file, /etc/fleetban/policy.toml: what the fleet may do on this host.
//
// The file belongs to whoever runs the host. The helper obeys it whoever asks, so that a compromised control plane can
// do no more than the file says. It is read strictly: a key it doesn't know, a value out of range, or a file that
// others than root may write is an error that names the line and says what to write. A bad file never loosens
// anything: the caller keeps the last good policy, or has none yet and uses Strictest.
package policy

import (
	_ "embed"
	"fmt"
	"net/netip"
	"slices"
)

// DefaultPath is where the policy file is unless the helper is told otherwise.
const DefaultPath = "/etc/fleetban/policy.toml"

// Level is how much the fleet may do on this host. Each level includes the ones below it.
type Level int8

// The levels, from the least to the most.
const (
	// LevelObserve: tell what fail2ban bans; enforce nothing.
	LevelObserve Level = iota
	// LevelBan: enforce fleet bans, and ban and unban in jails by command.
	LevelBan
	// LevelTune: also change numbers of running jails.
	LevelTune
	// LevelConfigure: also change which jails and filters there are.
	LevelConfigure
)

var levelNames = [...]string{"observe", "ban", "tune", "configure"}

// String is the level as the file writes it.
func (l Level) String() string {
	if l < 0 || int(l) >= len(levelNames) {
		return fmt.Sprintf("level(%d)", int8(l))
	}
	return levelNames[l]
}

// ParseLevel reads a level as the file writes it.
func ParseLevel(s string) (Level, error) {
	if i := slices.Index(levelNames[:], s); i >= 0 {
		return Level(i), nil //nolint:gosec // 0..3
	}
	return LevelObserve, fmt.Errorf("%.40q is not a level", s)
}

// The enforcers a host can choose.
const (
	EnforcerNftables = "nftables"
	EnforcerNone     = "none"
)

// Policy is what the fleet may do on this host. Its zero value is the strictest in everything but never_ban.
type Policy struct {
	// Level is how much the fleet may do. Default: ban.
	Level Level
	// NeverBan are networks that are never banned here. Default: none. (The host's own addresses, its gateways and
	// resolvers, the control plane, other fleet hosts and peers of live SSH sessions need not be listed.)
	NeverBan []netip.Prefix
	// AllowReserved are private, CGNAT or link-local networks that may be banned here. Default: none.
	AllowReserved []netip.Prefix
	// LargestPrefix4 and LargestPrefix6 are the shortest prefix lengths that may be banned. Defaults: 16 and 32.
	LargestPrefix4, LargestPrefix6 int
	// LargestTotal4 and LargestTotal6 bound how much address space all fleet bans together may cover, as the length of
	// the one prefix that covers as much. Defaults: 4 (a sixteenth of IPv4) and 28.
	LargestTotal4, LargestTotal6 int
	// CommandsPerMinute is how many commands of the control plane are carried out a minute. 0: none. Default: 60.
	CommandsPerMinute int
	// SendMatchedLines lets the log lines behind a ban leave the host, redacted. Default: false.
	SendMatchedLines bool
	// Proxied says that clients reach this host through a proxy or CDN, so that dropping packets by their source stops
	// nobody: bans are enforced and counted as inert. Default: false.
	Proxied bool
	// Enforcer is EnforcerNftables or EnforcerNone. Default: nftables.
	Enforcer string
}

// Default is the policy of a host without a policy file.
func Default() Policy {
	return Policy{
		Level:          LevelBan,
		LargestPrefix4: 16, LargestPrefix6: 32,
		LargestTotal4: 4, LargestTotal6: 28,
		CommandsPerMinute: 60,
		Enforcer:          EnforcerNftables,
	}
}

// Strictest is the policy of a host whose file can't be read and never could since the helper started: it observes
// only, so that nothing is done that the file might have forbidden.
func Strictest() Policy {
	p := Default()
	p.Level = LevelObserve
	p.CommandsPerMinute = 0
	return p
}

// MaxAddresses4 is how many IPv4 addresses all bans together may cover.
func (p Policy) MaxAddresses4() uint64 { return 1 << (32 - p.LargestTotal4) }

// MaxNetworks6 is how many IPv6 /64 networks all bans together may cover. One address counts as its whole /64.
func (p Policy) MaxNetworks6() uint64 { return 1 << (64 - p.LargestTotal6) }

// TooWide reports whether prefix is wider than may be banned here.
func (p Policy) TooWide(prefix netip.Prefix) bool {
	if prefix.Addr().Is4() {
		return prefix.Bits() < p.LargestPrefix4
	}
	return prefix.Bits() < p.LargestPrefix6
}

// Equal reports whether both say the same.
func (p Policy) Equal(q Policy) bool {
	return slices.Equal(p.NeverBan, q.NeverBan) && slices.Equal(p.AllowReserved, q.AllowReserved) &&
		p.Level == q.Level && p.LargestPrefix4 == q.LargestPrefix4 && p.LargestPrefix6 == q.LargestPrefix6 &&
		p.LargestTotal4 == q.LargestTotal4 && p.LargestTotal6 == q.LargestTotal6 &&
		p.CommandsPerMinute == q.CommandsPerMinute && p.SendMatchedLines == q.SendMatchedLines &&
		p.Proxied == q.Proxied && p.Enforcer == q.Enforcer
}

// Example is a commented policy file that says what the defaults are.
//
//go:embed policy.example.toml
var Example []byte
