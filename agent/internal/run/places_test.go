package run

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func addrs(list ...string) (out []netip.Addr) {
	for _, a := range list {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

// Every address of the control plane is protected, whichever the stream goes to, and none is given up because a resolver
// is away for a while.
func TestPlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		p := newPlaces("control.example", slog.New(slog.DiscardHandler))
		// What the resolver answers and whether the helper is there; changed while the watch runs.
		var mu sync.Mutex
		answer, failure := addrs("203.0.113.5", "::ffff:203.0.113.6", "2001:db8::5"), error(nil)
		away := errors.New("the helper is away")
		set := func(f func()) {
			mu.Lock()
			defer mu.Unlock()
			f()
		}
		p.lookup = func(_ context.Context, _, host string) ([]netip.Addr, error) {
			if host != "control.example" {
				t.Errorf("%q is looked up", host)
			}
			mu.Lock()
			defer mu.Unlock()
			return answer, failure
		}
		var told [][]netip.Addr
		done := make(chan struct{})
		go func() {
			defer close(done)
			p.watch(ctx, func(_ context.Context, all []netip.Addr) error {
				mu.Lock()
				defer mu.Unlock()
				told = append(told, all)
				return away
			})
		}()
		expect := func(what string, times int, want ...string) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if len(told) != times {
				t.Fatalf("%s: the helper was told %d times, want %d: %v", what, len(told), times, told)
			}
			if times > 0 && !slices.Equal(told[times-1], addrs(want...)) {
				t.Errorf("%s: the helper was told %v, want %v", what, told[times-1], want)
			}
		}
		later := func() { time.Sleep(placesEvery) }

		expect("before any stream", 0)
		meet := func(what, peer string, want ...string) {
			t.Helper()
			count := func() (n int) {
				set(func() { n = len(told) })
				return n
			}
			times := count()
			err := p.met(addrs(peer), func(all []netip.Addr) error {
				synctest.Wait()
				if count() != times {
					t.Errorf("%s: the name was looked up before what is known was told", what)
				}
				if !slices.Equal(all, addrs(want...)) {
					t.Errorf("%s: the helper is told %v, want %v", what, all, want)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		}
		meet("at the first stream", "192.0.2.1", "192.0.2.1")
		all := []string{"192.0.2.1", "203.0.113.5", "203.0.113.6", "2001:db8::5"}
		expect("after the first stream", 1, all...)
		later()
		expect("told again, for it wasn't taken", 2, all...)
		set(func() { away = nil })
		later()
		expect("told until it is taken", 3, all...)
		later()
		expect("nothing new", 3, all...)
		set(func() { failure = errors.New("no such host") })
		later()
		expect("the resolver is away", 3, all...)
		meet("at the next stream, with the resolver away", "203.0.113.5", all[1:]...)
		set(func() { answer, failure = addrs("203.0.113.7"), nil })
		later()
		expect("moved", 4, "203.0.113.5", "203.0.113.7")
		cancel()
		<-done
	})
}
