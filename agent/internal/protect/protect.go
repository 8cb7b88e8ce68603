// Package protect knows what this host never bans: its own addresses, its gateways and resolvers, the control plane, the
// fleet's other hosts, the peers of live authenticated SSH sessions, private ranges, and what the host's owner listed.
//
// A prefix that covers one protected address is refused whole: a ban is never cut down to something its author didn't
// ask for.
package protect

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"sync"

	"github.com/fleetban/fleetban/agent/internal/policy"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

// Config is where to look.
type Config struct {
	// Root is the folder that holds proc, etc and run. Default: "/".
	Root string
	// Addresses returns the host's own addresses. Default: net.InterfaceAddrs.
	Addresses func() ([]net.Addr, error)
}

// Protector answers whether a prefix may be banned. Safe for concurrent use.
type Protector struct {
	root      string
	addresses func() ([]net.Addr, error)
	ssh       sshPeers

	mu           sync.RWMutex
	policy       policy.Policy
	controlPlane []netip.Addr
	fleet        []netip.Prefix
	found        []entry // own addresses, gateways, resolvers
	table        table
}

// New returns a Protector that knows the policy and nothing else yet: call Refresh.
func New(cfg Config, p policy.Policy) *Protector {
	if cfg.Root == "" {
		cfg.Root = "/"
	}
	if cfg.Addresses == nil {
		cfg.Addresses = net.InterfaceAddrs
	}
	out := &Protector{root: cfg.Root, addresses: cfg.Addresses, policy: p}
	out.ssh.root = cfg.Root
	out.rebuild()
	return out
}

// SetPolicy takes in another policy.
func (p *Protector) SetPolicy(to policy.Policy) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.policy = to
	p.rebuild()
}

// SetControlPlane says where the control plane is. It reports whether that is new.
func (p *Protector) SetControlPlane(addresses []netip.Addr) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	addresses = slices.Clone(addresses)
	sort.Slice(addresses, func(i, j int) bool { return addresses[i].Less(addresses[j]) })
	if slices.Equal(p.controlPlane, addresses) {
		return false
	}
	p.controlPlane = addresses
	p.rebuild()
	return true
}

// SetFleet says which prefixes the fleet protects: its hosts.
func (p *Protector) SetFleet(prefixes []netip.Prefix) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fleet = slices.Clone(prefixes)
	p.rebuild()
}

// Refresh looks for the host's own addresses, gateways and resolvers, and reports whether they have changed. What can't
// be read keeps its former state and is in the error.
func (p *Protector) Refresh(ctx context.Context) (changed bool, err error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	var found []entry
	var errs []error
	for _, source := range []struct {
		refusal fleetbanv1.Refusal
		read    func() ([]netip.Addr, error)
	}{
		{fleetbanv1.Refusal_REFUSAL_OWN_ADDRESS, p.own},
		{fleetbanv1.Refusal_REFUSAL_GATEWAY, p.gateways},
		{fleetbanv1.Refusal_REFUSAL_RESOLVER, p.resolvers},
	} {
		list, err := source.read()
		if err != nil {
			errs = append(errs, err)
			p.mu.RLock()
			for _, e := range p.found {
				if e.refusal == source.refusal {
					found = append(found, e)
				}
			}
			p.mu.RUnlock()
			continue
		}
		for _, a := range list {
			if a = a.Unmap().WithZone(""); a.IsValid() && !a.IsUnspecified() {
				found = append(found, entry{prefix.Single(a), source.refusal})
			}
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !slices.Equal(found, p.found) {
		p.found = found
		p.rebuild()
		changed = true
	}
	return changed, errors.Join(errs...)
}

func (p *Protector) own() ([]netip.Addr, error) {
	list, err := p.addresses()
	if err != nil {
		return nil, fmt.Errorf("list the host's addresses: %w", err)
	}
	var out []netip.Addr
	for _, a := range list {
		if n, ok := a.(*net.IPNet); ok {
			if addr, ok := netip.AddrFromSlice(n.IP); ok {
				out = append(out, addr)
			}
		}
	}
	return out, nil
}

// rebuild makes the table of everything that is known. The caller holds the lock.
func (p *Protector) rebuild() {
	entries := slices.Clone(p.found)
	for _, a := range p.controlPlane {
		entries = append(entries, entry{prefix.Single(a), fleetbanv1.Refusal_REFUSAL_CONTROL_PLANE})
	}
	for _, f := range p.fleet {
		entries = append(entries, entry{f, fleetbanv1.Refusal_REFUSAL_FLEET_HOST})
	}
	for _, n := range p.policy.NeverBan {
		entries = append(entries, entry{n, fleetbanv1.Refusal_REFUSAL_HOST_POLICY})
	}
	p.table = newTable(entries)
}

// Check reports whether this host refuses to ban b, and why. Peers of SSH sessions are looked up anew if the last look
// is older than a tenth of a second, and only where some connection of the host is with an address in b.
func (p *Protector) Check(b netip.Prefix) (fleetbanv1.Refusal, bool) {
	if r, refused := p.checkLasting(b); refused {
		return r, true
	}
	if p.ssh.in(b) {
		return fleetbanv1.Refusal_REFUSAL_SSH_PEER, true
	}
	return fleetbanv1.Refusal_REFUSAL_UNSPECIFIED, false
}

// CheckKnown is Check by what is known already: it spares the look at the connections, which takes the better part of a
// millisecond, where the last one found none with an address in b. sure is false where it was spared: Check decides then,
// and may refuse b for the sake of a session that began since.
func (p *Protector) CheckKnown(b netip.Prefix) (refusal fleetbanv1.Refusal, refused, sure bool) {
	if r, refused := p.checkLasting(b); refused {
		return r, true, true
	}
	in, sure := p.ssh.known(b)
	if in {
		return fleetbanv1.Refusal_REFUSAL_SSH_PEER, true, sure
	}
	return fleetbanv1.Refusal_REFUSAL_UNSPECIFIED, false, sure
}

func (p *Protector) checkLasting(b netip.Prefix) (fleetbanv1.Refusal, bool) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if r, ok := p.table.overlapping(b); ok {
		return r, true
	}
	if _, ok := prefix.Reserved(b); ok && !p.allowsReserved(b) {
		return fleetbanv1.Refusal_REFUSAL_RESERVED_RANGE, true
	}
	if p.policy.TooWide(b) {
		return fleetbanv1.Refusal_REFUSAL_TOO_WIDE, true
	}
	return fleetbanv1.Refusal_REFUSAL_UNSPECIFIED, false
}

func (p *Protector) allowsReserved(b netip.Prefix) bool {
	return slices.ContainsFunc(p.policy.AllowReserved, func(a netip.Prefix) bool { return prefix.Covers(a, b) })
}

// Connected calls f with the peer of each established TCP connection of the host, until it returns false: whoever
// holds bans looks which of them it cuts, and asks Check about those.
func (p *Protector) Connected(f func(netip.Addr) bool) {
	for _, c := range p.ssh.established() {
		if !f(c.peer) {
			return
		}
	}
}

// Problem says what keeps SSH peers from being recognised; empty if nothing does.
func (p *Protector) Problem() string { return p.ssh.problemText() }

func (p *Protector) file(name string) string { return filepath.Join(p.root, name) }

// maxFile bounds what is read of a file of the system: a router's whole table needs not be.
const maxFile = 4 << 20

func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // only read
	return readBounded(f)
}
