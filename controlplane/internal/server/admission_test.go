package server

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

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
