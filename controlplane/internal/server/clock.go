package server

import (
	"context"
	"sync"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/store"
)

// clock is Redis' clock as this replica knows it: the local one and how far it is off. It never goes back.
type clock struct {
	mu     sync.Mutex
	offset time.Duration
	last   time.Time
}

// sample asks Redis and returns how far it is ahead of the local clock.
func (c *clock) sample(ctx context.Context, st *store.Store) (time.Duration, error) {
	before := time.Now()
	theirs, err := st.Time(ctx, "")
	if err != nil {
		return 0, err
	}
	trip := time.Since(before)
	offset := theirs.Sub(before.Add(trip / 2))
	c.mu.Lock()
	defer c.mu.Unlock()
	// What the way there and back took can't be told apart from an offset.
	if trip < time.Second {
		c.offset = offset
	}
	return offset, nil
}

// ahead is how far Redis' clock was ahead of the local one when it was last asked.
func (c *clock) ahead() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.offset
}

// now is Redis' time.
func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	// Without the monotonic reading, which would make later comparisons forget the offset.
	if now := time.Now().Round(0).Add(c.offset); now.After(c.last) {
		c.last = now
	}
	return c.last
}
