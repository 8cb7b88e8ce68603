package server

import (
	"context"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestAdmissionOfServedPeers: where we are slow, no more are let in than there are places; who says nothing more after its request was
// heard keeps others out a little longer than who never asks.
func TestAdmissionOfServedPeers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const agents = 400
		a := newAdmission()
		a.places = 8
		var inside, most atomic.Int32
		var all sync.WaitGroup
		for range agents {
			all.Go(func() {
				p, after := a.admit(t.Context(), netip.Prefix{})
				for after != 0 {
					time.Sleep(after)
					p, after = a.admit(t.Context(), netip.Prefix{})
				}
				p.asked()
				n := inside.Add(1)
				for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
				}
				time.Sleep(servedFor - time.Millisecond) // a Redis that hangs
				inside.Add(-1)
				p.leave()
			})
		}
		all.Wait()
		if n := most.Load(); n != 8 {
			t.Errorf("%d were served at a time", n)
		}
		silent, _ := a.admit(t.Context(), netip.Prefix{})
		silent.asked()
		time.Sleep(servedFor + time.Millisecond)
		silent.asked() // too late
		synctest.Wait()
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.inside != 0 {
			t.Errorf("%d places are held", a.inside)
		}
	})
}

// TestAdmissionAfterSlowOnes: a moment in which arrivals took long, as when Redis hangs, sends nobody of the thousands away that come after
// it for longer than they then need: all are in after as long as so many arrivals take.
func TestAdmissionAfterSlowOnes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const (
			agents = 5000
			burst  = 64 // arrivals end in bursts, as the machine's goroutines have it
			each   = time.Millisecond
		)
		a := newAdmission()
		a.places = burst
		from := sourceOf(nil)
		// For a while all that come take as long as they may, and one or the other waits.
		for range 500 {
			go func() { _, _ = a.enter(t.Context(), from) }()
			time.Sleep(7 * time.Millisecond)
		}

		began, machine, in := time.Now(), make(chan func(), agents), make(chan time.Duration, agents)
		for range agents {
			go func() {
				for {
					ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second) // an agent's patience
					leave, after := a.enter(ctx, from)
					cancel()
					if after == 0 {
						machine <- leave
						return
					}
					time.Sleep(after)
				}
			}()
		}
		go func() {
			for range agents / burst {
				var done []func()
				for range burst {
					done = append(done, <-machine)
				}
				time.Sleep(burst * each)
				for _, leave := range done {
					leave()
					in <- time.Since(began)
				}
			}
			for range agents % burst {
				(<-machine)()
				in <- time.Since(began)
			}
		}()
		var last time.Duration
		for range agents {
			last = <-in
		}
		if least := agents * each; last > least*3/2 {
			t.Errorf("all are in after %s, the machine needs %s", last, least)
		}
		t.Logf("all are in after %s", last)
	})
}
