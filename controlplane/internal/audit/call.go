package audit

import (
	"context"
	"slices"
	"sync"
)

// Call is a call of the API that is to be recorded: the interceptor puts it in the context, handlers say more of it.
// Methods of a nil Call do nothing.
type Call struct {
	log    *Log
	org    string
	id     string
	atomic bool

	mu     sync.Mutex
	record Record
	wrote  bool
}

// NewCall begins a call. atomic: the change's own script writes its entry.
func (l *Log) NewCall(org string, r Record, atomic bool) *Call {
	return &Call{log: l, org: org, id: newID(), record: r, atomic: atomic}
}

// SetTargets says what it is done to, in the words that people know it by.
func (c *Call) SetTargets(targets ...string) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.record.Targets = targets
}

// Add says more of it. Never a secret.
func (c *Call) Add(d Detail) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.record.Details = append(c.record.Details, d)
}

// Change says what a property was and is, in place of what the request says of it. One that didn't change is left out.
func (c *Call) Change(name, before, after string) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.record.Details = slices.DeleteFunc(slices.Clone(c.record.Details), func(d Detail) bool { return d.Name == name })
	if before != after {
		c.record.Details = append(c.record.Details, Detail{Name: name, Before: before, After: after})
	}
}

// Record is what is known of it.
func (c *Call) Record() Record {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.record
}

// Wrote reports whether a script wrote its entry.
func (c *Call) Wrote() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.wrote
}

type (
	callKey   struct{}
	clientKey struct{}
)

// With is ctx of a call that is to be recorded.
func With(ctx context.Context, c *Call) context.Context { return context.WithValue(ctx, callKey{}, c) }

// From is the call that ctx belongs to; nil where it is none that is recorded.
func From(ctx context.Context) *Call {
	c, _ := ctx.Value(callKey{}).(*Call)
	return c
}

// WithClient is ctx of a call from there.
func WithClient(ctx context.Context, c Client) context.Context {
	return context.WithValue(ctx, clientKey{}, c)
}

// ClientFrom is where the call that ctx belongs to came from, for handlers that record by themselves.
func ClientFrom(ctx context.Context) Client {
	c, _ := ctx.Value(clientKey{}).(Client)
	return c
}

// Stage makes the entry of the call that ctx belongs to, for the script that makes its change; nil where there is none to
// make there.
func Stage(ctx context.Context) *Staged {
	c := From(ctx)
	if c == nil || !c.atomic {
		return nil
	}
	s := c.log.stage(c.org, c.Record(), c.id, 0)
	s.wrote = func() {
		c.mu.Lock()
		c.wrote = true
		c.mu.Unlock()
	}
	return s
}
