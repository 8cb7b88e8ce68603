// Package leases decides which replica does what one replica has to do, for a term at a time, and keeps who did before.
//
//	(nobody) ──Hold──▶ held, term n ──Hold by the holder──▶ held, term n, longer
//	                        │ its time runs out, or Release
//	                        ▼
//	                   free ──Hold by another──▶ held, term > n; term n goes to the history
//
// A lease isn't a lock: a holder that was paused may believe for a moment that it holds one that another has. What is done under
// a lease must do no harm when two do it; the term tells them apart.
package leases

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/store"
)

// kept is how many terms before the present one are remembered.
const kept = 16

var (
	//go:embed lua/hold.lua
	holdText   string
	holdScript = store.NewScript("leases/hold", holdText)

	//go:embed lua/ran.lua
	ranText   string
	ranScript = store.NewScript("leases/ran", ranText)
)

// Lease is one replica's side of a lease. Safe for concurrent use.
type Lease struct {
	store        *store.Store
	name, holder string
	life         time.Duration
	term         atomic.Int64
	taken        atomic.Int64
}

// New makes one that isn't held. holder is the replica's name, which no other may have; life is how long the lease stands without
// being held again.
func New(st *store.Store, name, holder string, life time.Duration) *Lease {
	return &Lease{store: st, name: name, holder: holder, life: life}
}

// Hold takes or renews the lease. fresh: it was not this replica's before. After an error it counts as another's.
func (l *Lease) Hold(ctx context.Context) (held, fresh bool, err error) {
	term, err := l.run(ctx, l.life)
	if err != nil {
		l.term.Store(0)
		return false, false, fmt.Errorf("take the lease of %s: %w", l.name, err)
	}
	fresh = l.term.Swap(term) != term && term != 0
	if fresh {
		l.taken.Add(1)
	}
	return term != 0, fresh, nil
}

// Release lets another replica go on at once.
func (l *Lease) Release(ctx context.Context) error {
	if l.term.Swap(0) == 0 {
		return nil
	}
	if _, err := l.run(ctx, 0); err != nil {
		return fmt.Errorf("give the lease of %s back: %w", l.name, err)
	}
	return nil
}

func (l *Lease) run(ctx context.Context, life time.Duration) (int64, error) {
	return holdScript.Run(ctx, l.store, []string{store.Global("lease", l.name)}, l.holder, life.Milliseconds(), kept).Int64()
}

// Ran notes that pieces of work were done under the lease, for Read to tell. What a replica did that lost the lease meanwhile isn't
// noted.
func (l *Lease) Ran(ctx context.Context, runs ...Run) error {
	term := l.term.Load()
	if term == 0 || len(runs) == 0 {
		return nil
	}
	args := []any{l.holder, term}
	for _, r := range runs {
		text, err := json.Marshal(ran{r.Began.UnixMilli(), r.Took.Milliseconds(), r.Problem, term})
		if err != nil {
			return fmt.Errorf("note what was done under the lease of %s: %w", l.name, err)
		}
		args = append(args, ranField+r.Name, text)
	}
	if err := ranScript.Run(ctx, l.store, []string{store.Global("lease", l.name)}, args...).Err(); err != nil {
		return fmt.Errorf("note what was done under the lease of %s: %w", l.name, err)
	}
	return nil
}

// Term is that of the lease, 0 where another replica has it for all this one knows. Terms grow.
func (l *Lease) Term() int64 { return l.term.Load() }

// Taken is how often this replica took it.
func (l *Lease) Taken() int64 { return l.taken.Load() }

// State is who holds a lease, and who did.
type State struct {
	Name string `json:"name"`
	// Holder is "" where nobody has it: it ran out or was given back, and is in History then.
	Holder string    `json:"holder,omitempty"`
	Term   int64     `json:"term,omitempty"`
	Since  time.Time `json:"since,omitzero"`
	// Until is when it runs out unless it is renewed.
	Until time.Time `json:"until,omitzero"`
	// History are the terms before, newest first.
	History []Term `json:"history,omitempty"`
	// Runs are the last of each piece of work, by name, in whatever term.
	Runs []Run `json:"runs,omitempty"`
}

