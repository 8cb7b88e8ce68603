package store

import (
	"context"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// lanes is how many commands, or pipelines of them, are under way to one server at a time.
	lanes = 8
	// mostCombined bounds a pipeline: what waits in it for its answer waits for all before it.
	mostCombined = 64
)

// combiner sends commands of many callers together where there are many. One that comes while few are under way is sent at once and
// by itself; what comes while the lanes are busy goes with the next pipeline. So thousands that want something in one moment,
// which is so when a fleet comes back, cost Redis a read, a write and, with appendfsync always, a sync for each pipeline and not for each
// command, and wait for a few of those instead of for a connection each.
type combiner struct {
	// send sends a pipeline; each command has its own error afterwards.
	send func(cmds []redis.Cmder)
	// patience is how long a command may wait to be sent.
	patience time.Duration

	mu    sync.Mutex
	busy  int // lanes; what waits does so only while all are
	queue []*combined
}

// combined is a command that waits.
type combined struct {
	cmd   redis.Cmder
	done  chan struct{}
	taken bool // it is being sent
	gave  bool // its caller has left
}

// do sends a command, by itself through alone, or with others. Its error is as if it had been sent by itself: where it was never sent,
// the caller's or redis.ErrPoolTimeout.
func (c *combiner) do(ctx context.Context, cmd redis.Cmder, alone redis.ProcessHook) (err error, together bool) { //nolint:revive,staticcheck // the error is what it is about
	c.mu.Lock()
	if c.busy < lanes {
		c.busy++
		c.mu.Unlock()
		defer c.free()
		return alone(ctx, cmd), false
	}
	w := &combined{cmd: cmd, done: make(chan struct{})}
	c.queue = append(c.queue, w)
	c.mu.Unlock()
	longest := time.NewTimer(c.patience)
	defer longest.Stop()
	err = redis.ErrPoolTimeout
	select {
	case <-w.done:
		return cmd.Err(), true
	case <-longest.C:
	case <-ctx.Done():
		err = ctx.Err()
	}
	c.mu.Lock()
	w.gave = true
	taken := w.taken
	c.mu.Unlock()
	if !taken {
		return err, true
	}
	// It is on its way, and its answer is the command's until it has come, or the connection's time is over.
	<-w.done
	return cmd.Err(), true
}

// free gives a lane to what waits.
func (c *combiner) free() {
	if batch := c.next(); batch != nil {
		go func() {
			for ; batch != nil; batch = c.next() {
				cmds := make([]redis.Cmder, len(batch))
				for i, w := range batch {
					cmds[i] = w.cmd
				}
				c.send(cmds)
				for _, w := range batch {
					close(w.done)
				}
			}
		}()
	}
}

// next is what is to be sent next; where nothing waits the lane is free.
func (c *combiner) next() (batch []*combined) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.queue) > 0 && len(batch) < mostCombined {
		w := c.queue[0]
		c.queue[0] = nil
		c.queue = c.queue[1:]
		if !w.gave {
			w.taken = true
			batch = append(batch, w)
		}
	}
	if batch == nil {
		c.queue = nil
		c.busy--
	}
	return batch
}

// combinable reports whether a command is one that many callers send at once. Others may block, or change their connection.
func combinable(cmd redis.Cmder) bool {
	switch cmd.Name() {
	case "evalsha", "eval", "get", "set", "setnx", "hget", "hmget", "hlen":
		return true
	default:
		return false
	}
}
