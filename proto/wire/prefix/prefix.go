// Package prefix converts IP prefixes between text, netip and the packed form of the wire, and knows the ranges that
// are special everywhere.
package prefix

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// Lengths of a packed prefix: address bytes and one byte of prefix length.
const (
	PackedLen4 = 5
	PackedLen6 = 17
)

// ErrMalformed is wrapped by every error of Unpack and Parse.
var ErrMalformed = errors.New("not an IP address or prefix")

// Pack encodes p as its 4 or 16 masked address bytes and its length. p must be valid; IPv4-mapped addresses are
// unmapped first.
func Pack(p netip.Prefix) []byte {
	return AppendPacked(make([]byte, 0, PackedLen6), p)
}

// AppendPacked appends Pack(p) to dst.
func AppendPacked(dst []byte, p netip.Prefix) []byte {
	p = canonical(p)
	if p.Addr().Is4() {
		a := p.Addr().As4()
		dst = append(dst, a[:]...)
	} else {
		a := p.Addr().As16()
		dst = append(dst, a[:]...)
	}
	return append(dst, byte(p.Bits())) //nolint:gosec // 0..128
}

// Unpack decodes what Pack made. It refuses other lengths, set host bits, and IPv4-mapped IPv6: each prefix has exactly
// one packed form.
func Unpack(b []byte) (netip.Prefix, error) {
	if len(b) != PackedLen4 && len(b) != PackedLen6 {
		return netip.Prefix{}, fmt.Errorf("%w: packed form of %d bytes, want %d or %d", ErrMalformed, len(b), PackedLen4, PackedLen6)
	}
	addr, _ := netip.AddrFromSlice(b[:len(b)-1])
	if addr.Is4In6() {
		return netip.Prefix{}, fmt.Errorf("%w: IPv4-mapped IPv6 %s", ErrMalformed, addr)
	}
	p := netip.PrefixFrom(addr, int(b[len(b)-1]))
	if !p.IsValid() {
		return netip.Prefix{}, fmt.Errorf("%w: length %d for %s", ErrMalformed, b[len(b)-1], addr)
	}
	if p != p.Masked() {
		return netip.Prefix{}, fmt.Errorf("%w: bits set beyond the length in %s", ErrMalformed, p)
	}
	return p, nil
}

// Parse reads an address ("203.0.113.9", as /32 or /128) or a prefix ("203.0.113.0/24") as people write it. Spaces around
// it are dropped and IPv4-mapped IPv6 is unmapped. A prefix with host bits set is refused and the error names the
// prefix that was perhaps meant. Zones are refused.
func Parse(s string) (netip.Prefix, error) {
	s = strings.TrimSpace(s)
	if !strings.ContainsRune(s, '/') {
		addr, err := netip.ParseAddr(s)
		if err != nil {
			return netip.Prefix{}, fmt.Errorf("%w: %s", ErrMalformed, quote(s))
		}
		if addr.Zone() != "" {
			return netip.Prefix{}, fmt.Errorf("%w: %s has a zone; write the address without it", ErrMalformed, quote(s))
		}
		addr = addr.Unmap()
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%w: %s", ErrMalformed, quote(s))
	}
	if p.Addr().Is4In6() && p.Bits() < 96 {
		return netip.Prefix{}, fmt.Errorf("%w: %s is wider than the IPv4-mapped range", ErrMalformed, quote(s))
	}
	p = unmap(p)
	if p != p.Masked() {
		return netip.Prefix{}, fmt.Errorf("%w: %s has bits set beyond its length; did you mean %s?", ErrMalformed, quote(s), p.Masked())
	}
	return p, nil
}

// Single makes the /32 or /128 of addr.
func Single(addr netip.Addr) netip.Prefix {
	addr = addr.Unmap().WithZone("")
	return netip.PrefixFrom(addr, addr.BitLen())
}

// IsSingle reports whether p is one address.
func IsSingle(p netip.Prefix) bool { return p.IsValid() && p.IsSingleIP() }

// Format writes p as people do: an address alone where p is one.
func Format(p netip.Prefix) string {
	if p.IsValid() && p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

// Covers reports whether every address of inner is in outer.
func Covers(outer, inner netip.Prefix) bool {
	return outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
}

// reserved are the ranges that no public host has: RFC 6890 and its kin, less the documentation ranges, which count as
// public so that a lab can use them.
var reserved = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("10.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("224.0.0.0/4"),
	netip.MustParsePrefix("240.0.0.0/4"),
	netip.MustParsePrefix("::/127"), // unspecified and loopback
	netip.MustParsePrefix("64:ff9b:1::/48"),
	netip.MustParsePrefix("fc00::/7"),
	netip.MustParsePrefix("fe80::/10"),
	netip.MustParsePrefix("ff00::/8"),
}

// Reserved returns the special range that p overlaps, if any: loopback, private, CGNAT, link-local, multicast,
// unspecified and future use. Banning one hits a host's own network, never an attacker of it.
func Reserved(p netip.Prefix) (netip.Prefix, bool) {
	for _, r := range reserved {
		if r.Overlaps(p) {
			return r, true
		}
	}
	return netip.Prefix{}, false
}

func canonical(p netip.Prefix) netip.Prefix { return unmap(p).Masked() }

func unmap(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		return netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p
}

// quote bounds what an error repeats of its input.
func quote(s string) string {
	const most = 64
	if len(s) > most {
		return fmt.Sprintf("%q…", s[:most])
	}
	return fmt.Sprintf("%q", s)
}
