package server

import (
	"context"
	"net"
	"net/netip"
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
	// servedFor is how long one may take whose request has come, and which waits for us: another beside it would only have both wait
	// for longer, until they lose their patience.
	servedFor = 2 * time.Second
	// waitAtMost is how long an agent may have to wait at the door: who is sent away comes with another ClientHello, which costs both sides
	// a third of an arrival. It has the patience for 15 s, with all that follows.
	waitAtMost = 8 * time.Second
	// waitLongest is when one is sent away that waits: arrivals take longer than they did when its wait was reckoned, or more addresses
	// came after it.
	waitLongest = 12 * time.Second
	// awayAtLeast is how long those are away whose turn is next. Who waits keeps the room full meanwhile.
	awayAtLeast = 2500 * time.Millisecond
	// queueAtLeast may wait however long they seem to have to: the last pace may be that of a bad moment, and a room that stands empty
	// until those come that were sent away is time lost for all.
	queueAtLeast = 1024
	// firstPace is how long one arrival takes, until that is measured.
	firstPace = time.Millisecond
	// paceOver is how long arrivals are counted for a measure of their pace: long enough for many, which come in bursts.
	paceOver = 250 * time.Millisecond
)

// admission lets agents in one after the other where they come faster than they can be served: those that have come are served in
// order, and who would have to wait for longer than it has patience is sent away at once, with the time of its turn. So a fleet
// that lost its replica is back in the time that so many handshakes take, none of which is for nothing.
//
//	enter ─▶ a place is free: in ─▶ leave
//	     └─▶ its address' queue (waitAtMost) ─▶ in ─▶ leave
//	     └─▶ away, until its turn: one after the other, at the pace that is measured, at firstPace where that is slower: who comes
//	         too early costs a ClientHello and waits again, who comes too late has lost that time
//
// A place that is free goes to the addresses that wait in turn, one agent of each: whoever comes a thousand times from one address has
// the share of one address, and a fleet behind one address has all of it where nobody else comes.
type admission struct {
	places int
	least  int // queueAtLeast

	mu      sync.Mutex
	inside  int
	sources map[netip.Prefix]*source // those that somebody waits of
	order   []*source                // the same; the first is next
	waiting int                      // in all queues
	pace    time.Duration            // between two that left while others waited: a mean that follows
	since   time.Time                // when those were first counted that left; somebody has waited ever since
	left    int                      // how many did
	turn    time.Time                // of the last one that was sent away and nobody waits of its address
}

// source is one address that agents come from; a /64 of IPv6 is one.
type source struct {
	from  netip.Prefix
	queue []*arrival
	turn  time.Time // of the last one that was sent away
}

// sourceOf is where a connection comes from, as far as that can be told.
func sourceOf(peer net.Addr) netip.Prefix {
	if peer == nil {
		return netip.Prefix{}
	}
	ap, err := netip.ParseAddrPort(peer.String())
	if err != nil {
		return netip.Prefix{}
	}
	addr := ap.Addr().Unmap().WithZone("")
	bits := addr.BitLen()
	if addr.Is6() {
		bits = 64
	}
	return netip.PrefixFrom(addr, bits).Masked()
}

type arrival struct {
	in   chan struct{}
	gave bool // its peer is gone
}

func newAdmission() *admission {
	return &admission{places: arrivingPerCore * runtime.GOMAXPROCS(0), least: queueAtLeast, pace: firstPace, sources: map[netip.Prefix]*source{}}
}

// enter returns when the agent may come in; leave is to be called when it has its Welcome, or never will, and may be called again.
// Where after isn't zero it is to come again after that time.
func (a *admission) enter(ctx context.Context, from netip.Prefix) (leave func(), after time.Duration) {
	p, after := a.admit(ctx, from)
	if p == nil {
		return nil, after
	}
	return p.leave, 0
}

// admit is enter for who can tell when the request has come.
func (a *admission) admit(ctx context.Context, from netip.Prefix) (in *place, after time.Duration) {
	a.mu.Lock()
	if a.inside < a.places && a.waiting == 0 {
		a.inside++
		a.mu.Unlock()
		return a.placed(), 0
	}
	s := a.sources[from]
	before, share := 0, len(a.order) // how many of its own are before it, and how many addresses take turns
	if s != nil {
		before = len(s.queue)
	} else {
		share++
	}
	ahead := min(before*share+share-1, a.waiting)
	if time.Duration(ahead)*a.pace > waitAtMost && ahead >= a.least {
		after = a.away(s, share)
		a.mu.Unlock()
		return nil, after
	}
	if s == nil {
		s = &source{from: from}
		a.sources[from] = s
		a.order = append(a.order, s)
	}
	w := &arrival{in: make(chan struct{})}
	s.queue = append(s.queue, w)
	if a.waiting++; a.waiting == 1 {
		a.since, a.left = time.Now(), 0
	}
	a.mu.Unlock()
	longest := time.NewTimer(waitLongest)
	defer longest.Stop()
	select {
	case <-w.in:
		return a.placed(), 0
	case <-ctx.Done():
	case <-longest.C:
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	select {
	case <-w.in: // in the same moment
		a.next()
	default:
		w.gave = true
	}
	return nil, max(a.away(a.sources[from], len(a.order)), time.Second)
}

// away is how long one is sent away for that would have to wait too long. s is nil where nobody waits of its address, which is so
// where very many addresses come; share is how many addresses take turns. The caller holds the lock.
func (a *admission) away(s *source, share int) time.Duration {
	turn, pace := &a.turn, min(a.pace, firstPace)
	if s != nil {
		turn = &s.turn
		pace *= time.Duration(share)
	}
	now := time.Now()
	if soonest := now.Add(awayAtLeast); turn.Before(soonest) {
		*turn = soonest
	}
	*turn = turn.Add(pace)
	if last := now.Add(link.MaxBusy); turn.After(last) {
		*turn = last
	}
	return turn.Sub(now)
}

// place is what an agent has that is on its way in. It is given back when it is left, or has been held for long.
type place struct {
	once func()
	slow *time.Timer
}

// asked says that the request has come.
func (p *place) asked() {
	if p.slow.Stop() {
		p.slow.Reset(servedFor)
	}
}

// leave gives the place back.
func (p *place) leave() {
	p.slow.Stop()
	p.once()
}

func (a *admission) placed() *place {
	once := sync.OnceFunc(func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.waiting > 0 {
			a.left++
			if now := time.Now(); now.Sub(a.since) >= paceOver {
				a.pace = (a.pace + now.Sub(a.since)/time.Duration(a.left)) / 2
				a.pace = min(max(a.pace, 20*time.Microsecond), 100*time.Millisecond)
				a.since, a.left = now, 0
			}
		}
		a.next()
	})
	return &place{once: once, slow: time.AfterFunc(arrivingFor, once)}
}

// next gives the place to who waits for it, or frees it. The caller holds the lock.
func (a *admission) next() {
	for len(a.order) > 0 {
		s := a.order[0]
		a.order[0] = nil
		a.order = a.order[1:]
		w := s.pop()
		a.waiting--
		for w.gave && len(s.queue) > 0 {
			w = s.pop()
			a.waiting--
		}
		if len(s.queue) > 0 {
			a.order = append(a.order, s)
		} else {
			delete(a.sources, s.from)
		}
		if !w.gave {
			close(w.in)
			return
		}
	}
	a.order = nil
	a.inside--
}

// pop takes the first of the queue, in which there is one.
func (s *source) pop() *arrival {
	w := s.queue[0]
	s.queue[0] = nil
	s.queue = s.queue[1:]
	return w
}
