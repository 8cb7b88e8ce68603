package agentapi

import (
	"testing"

	"github.com/fleetban/fleetban/controlplane/internal/hosts"
	"github.com/fleetban/fleetban/proto/wire/hostauth"
)

// TestNewerStreamStays: of two streams of one host that begin at the same time, the one that was attached last is the host's, whichever
// gets to its end of the beginning first.
func TestNewerStreamStays(t *testing.T) {
	t.Parallel()
	begun := func(fence uint64) *stream {
		return &stream{grant: hostauth.Grant{HostID: "h"}, fence: hosts.Fence{Host: "h", N: fence}, done: make(chan struct{}), wake: make(chan struct{}, 1)}
	}
	for what, fences := range map[string][]uint64{"in order": {1, 2}, "overtaken": {2, 1}} {
		all := &tenant{streams: map[string]*stream{}}
		var newer *stream
		for _, n := range fences {
			st := begun(n)
			if n == 2 {
				newer = st
			}
			all.join(st, 0)
		}
		if all.stream("h") != newer || newer.ended {
			t.Errorf("%s: the newer stream isn't the host's, or was ended: %t", what, newer.ended)
		}
	}
}
