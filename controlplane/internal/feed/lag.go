package feed

import (
	mathrand "math/rand/v2"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/metrics"
	"github.com/fleetban/fleetban/controlplane/internal/sets"
	"github.com/fleetban/fleetban/proto/wire/banset"
)

// How often the lines are compared with Redis, and how soon again where one is behind.
const (
	lookEvery = 5 * time.Second
	lookAgain = 500 * time.Millisecond
)

// Moment is when this replica heard of a change; the zero Moment is none.
type Moment int64

var start = time.Now()

func now() Moment { return Moment(max(1, time.Since(start))) }

// Ago is how long ago it was, 0 for none.
func (m Moment) Ago() time.Duration {
	if m == 0 {
		return 0
	}
	return max(1, time.Since(start)-time.Duration(m))
}

// behind is what a line was found to lack.
type behind struct {
	since time.Time // zero: nothing
	lag   uint64    // versions
	at    sets.Cursor
}

// look compares the lines with Redis, now and then: a doorbell that was rung and not heard leaves no other trace until the
// next one rings. What is still missing at the next look is read.
func (f *Feed) look() {
	defer f.done.Done()
	timer := time.NewTimer(lookEvery/2 + mathrand.N(lookEvery)) //nolint:gosec // jitter
	defer timer.Stop()
	for {
		select {
		case <-f.ctx.Done():
			return
		case <-timer.C:
		}
		pause := lookEvery
		if f.idle() {
			timer.Reset(pause)
			continue
		}
		// Redis away: what was known of the lag stands.
		if states, err := f.feeds.o.Sets.States(f.ctx, f.org); err == nil && f.compare(states) {
			pause = lookAgain
		}
		timer.Reset(pause)
	}
}

// idle reports that nobody follows a set.
func (f *Feed) idle() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.lines) == 0
}

// compare notes what the lines lack of states, which were read before they are looked at, and says whether they lack
// anything. What a line lacked at the last look already is read from Redis.
func (f *Feed) compare(states sets.States) (lacks bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for set, l := range f.lines {
		want := states.Set(set).Cursor
		want.Epoch = states.Epoch
		if !l.loaded || l.reaches(want) {
			l.lacks = behind{}
			continue
		}
		lacks = true
		if missed := l.lacks; !missed.since.IsZero() && !l.reaches(missed.at) && !l.behind && !f.reload {
			f.feeds.o.Metrics.DoorbellGap()
			f.feeds.o.Logger.Warn("a change in Redis was not heard, reading it", "organisation", f.org, "set", set,
				"have", l.last.delta.Version, "want", missed.at.Version)
			f.reload = true
			f.kick()
		}
		if l.lacks.since.IsZero() {
			l.lacks.since = time.Now()
		}
		l.lacks.at, l.lacks.lag = want, 1
		if have := l.last.delta.Version; want.Version > have {
			l.lacks.lag = want.Version - have
		}
	}
	return lacks
}

// reaches reports whether the line is where a cursor is, or further.
func (l *line) reaches(c sets.Cursor) bool {
	return l.epoch > c.Epoch || l.epoch == c.Epoch && l.last.delta.Version >= c.Version
}

// State tells how the sets are that streams of this replica follow.
func (f *Feeds) State() []metrics.SetState {
	f.mu.Lock()
	feeds := make([]*Feed, 0, len(f.feeds))
	for _, feed := range f.feeds {
		feeds = append(feeds, feed)
	}
	f.mu.Unlock()
	var out []metrics.SetState
	for _, feed := range feeds {
		feed.mu.Lock()
		for set, l := range feed.lines {
			if !l.loaded {
				continue
			}
			s := metrics.SetState{
				Organisation: feed.org, Set: set, Builtin: set == banset.All || set == banset.Allow || set == banset.Hosts,
				Version: l.last.delta.Version, Lag: l.lacks.lag,
			}
			if !l.lacks.since.IsZero() {
				s.Behind = time.Since(l.lacks.since)
			}
			out = append(out, s)
		}
		feed.mu.Unlock()
	}
	return out
}
