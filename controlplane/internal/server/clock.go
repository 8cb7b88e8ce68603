package server

import (
	"context"
	"sync"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/store"
)

// step is by how much Redis' clock must differ from what was expected to count as set: less may be what an answer took.
const step = time.Second

// clock is Redis' clock as this replica knows it: the local one and how far it is off.
type clock struct {
	mu      sync.Mutex
	offset  time.Duration
	sampled bool
	last    time.Time
	// steps counts how often Redis' clock was set, or another server's took its place.
	steps uint32
}

// sample asks Redis how far it is ahead of the local clock.
func (c *clock) sample(ctx context.Context, st *store.Store) error {
	before := time.Now()
	theirs, err := st.Time(ctx, "")
	if err != nil {
		return err
	}
	trip := time.Since(before)
	offset := theirs.Sub(before.Add(trip / 2))
	c.mu.Lock()
	defer c.mu.Unlock()
	// What the way there and back took can't be told apart from an offset.
	if trip < time.Second {
		if c.sampled && (offset-c.offset).Abs() > step {
			c.steps++
		}
		c.offset, c.sampled = offset, true
	}
	return nil
}

// ahead is how far Redis' clock was ahead of the local one when it was last asked.
func (c *clock) ahead() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.offset
}

// told is Redis' time for hosts, which goes back where Redis' does, and how often that was set: they go on by it at once. What is
// decided here, of what may not come true twice, goes by now.
func (c *clock) told() (at time.Time, steps uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Round(0).Add(c.offset), c.steps
}

// now is Redis' time. It never goes back.
func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	// Without the monotonic reading, which would make later comparisons forget the offset.
	if now := time.Now().Round(0).Add(c.offset); now.After(c.last) {
		c.last = now
	}
	return c.last
}
