package sets

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fleetban/fleetban/controlplane/internal/audit"
	"github.com/fleetban/fleetban/controlplane/internal/hosts/commandlog"
	"github.com/fleetban/fleetban/controlplane/internal/store"
)

//go:embed lua/prelude.lua
var luaPrelude string

//go:embed lua/flush.lua
var luaFlush string

//go:embed lua/apply.lua
var luaApply string

//go:embed lua/events.lua
var luaEvents string

//go:embed lua/run.lua
var luaRun string

//go:embed lua/states.lua
var luaStates string

//go:embed lua/sweep.lua
var luaSweep string

// With flags, even none, Redis refuses a script before its first command when memory is full, rather than in between;
// allow-oom lets those run that free some or write next to nothing.
const (
	shebang    = "#!lua"
	shebangOOM = "#!lua flags=allow-oom"
)

var (
	applyScript    = store.NewScript("apply", shebang, luaPrelude, audit.Lua, luaFlush, commandlog.Lua, luaApply, luaEvents, luaWithdraw, luaRun)
	applyOOMScript = store.NewScript("apply-oom", shebangOOM, luaPrelude, audit.Lua, luaFlush, commandlog.Lua, luaApply, luaEvents, luaWithdraw, luaRun)
	statesScript   = store.NewScript("states", shebangOOM, luaPrelude, audit.Lua, luaFlush, luaStates)
	sweepScript    = store.NewScript("sweep", shebangOOM, luaPrelude, audit.Lua, luaFlush, luaSweep)
)

// Bounds of one script call, so that none holds Redis for long: 256 prefixes take some 5 ms. A mutation that is larger
// than that goes alone.
const (
	batchMutations = 256
	batchPrefixes  = 256
	batchBytes     = 64 << 10
)

// mutation is one that waits for, or is in, a script call.
type mutation struct {
	args   []any
	weight int // prefixes
	bytes  int
	// frees: it may run when memory is full.
	frees bool
	// entry is what the audit log says of it; nil where that isn't asked for.
	entry *audit.Staged
	done  chan outcome
}

// outcome is a mutation's part of a reply.
type outcome struct {
	head   head
	values []any
	err    error
}

// committer groups the mutations of each organisation: while one script call is in flight, those that come wait and go
// together with the next. With appendfsync always a call costs an fsync, and this shares it.
type committer struct {
	run func(org string, script *store.Script, args []any) (head, []any, error)

	mu     sync.Mutex
	queues map[string][]*mutation // present: a goroutine drains it
	closed bool
	flying sync.WaitGroup
}

func newMutation(frees bool, weight int, args ...any) *mutation {
	m := &mutation{args: args, weight: weight, frees: frees, done: make(chan outcome, 1)}
	for _, a := range args {
		switch a := a.(type) {
		case string:
			m.bytes += len(a)
		case []byte:
			m.bytes += len(a)
		}
	}
	return m
}

// audited has the script write the entry of the call that ctx belongs to.
func (m *mutation) audited(ctx context.Context) *mutation {
	m.entry = audit.Stage(ctx)
	body, mac := m.entry.Args()
	m.bytes += len(body) + len(mac)
	return m
}

// do queues a mutation and waits for its outcome. When ctx ends first, a mutation that still waited is taken back; for
// one in flight the answer is ErrOutcomeUnknown.
func (c *committer) do(ctx context.Context, org string, m *mutation) (head, []any, error) {
	if err := ctx.Err(); err != nil {
		return head{}, nil, err
	}
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return head{}, nil, ErrClosed
	}
	queue, draining := c.queues[org]
	c.queues[org] = append(queue, m)
	if !draining {
		c.flying.Add(1)
		go c.drain(org)
	}
	c.mu.Unlock()
	select {
	case out := <-m.done:
		return out.head, out.values, out.err
	case <-ctx.Done():
	}
	c.mu.Lock()
	for i, waiting := range c.queues[org] {
		if waiting == m {
			c.queues[org] = append(c.queues[org][:i:i], c.queues[org][i+1:]...)
			c.mu.Unlock()
			return head{}, nil, ctx.Err()
		}
	}
	c.mu.Unlock()
	return head{}, nil, fmt.Errorf("%w: %w", store.ErrOutcomeUnknown, ctx.Err())
}

// drain runs batches until none waits.
func (c *committer) drain(org string) {
	defer c.flying.Done()
	for {
		c.mu.Lock()
		queue := c.queues[org]
		if len(queue) == 0 {
			delete(c.queues, org)
			c.mu.Unlock()
			return
		}
		n, weight, bytes := 0, 0, 0
		for n < len(queue) && n < batchMutations {
			m := queue[n]
			if n > 0 && (weight+m.weight > batchPrefixes || bytes+m.bytes > batchBytes) {
				break
			}
			weight += m.weight
			bytes += m.bytes
			n++
		}
		batch := queue[:n:n]
		c.queues[org] = queue[n:]
		c.mu.Unlock()
		c.commit(org, applyScript, batch)
	}
}

// commit runs one batch and tells each mutation its outcome.
func (c *committer) commit(org string, script *store.Script, batch []*mutation) {
	args := []any{len(batch)}
	for _, m := range batch {
		body, mac := m.entry.Args()
		args = append(append(args, body, mac), m.args...)
	}
	h, values, err := c.run(org, script, args)
	var results []any
	if err == nil {
		if len(values) == 2 {
			h.audit, _ = values[0].([]any)
			results, _ = values[1].([]any)
		}
		if len(results) != len(batch) {
			err = fmt.Errorf("%w: %d results of %d mutations", errCorrupt, len(results), len(batch))
		}
	}
	var reply redis.Error
	switch {
	case err == nil:
		for i, m := range batch {
			values, _ := results[i].([]any)
			m.done <- outcome{head: h, values: values}
		}
	case redis.HasErrorPrefix(err, "OOM") && script == applyScript:
		var frees []*mutation
		for _, m := range batch {
			if m.frees {
				frees = append(frees, m)
			} else {
				m.done <- outcome{err: ErrFull}
			}
		}
		if len(frees) > 0 {
			c.commit(org, applyOOMScript, frees)
		}
	case errors.As(err, &reply) && !errors.Is(err, store.ErrUnavailable) && len(batch) > 1:
		// The script failed before it wrote anything (see flush.lua): find the mutation it failed on, and don't let the
		// others pay for it.
		for _, m := range batch {
			c.commit(org, script, []*mutation{m})
		}
	default:
		for _, m := range batch {
			m.done <- outcome{err: err}
		}
	}
}

func (c *committer) close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.flying.Wait()
}

// head is what every reply begins with.
type head struct {
	now          int64
	epoch        uint64
	oldEpoch     uint64
	rebuildUntil int64
	policy       uint64
	sets         []SetState
	// audit is what audit.write returned.
	audit []any
}

// runner runs scripts with the arguments that all take.
type runner struct {
	store   *store.Store
	window  time.Duration
	timeout time.Duration
	// clock is 0 for the server's own, Unix milliseconds in tests.
	clock func() int64
}

// run runs a script under its own time limit: a batch outlives the caller that happened to begin it.
func (r *runner) run(ctx context.Context, org string, script *store.Script, args []any) (head, []any, error) {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	all := make([]any, 0, len(args)+2)
	all = append(all, r.clock(), r.window.Milliseconds())
	all = append(all, args...)
	values, err := script.Run(ctx, r.store, []string{store.Key(org, "meta")}, all...).Slice()
	if err != nil {
		return head{}, nil, err
	}
	return parseHead(values)
}
