package banset_test

import (
	"net/netip"
	"testing"

	"github.com/fleetban/fleetban/proto/wire/banset"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

// TestHash pins the digest: hosts in the field hold cursors made with it. The wanted values are those of
// `printf '\xcb\x00\x71\x09\x20' | cat - <(expiry, 8 bytes) | sha1sum`.
func TestHash(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		prefix  string
		expires int64
		want    uint64
	}{
		{"203.0.113.9/32", 1_700_000_000_000, 0x53ea0617fd58be58},
		{"2001:db8::/64", banset.Never, 0xf6d18595697c98de},
	} {
		if got := banset.Hash(prefix.Pack(netip.MustParsePrefix(tc.prefix)), tc.expires); got != tc.want {
			t.Errorf("Hash(%s, %d) = %#x, want %#x", tc.prefix, tc.expires, got, tc.want)
		}
	}
}
