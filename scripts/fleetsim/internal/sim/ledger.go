package sim

import (
	"net/netip"
	"sync"
	"time"

	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
)

// Jails of the simulation, by what their bans need to become the fleet's.
const (
	jailOne   = "sshd"            // one host's word
	jailTwo   = "nginx-http-auth" // two hosts'
	jailLocal = "simulated"       // stays on its host
)

// slack is how far times that are rounded to milliseconds, twice, may be off.
const slack = 5

// ledger is what the simulator knows to be true: what was banned by whom until when, and what of it was acknowledged. It
// shares no code with the product.
type ledger struct {
	mu      sync.Mutex
	entries map[netip.Prefix]*entry
	events  map[eventKey]int
}

// entry is what is known of a prefix.
type entry struct {
	claims []*claim
	// lifted: an operator unbanned it, and no host may have it in a jail for longer.
	lifted bool
}

// claim is one source's wish. Its end is between lo and hi, Unix milliseconds: a ban's end is counted by the control plane
// from when the host says that it began, which is exact but for the way there.
type claim struct {
	host    int // -1: an operator's
	jail    string
	lo, hi  int64
	acked   bool
	retired bool // retracted
}

// eventKey names what is to be recorded once for each time that it happened.
type eventKey struct {
	host   string
	kind   operatorv1.FleetEventKind
	prefix netip.Prefix
	jail   string
}

func newLedger() *ledger {
	return &ledger{entries: map[netip.Prefix]*entry{}, events: map[eventKey]int{}}
}

func (l *ledger) entry(p netip.Prefix) *entry {
	e := l.entries[p]
	if e == nil {
		e = &entry{}
		l.entries[p] = e
	}
	return e
}

// event notes that a host told of a change.
func (l *ledger) event(k eventKey) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events[k]++
}

// observed begins a host's claim. acked says that the control plane has acknowledged it.
func (l *ledger) observed(p netip.Prefix, host int, jail string, d time.Duration) (acked func(at time.Time)) {
	c := &claim{host: host, jail: jail, lo: time.Now().Add(d).UnixMilli() - slack}
	l.mu.Lock()
	e := l.entry(p)
	e.claims = append(e.claims, c)
	l.mu.Unlock()
	return func(at time.Time) {
		l.mu.Lock()
		defer l.mu.Unlock()
		c.acked, c.hi = true, at.Add(d).UnixMilli()+slack
	}
}

// ordered adds an operator's claim.
func (l *ledger) ordered(p netip.Prefix, expires int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.entry(p)
	e.lifted = false
	e.claims = append(e.claims, &claim{host: -1, lo: expires, hi: expires, acked: true})
}

// lift takes back all claims: an operator unbanned the prefix.
func (l *ledger) lift(p netip.Prefix) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.entry(p)
	e.lifted = true
	for _, c := range e.claims {
		c.retired = true
	}
}

// retract takes back one host's claim: a person unbanned it there.
func (l *ledger) retract(p netip.Prefix, host int, jail string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.entry(p).claims {
		if c.host == host && c.jail == jail {
			c.retired = true
		}
	}
}

// span is between which two moments a ban ends, Unix milliseconds.
type span struct{ lo, hi int64 }

// live is what must be banned at a moment. unsure are those of which it can't be said: they end about then, or their
// acknowledgement is outstanding.
func (l *ledger) live(nowMS int64) (live map[netip.Prefix]span, unsure map[netip.Prefix]bool) {
	live, unsure = map[netip.Prefix]span{}, map[netip.Prefix]bool{}
	l.mu.Lock()
	defer l.mu.Unlock()
	for p, e := range l.entries {
		hosts := map[int]bool{}
		for _, c := range e.claims {
			if c.jail == jailTwo && !c.retired {
				hosts[c.host] = true
			}
		}
		var s span
		for _, c := range e.claims {
			switch {
			case c.retired, c.jail == jailLocal, c.jail == jailTwo && len(hosts) < 2:
			case !c.acked:
				unsure[p] = true
			case c.hi <= nowMS:
				// Over; the sweep may not have been there yet, which is looked at by its end alone.
			default:
				if c.lo <= nowMS {
					unsure[p] = true
				}
				s.lo, s.hi = max(s.lo, c.lo), max(s.hi, c.hi)
			}
		}
		if s.hi > 0 {
			live[p] = s
		}
	}
	return live, unsure
}

// nextEnd is when the last of the bans that end before a moment do, Unix milliseconds; 0 where none does.
func (l *ledger) nextEnd(beforeMS int64) (last int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.entries {
		for _, c := range e.claims {
			if !c.retired && c.hi > last && c.hi < beforeMS {
				last = c.hi
			}
		}
	}
	return last
}

// expected are the events that are to be recorded.
func (l *ledger) expected() map[eventKey]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make(map[eventKey]int, len(l.events))
	for k, n := range l.events {
		out[k] = n
	}
	return out
}

// lifted are the prefixes that operators unbanned, with the jails that had them.
func (l *ledger) lifted(f func(p netip.Prefix, host int, jail string)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for p, e := range l.entries {
		for _, c := range e.claims {
			if e.lifted && c.host >= 0 {
				f(p, c.host, c.jail)
			}
		}
	}
}

// budget keeps hosts below the rate at which their bans become the fleet's: 30 a minute for each and 300 for all, that
// many at once. It stays well below, for events may arrive in a heap.
type budget struct {
	mu   sync.Mutex
	all  bucket
	host map[int]*bucket
}

type bucket struct {
	left  float64
	since time.Time
}

const (
	hostBurst, hostEach = 15, 2200 * time.Millisecond
	allBurst, allEach   = 200, 220 * time.Millisecond
)

func newBudget() *budget {
	return &budget{all: bucket{allBurst, time.Now()}, host: map[int]*bucket{}}
}

// take reports whether a host may ban now.
func (b *budget) take(host int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	own := b.host[host]
	if own == nil {
		own = &bucket{hostBurst, time.Now()}
		b.host[host] = own
	}
	if !own.fill(hostBurst, hostEach) || !b.all.fill(allBurst, allEach) {
		return false
	}
	own.left--
	b.all.left--
	return true
}

func (b *bucket) fill(most float64, each time.Duration) bool {
	now := time.Now()
	b.left = min(most, b.left+float64(now.Sub(b.since))/float64(each))
	b.since = now
	return b.left >= 1
}
