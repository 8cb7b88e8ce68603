package feed_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/feed"
	"github.com/fleetban/fleetban/controlplane/internal/sets"
	"github.com/fleetban/fleetban/controlplane/internal/store/redistest"
	"github.com/fleetban/fleetban/controlplane/internal/testwait"
	"github.com/fleetban/fleetban/proto/wire/banset"
)

// TestReadsForAnyNumberOfStreams: what a replica asks of Redis for a change, for streams that come and for streams that come
// back is as much for 200 streams as for 50: less than one call each by far.
func TestReadsForAnyNumberOfStreams(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t)
	other := newReplica(t, redis, time.Minute) // which bans, so that none of its calls are counted
	st, calls := redis.OpenCounted()
	r := newReplicaOn(t, st, time.Minute, 0)
	f, release := r.feeds.Acquire(org)
	defer release()

	var subs []*feed.Subscription
	defer func() {
		for _, s := range subs {
			s.Close()
		}
	}()
	subscribe := func(n int, from sets.Cursor) {
		for range n {
			subs = append(subs, f.Subscribe([]sets.Cursor{from}, nil))
		}
	}
	current := func(at sets.Cursor) {
		t.Helper()
		testwait.For(t, fmt.Sprintf("all streams at %+v", at), func() bool {
			done := true
			for _, s := range subs {
				if _, err := s.Next(t.Context(), 100); err != nil {
					t.Fatal(err)
				}
				done = done && s.Cursor(banset.All) == at
			}
			return done
		})
	}
	asked := func(what string, do func()) {
		t.Helper()
		const (
			once   = 40 // more than a snapshot and a piece of a log take
			always = 5  // a second: sweeps, probes of the doorbell, looks
		)
		began, before := time.Now(), calls()
		do()
		got, most := calls()-before, once+always*int64(time.Since(began)/time.Second+1)
		t.Logf("%d streams, %s: %d calls to Redis", len(subs), what, got)
		if got > most {
			t.Errorf("%d streams, %s: %d calls to Redis in %s, want at most %d", len(subs), what, got, time.Since(began), most)
		}
	}

	at, next := other.ban(t, time.Hour, addr(0)), 1
	for _, streams := range []int{50, 200} {
		asked("come with nothing", func() {
			subscribe(streams-len(subs), sets.Cursor{Set: banset.All})
			current(at)
		})
		asked("one ban", func() {
			at = other.ban(t, time.Hour, addr(next))
			next++
			current(at)
		})
		asked("one change too large for the doorbell", func() {
			var many []netip.Prefix
			for range 1000 {
				many = append(many, addr(next))
				next++
			}
			at = other.ban(t, time.Hour, many...)
			current(at)
		})
		was := at
		at = other.ban(t, time.Hour, addr(next))
		next++
		current(at)
		for _, s := range subs {
			s.Close()
		}
		subs = nil
		asked("come back a change behind", func() {
			subscribe(streams, was)
			current(at)
		})
	}
}