// Run is when a piece of work was done last.
type Run struct {
	Name  string        `json:"name"`
	Began time.Time     `json:"began"`
	Took  time.Duration `json:"took_ns"`
	// Problem says why it didn't do all it should; empty if it did.
	Problem string `json:"problem,omitempty"`
	Term    int64  `json:"term"`
}

// ran is a Run as Redis has it, in the lease's field ran:NAME.
type ran struct {
	BeganMS int64  `json:"b"`
	TookMS  int64  `json:"t"`
	Problem string `json:"p,omitempty"`
	Term    int64  `json:"n"`
}

const ranField = "ran:"

// Term is one that is over.
type Term struct {
	Holder string    `json:"holder"`
	Term   int64     `json:"term"`
	Since  time.Time `json:"since"`
	Ended  time.Time `json:"ended"`
	// Released: the holder gave it back. Else it was killed, or lost Redis.
	Released bool `json:"released"`
}

// Read tells how a lease stands.
func Read(ctx context.Context, st *store.Store, name string) (State, error) {
	out := State{Name: name}
	now, err := st.Time(ctx, "")
	if err != nil {
		return State{}, fmt.Errorf("read the lease of %s: %w", name, err)
	}
	fields, err := st.Client().HGetAll(ctx, store.Global("lease", name)).Result()
	if err != nil {
		return State{}, fmt.Errorf("read the lease of %s: %w", name, store.Classify(err))
	}
	if len(fields) == 0 {
		return out, nil
	}
	since := fields["since"]
	if since == "" { // an earlier release kept none
		since = fields["term"]
	}
	newest, err := past{Holder: fields["holder"], Term: fields["term"], Since: since, Ended: fields["until"], Released: fields["released"] == "1"}.term()
	if err != nil {
		return State{}, fmt.Errorf("read the lease of %s: %w", name, err)
	}
	if newest.Ended.After(now) {
		out.Holder, out.Term, out.Since, out.Until = newest.Holder, newest.Term, newest.Since, newest.Ended
	} else {
		out.History = append(out.History, newest)
	}
	for field, text := range fields {
		name, ok := strings.CutPrefix(field, ranField)
		if !ok {
			continue
		}
		var r ran
		if err := json.Unmarshal([]byte(text), &r); err != nil {
			return State{}, fmt.Errorf("read the lease of %s: when %.40q was done: %w", out.Name, name, err)
		}
		out.Runs = append(out.Runs, Run{name, time.UnixMilli(r.BeganMS).UTC(), time.Duration(r.TookMS) * time.Millisecond, r.Problem, r.Term})
	}
	slices.SortFunc(out.Runs, func(a, b Run) int { return strings.Compare(a.Name, b.Name) })
	if fields["history"] == "" {
		return out, nil
	}
	var before []past
	if err := json.Unmarshal([]byte(fields["history"]), &before); err != nil {
		return State{}, fmt.Errorf("read the lease of %s: its history: %w", name, err)
	}
	for _, p := range before {
		t, err := p.term()
		if err != nil {
			return State{}, fmt.Errorf("read the lease of %s: %w", name, err)
		}
		out.History = append(out.History, t)
	}
	return out, nil
}

// past is a term as Redis has it.
type past struct {
	Holder   string `json:"holder"`
	Term     string `json:"term"`
	Since    string `json:"since"`
	Ended    string `json:"ended"`
	Released bool   `json:"released"`
}

func (p past) term() (Term, error) {
	n, err := strconv.ParseInt(p.Term, 10, 64)
	if err != nil {
		return Term{}, fmt.Errorf("term of %.40q: %w", p.Holder, err)
	}
	at := func(text string) (at time.Time) {
		var ms int64
		if ms, err = strconv.ParseInt(text, 10, 64); err == nil {
			at = time.UnixMilli(ms).UTC()
		}
		return at
	}
	out := Term{Holder: p.Holder, Term: n, Since: at(p.Since), Released: p.Released}
	if err == nil {
		out.Ended = at(p.Ended)
	}
	if err != nil {
		return Term{}, fmt.Errorf("times of term %d: %w", n, err)
	}
	return out, nil
}
