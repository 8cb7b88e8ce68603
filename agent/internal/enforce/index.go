package enforce

import (
	"net/netip"
	"slices"

	"github.com/fleetban/fleetban/agent/internal/nft"
)

// index finds which of some prefixes cover another, in one look-up for each length in use.
type index struct {
	ends  map[netip.Prefix]int64
	bits4 []int
	bits6 []int
}

func newIndex() index { return index{ends: make(map[netip.Prefix]int64)} }

func (x *index) put(p netip.Prefix, end int64) {
	x.ends[p] = end
	bits := &x.bits6
	if p.Addr().Is4() {
		bits = &x.bits4
	}
	if !slices.Contains(*bits, p.Bits()) {
		*bits = append(*bits, p.Bits())
	}
}

// covers reports whether something that hasn't ended covers p.
func (x *index) covers(p netip.Prefix, now int64) bool {
	bits := x.bits6
	if p.Addr().Is4() {
		bits = x.bits4
	}
	for _, n := range bits {
		if n > p.Bits() {
			continue
		}
		if wider, err := p.Addr().Prefix(n); err == nil && x.ends[wider] > now {
			return true
		}
	}
	return false
}

// coverage is how much address space some prefixes cover, nested ones counted twice: IPv4 addresses, IPv6 /64s.
type coverage struct{ four, six uint64 }

func size(p netip.Prefix) (four, six uint64) {
	if p.Addr().Is4() {
		return 1 << (32 - p.Bits()), 0
	}
	return 0, 1 << max(0, 64-max(p.Bits(), 1))
}

func (c *coverage) add(p netip.Prefix) {
	four, six := size(p)
	c.four, c.six = c.four+four, c.six+six
}

func (c *coverage) sub(p netip.Prefix) {
	four, six := size(p)
	c.four, c.six = c.four-min(four, c.four), c.six-min(six, c.six)
}

// fits reports whether p may come to it.
func (c coverage) fits(p netip.Prefix, most4, most6 uint64) bool {
	four, six := size(p)
	return c.four+four <= most4 && c.six+six <= most6
}

// element is a prefix with the time it has left at now.
func element(p netip.Prefix, end, now int64) nft.Element {
	return nft.Element{Prefix: p, Remaining: remaining(end, now)}
}
