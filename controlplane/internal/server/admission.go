package server

import (
	"context"
	"runtime"
	"sync"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/link"
)

const (
	// arrivingPerCore is how many agents for each core may be on their way in: between their ClientHello and their Welcome.
	// Enough that nobody waits for the network's delays, few enough that those who are in are done soon.
	arrivingPerCore = 64
	// arrivingFor is how long one may take before another is let in beside it: a peer that is slow, or silent on purpose, keeps
	// nobody out.
	arrivingFor = 500 * time.Millisecond
	// waitAtMost is how long an agent may have to wait at the door. It has the patience for three times that.
	waitAtMost = 5 * time.Second
	// firstPace is how long one arrival takes, until that is measured.
	firstPace = 2 * time.Millisecond
)

// admission lets agents in one after the other where they come faster than they can be served: those that have come are served in
// order, and who would have to wait for longer than it has patience is sent away at once, with the time of its turn. So a fleet
// that lost its replica is back in the time that so many handshakes take, none of which is for nothing.
//
//	enter ─▶ a place is free: in ─▶ leave
//	     └─▶ queue (waitAtMost) ─▶ in ─▶ leave
//	     └─▶ away, until its turn: one after the other, at the pace that is measured
type admission struct {
	places int

	mu       sync.Mutex
	inside   int
	queue    []*arrival
	pace     time.Duration // between two that left while others waited: a mean that follows
	left     time.Time     // when the last one did
	turn     time.Time     // of the last one that was sent away
	deterred uint64
}

type arrival struct {
	in   chan struct{}
	gave bool // its peer is gone
}

func newAdmission() *admission {
	return &admission{places: arrivingPerCore * runtime.GOMAXPROCS(0), pace: firstPace}
}

// enter returns when the agent may come in; leave is to be called when it has its Welcome, or never will, and may be called again.
// Where after isn't zero it is to come again after that time.
func (a *admission) enter(ctx context.Context) (leave func(), after time.Duration) {
	a.mu.Lock()
	if a.inside < a.places && len(a.queue) == 0 {
		a.inside++
		a.mu.Unlock()
		return a.placed(), 0
	}
	if wait := time.Duration(len(a.queue)) * a.pace; wait > waitAtMost {
		now := time.Now()
		if soonest := now.Add(wait / 2); a.turn.Before(soonest) {
			a.turn = soonest
		}
		a.turn = a.turn.Add(a.pace)
		if last := now.Add(link.MaxBusy); a.turn.After(last) {
			a.turn = last
		}
		a.deterred++
		after = a.turn.Sub(now)
		a.mu.Unlock()
		return nil, after
	}
	w := &arrival{in: make(chan struct{})}
	a.queue = append(a.queue, w)
	a.mu.Unlock()
	select {
	case <-w.in:
		return a.placed(), 0
	case <-ctx.Done():
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	select {
	case <-w.in: // in the same moment
		a.next()
	default:
		w.gave = true
	}
	return nil, time.Second
}

// placed gives the place back when it is left, or has been held for long.
func (a *admission) placed() (leave func()) {
	once := sync.OnceFunc(func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		now := time.Now()
		if len(a.queue) > 0 && !a.left.IsZero() {
			// One that was long ago tells nothing of the pace.
			a.pace += (min(now.Sub(a.left), 10*a.pace) - a.pace) / 16
			a.pace = min(max(a.pace, 20*time.Microsecond), 100*time.Millisecond)
		}
		a.left = now
		a.next()
	})
	slow := time.AfterFunc(arrivingFor, once)
	return func() {
		slow.Stop()
		once()
	}
}

// next gives the place to who waits for it, or frees it. The caller holds the lock.
func (a *admission) next() {
	for len(a.queue) > 0 {
		w := a.queue[0]
		a.queue[0] = nil
		if a.queue = a.queue[1:]; len(a.queue) == 0 {
			a.queue = nil
		}
		if !w.gave {
			close(w.in)
			return
		}
	}
	a.inside--
}
