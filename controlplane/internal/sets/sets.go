package sets

import (
	"context"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/store"
)

// Options of New.
type Options struct {
	// RebuildWindow is how long after a restart or loss of Redis hosts may offer back what they hold. Default 60 s.
	RebuildWindow time.Duration
	// Timeout bounds one script's round trip. Default 3 s.
	Timeout time.Duration
}

// Sets keeps the sets of all organisations. Safe for concurrent use. Mutations of one organisation that come while a
// script is in flight go together with the next (group commit).
type Sets struct {
	store   *store.Store
	scripts *runner
	commit  *committer
}

// New makes a Sets on a store.
func New(st *store.Store, o Options) *Sets {
	if o.RebuildWindow <= 0 {
		o.RebuildWindow = time.Minute
	}
	if o.Timeout <= 0 {
		o.Timeout = 3 * time.Second
	}
	r := &runner{store: st, window: o.RebuildWindow, timeout: o.Timeout, clock: func() int64 { return 0 }}
	return &Sets{store: st, scripts: r, commit: &committer{
		queues: map[string][]*mutation{},
		run: func(org string, script *store.Script, args []any) (head, []any, error) {
			return r.run(context.Background(), org, script, args)
		},
	}}
}

// Close refuses further mutations and waits for those in flight.
func (s *Sets) Close() { s.commit.close() }
