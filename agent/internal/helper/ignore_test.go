package helper

import (
	"maps"
	"net/netip"
	"testing"
)

func addresses(n int, third byte) (out []netip.Prefix) {
	for i := range n {
		out = append(out, netip.PrefixFrom(netip.AddrFrom4([4]byte{203, third, byte(i >> 8), byte(i)}), 32))
	}
	return out
}

// More than fail2ban can bear is counted, and always the same ones are chosen, this host's own first.
func TestIgnoredAreBounded(t *testing.T) {
	t.Parallel()
	local, fleet := addresses(5, 9), addresses(maxIgnored+10, 0)
	fleet = append(fleet, local[0])
	first, left := choose(local, fleet)
	if len(first) != maxIgnored || left != 15 {
		t.Errorf("%d chosen, %d left", len(first), left)
	}
	for _, p := range local {
		if !first[p] {
			t.Errorf("this host's own %s was left out", p)
		}
	}
	fleet[3], fleet[maxIgnored+5] = fleet[maxIgnored+5], fleet[3]
	if again, _ := choose(local, fleet); !maps.Equal(first, again) {
		t.Error("others were chosen the second time")
	}
	if few, left := choose(local, nil); len(few) != 5 || left != 0 {
		t.Errorf("%d of 5 chosen, %d left", len(few), left)
	}
}

func TestCovered(t *testing.T) {
	t.Parallel()
	by := map[netip.Prefix]bool{netip.MustParsePrefix("198.51.100.0/24"): true, netip.MustParsePrefix("2001:db8::/32"): true}
	for s, want := range map[string]bool{
		"198.51.100.7/32": true, "198.51.100.0/24": true, "198.51.0.0/16": false, "198.51.101.1/32": false, "2001:db8:1::/64": true, "2001:db9::1/128": false,
	} {
		if got := covered(by, netip.MustParsePrefix(s)); got != want {
			t.Errorf("%s: %v", s, got)
		}
	}
}
