package agentapi_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/sets"
	"github.com/fleetban/fleetban/proto/wire/banset"
)

// TestFanOut tells how long a ban takes to 200 streams of one replica over h2c: all of them send the same frame.
func TestFanOut(t *testing.T) {
	f := newFleet(t)
	one := f.replica("one")
	const streams, bans = 200, 20
	all := make([]*session, streams)
	for i := range all {
		all[i] = one.enrol(fmt.Sprintf("h%d", i), nil).connect(one)
	}
	// Everyone holds the first one: what follows are deltas.
	one.manual("198.51.100.1", time.Hour)
	for _, s := range all {
		s.delta("all", "198.51.100.1", present)
	}
	var sum time.Duration
	for i := range bans {
		began := time.Now()
		if _, err := one.sets.Ban(t.Context(), f.org, sets.BanInput{
			Prefixes: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}), 32)}, Set: banset.All, Duration: time.Hour, Actor: "test",
		}); err != nil {
			t.Fatal(err)
		}
		for _, s := range all {
			s.delta("all", fmt.Sprintf("203.0.113.%d", i), present)
		}
		sum += time.Since(began)
	}
	t.Logf("a ban to the last of %d streams: %s on average", streams, sum/bans)
}
