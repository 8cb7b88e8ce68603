// Package insight answers what people look at: an organisation's bans by what they are, and what happened lately.
//
// Redis keeps bans by prefix, in no order that a person would ask for. So a replica that is asked holds the organisation's
// bans in memory while somebody looks (a book), brings it up to date from the logs of the sets before each answer, reads
// it anew every half minute, for what stands in no log, and forgets it a minute after the last look. Nothing here is the
// truth of anything: any replica makes its own book from Redis.
package insight

import (
	"errors"
	"sync"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/sets"
)

const (
	// most is how many prefixes a book holds. One takes about half a kilobyte.
	most = 300_000
	// anewEvery is how old a book gets. What hosts observe and the fleet doesn't ban is as old at most: it makes no delta.
	anewEvery = 30 * time.Second
	// mostDeltas is how many are taken from a log; to read all costs less than more of them.
	mostDeltas = 5000
	// forgetAfter is how long after the last look.
	forgetAfter = time.Minute
)

// ErrTooMany says that the organisation has more prefixes than can be searched; they can still be listed in pages.
var ErrTooMany = errors.New("more bans than can be searched")

// Insight answers for all organisations. Safe for concurrent use.
type Insight struct {
	sets *sets.Sets

	mu    sync.Mutex
	books map[string]*book
	tapes map[string]*tape
}

// New makes an Insight over s.
func New(s *sets.Sets) *Insight {
	return &Insight{sets: s, books: make(map[string]*book), tapes: make(map[string]*tape)}
}

// lease is when something that is held for an organisation was wanted last.
type lease struct{ forget *time.Timer }

// held finds what is held for org, or makes it, and puts off its end.
func held[T any](i *Insight, all map[string]T, org string, fresh func() T, of func(T) *lease) T {
	i.mu.Lock()
	defer i.mu.Unlock()
	v, ok := all[org]
	if !ok {
		v = fresh()
		all[org] = v
		of(v).forget = time.AfterFunc(forgetAfter, func() {
			i.mu.Lock()
			defer i.mu.Unlock()
			delete(all, org)
		})
		return v
	}
	of(v).forget.Reset(forgetAfter)
	return v
}

// Close forgets everything.
func (i *Insight) Close() {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, b := range i.books {
		b.lease.forget.Stop()
	}
	for _, t := range i.tapes {
		t.lease.forget.Stop()
	}
	clear(i.books)
	clear(i.tapes)
}
