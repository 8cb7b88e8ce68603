package auth

import (
	"context"
	"sync"
)

// shared answers many calls that ask the same at once with one look. A call never gets the answer of a look that began
// before it: what was revoked before a call is refused to it.
type shared[T any] struct {
	mu      sync.Mutex
	running map[string]*round[T]
}

// round is a look that runs, and the one after it, which those wait for that came meanwhile.
type round[T any] struct {
	next *answer[T]
}

type answer[T any] struct {
	done  chan struct{}
	value T
	err   error
}

// do gives what look finds. The look outlives a caller that leaves, for others wait for it too.
func (s *shared[T]) do(ctx context.Context, key string, look func(context.Context) (T, error)) (T, error) {
	s.mu.Lock()
	if s.running == nil {
		s.running = map[string]*round[T]{}
	}
	r := s.running[key]
	var mine *answer[T]
	switch {
	case r == nil:
		mine = &answer[T]{done: make(chan struct{})}
		s.running[key] = &round[T]{}
		go s.run(context.WithoutCancel(ctx), key, mine, look)
	case r.next == nil:
		mine = &answer[T]{done: make(chan struct{})}
		r.next = mine
	default:
		mine = r.next
	}
	s.mu.Unlock()
	select {
	case <-mine.done:
		return mine.value, mine.err
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
}

// run looks until nobody waits.
func (s *shared[T]) run(ctx context.Context, key string, a *answer[T], look func(context.Context) (T, error)) {
	for a != nil {
		a.value, a.err = look(ctx)
		close(a.done)
		s.mu.Lock()
		r := s.running[key]
		a, r.next = r.next, nil
		if a == nil {
			delete(s.running, key)
		}
		s.mu.Unlock()
	}
}
