package agentapi_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/sets"
	"github.com/fleetban/fleetban/proto/wire/banset"
)

// TestFanOut tells how long a ban takes to all streams of one replica, and how often the replica asks Redis for it: 200
// streams send the same frame as 50, and Redis is asked no more for them.
func TestFanOut(t *testing.T) {
	f := newFleet(t)
	one, other := f.replica("one"), f.replica("other") // which bans, so that none of its calls are counted
	const bans = 20
	var all []*session
	made := byte(0)
	ban := func() string {
		made++
		addr := netip.AddrFrom4([4]byte{203, 0, 113, made})
		if _, err := other.sets.Ban(t.Context(), f.org, sets.BanInput{
			Prefixes: []netip.Prefix{netip.PrefixFrom(addr, 32)}, Set: banset.All, Duration: time.Hour, Actor: "test",
		}); err != nil {
			t.Fatal(err)
		}
		return addr.String()
	}
	for _, streams := range []int{50, 200} {
		for len(all) < streams {
			all = append(all, one.enrol(fmt.Sprintf("h%d", len(all)), nil).connect(one))
		}
		// Everyone holds the first one: what follows are deltas.
		first := ban()
		for _, s := range all {
			s.delta("all", first, present)
		}
		began, before := time.Now(), one.calls()
		for range bans {
			addr := ban()
			for _, s := range all {
				s.delta("all", addr, present)
			}
		}
		took, calls := time.Since(began), one.calls()-before
		t.Logf("a ban to the last of %d streams: %s on average; for %d bans the replica asked Redis %d times", streams, took/bans, bans, calls)
		// What it asks all the time, and then less than once for ten streams.
		if most := int64(20*(took/time.Second+1)) + bans*int64(5); calls > most {
			t.Errorf("%d streams, %d bans: Redis was asked %d times in %s, want at most %d", streams, bans, calls, took, most)
		}
	}
}
