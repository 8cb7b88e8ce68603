package stream

import (
	"sync"
	"time"
)

// clock estimates the server's. It goes on by the host's monotonic clock, so that nobody who sets the host's clock
// moves it. What a message says of the server's time is late by its way here and never early: of the last few
// estimates the greatest is the truest.
type clock struct {
	mu      sync.Mutex
	base    time.Time // has a monotonic reading; offsets count from it
	samples [8]time.Duration
	n       int
	set     bool
	// at is what the server last called its clock: another name means that it was set.
	at uint32
}

func newClock() *clock { return &clock{base: time.Now()} }

// now is the server's time, the host's own before the first sample.
func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.set {
		return time.Now()
	}
	return time.UnixMilli(0).Add(c.best() + time.Since(c.base))
}

func (c *clock) nowMS() int64 { return c.now().UnixMilli() }

// beat takes in a heartbeat's time. The server's clock goes back where it is set, or where another server's takes its place: without
// the word for that, a time that is earlier than expected looks like a message that was long on its way. It reports whether that was
// said.
func (c *clock) beat(serverMS int64, at uint32) (set bool) {
	c.mu.Lock()
	fresh := at != c.at
	c.at = at
	c.mu.Unlock()
	c.sample(serverMS, fresh)
	return fresh
}

// sample takes in the server's time as a message just said it. fresh drops what was known before: a new connection may
// lead to another server, and the host may have slept.
func (c *clock) sample(serverMS int64, fresh bool) {
	if serverMS <= 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if fresh || !c.set {
		c.n = 0
	}
	c.samples[c.n%len(c.samples)] = time.Duration(serverMS)*time.Millisecond - time.Since(c.base)
	c.n++
	c.set = true
}

func (c *clock) best() time.Duration {
	best := c.samples[0]
	for _, s := range c.samples[1:min(max(c.n, 1), len(c.samples))] {
		best = max(best, s)
	}
	return best
}

// offset is the server's clock less the host's wall clock.
func (c *clock) offset() time.Duration {
	now := c.now()
	return now.Sub(time.Now().Round(0))
}
