package insight

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/sets"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

// page is one prefix of a book. Never changed once it is there: answers hold on to it.
type page struct {
	sets.Entry

	text  string // the prefix as people write it
	since int64  // when the first of its claims began
}

func newPage(e sets.Entry) *page {
	p := &page{Entry: e, text: prefix.Format(e.Prefix)}
	for _, c := range e.Claims {
		if p.since == 0 || c.Since < p.since {
			p.since = c.Since
		}
	}
	return p
}

// book is what is kept of one organisation's bans.
type book struct {
	lease lease

	mu    sync.Mutex
	read  time.Time // when all of it was
	epoch uint64
	at    map[string]uint64 // set → version
	pages map[netip.Prefix]*page
	// sorted are the pages in each order that was asked for since they last changed.
	sorted map[operatorv1.BanOrder][]*page
}

func newBook() *book { return &book{pages: make(map[netip.Prefix]*page)} }

// refresh brings the book up to what Redis holds now, and returns Redis' clock. The lock is held.
func (b *book) refresh(ctx context.Context, s *sets.Sets, org string) (now int64, err error) {
	states, err := s.States(ctx, org)
	if err != nil {
		return 0, err
	}
	if b.at == nil || b.epoch != states.Epoch || time.Since(b.read) > anewEvery {
		return states.Now, b.readAll(ctx, s, org, states)
	}
	var changed []netip.Prefix
	for _, set := range states.Sets {
		if set.Cursor.Version == b.at[set.Cursor.Set] {
			continue
		}
		if set.Kind != fleetbanv1.SetKind_SET_KIND_BAN {
			if set.Kind == fleetbanv1.SetKind_SET_KIND_ALLOW {
				// An entry of the allowlist may suppress any number of bans.
				return states.Now, b.readAll(ctx, s, org, states)
			}
			b.at[set.Cursor.Set] = set.Cursor.Version
			continue
		}
		behind := set.Cursor.Version - b.at[set.Cursor.Set]
		if behind > mostDeltas {
			return states.Now, b.readAll(ctx, s, org, states)
		}
		deltas, err := s.Log(ctx, org, set.Cursor.Set, b.at[set.Cursor.Set], int(behind)) //nolint:gosec // at most mostDeltas
		if err != nil {
			return 0, err
		}
		if len(deltas) == 0 || deltas[0].Version != b.at[set.Cursor.Set]+1 {
			return states.Now, b.readAll(ctx, s, org, states) // trimmed
		}
		for _, d := range deltas {
			for _, r := range d.Records {
				changed = append(changed, r.Prefix)
			}
		}
		b.at[set.Cursor.Set] = deltas[len(deltas)-1].Version
	}
	if len(changed) == 0 {
		return states.Now, nil
	}
	slices.SortFunc(changed, comparePrefixes)
	entries, err := s.Entries(ctx, org, slices.Compact(changed))
	if err != nil {
		b.at = nil // what was taken from the logs isn't in the pages
		return 0, err
	}
	for _, e := range entries {
		if len(e.Claims) == 0 {
			delete(b.pages, e.Prefix)
			continue
		}
		b.pages[e.Prefix] = newPage(e)
	}
	b.sorted = nil
	if len(b.pages) > most {
		return 0, ErrTooMany
	}
	return states.Now, nil
}

func (b *book) readAll(ctx context.Context, s *sets.Sets, org string, states sets.States) error {
	b.at, b.sorted = nil, nil
	var total uint64
	for _, set := range states.Sets {
		if set.Kind == fleetbanv1.SetKind_SET_KIND_BAN {
			total += set.Records
		}
	}
	if total > most {
		clear(b.pages)
		return ErrTooMany
	}
	pages := make(map[netip.Prefix]*page, total)
	for token := ""; ; {
		list, err := s.List(ctx, org, sets.ListInput{PageSize: 5000, PageToken: token, IncludeUnpromoted: true})
		if err != nil {
			return err
		}
		for _, e := range list.Entries {
			pages[e.Prefix] = newPage(e)
		}
		if len(pages) > most {
			return ErrTooMany
		}
		if token = list.NextPageToken; token == "" {
			break
		}
	}
	// The versions are from before the pages: what changed meanwhile is read once more.
	b.at = make(map[string]uint64, len(states.Sets))
	for _, set := range states.Sets {
		b.at[set.Cursor.Set] = set.Cursor.Version
	}
	b.pages, b.epoch, b.read = pages, states.Epoch, time.Now()
	return nil
}

// in is the pages in an order, ascending. The lock is held; the slice is never changed.
func (b *book) in(order operatorv1.BanOrder) []*page {
	if all := b.sorted[order]; all != nil {
		return all
	}
	all := make([]*page, 0, len(b.pages))
	for _, p := range b.pages {
		all = append(all, p)
	}
	slices.SortFunc(all, func(x, y *page) int {
		return cmp.Or(cmp.Compare(x.key(order), y.key(order)), comparePrefixes(x.Prefix, y.Prefix))
	})
	if b.sorted == nil {
		b.sorted = make(map[operatorv1.BanOrder][]*page)
	}
	b.sorted[order] = all
	return all
}

// key is what an order compares first.
func (p *page) key(order operatorv1.BanOrder) int64 {
	switch order {
	case operatorv1.BanOrder_BAN_ORDER_EXPIRES:
		return p.Expires
	case operatorv1.BanOrder_BAN_ORDER_SINCE:
		return p.since
	default:
		return 0
	}
}

func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(cmp.Compare(a.Addr().BitLen(), b.Addr().BitLen()), a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}
