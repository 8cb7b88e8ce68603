package holding

import (
	"net/netip"

	hostv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/host/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// view is the latest end of a prefix over the sets of a kind; 0 if it is in none. The caller holds the lock.
func (h *Holding) view(kind fleetbanv1.SetKind, k key) int64 {
	var latest int64
	for _, s := range h.sets {
		if s.kind != kind {
			continue
		}
		if r, ok := s.records[k]; ok && r.kind == present {
			latest = max(latest, r.expires)
		}
	}
	return latest
}

// viewed is what a prefix's union was.
type viewed struct {
	key
	expires int64
}

func (h *Holding) views(kind fleetbanv1.SetKind, records []keyed) []viewed {
	out := make([]viewed, 0, len(records))
	var seen map[key]bool
	if len(records) > 1 {
		seen = make(map[key]bool, len(records))
	}
	for _, kr := range records {
		if seen[kr.key] {
			continue
		}
		if seen != nil {
			seen[kr.key] = true
		}
		out = append(out, viewed{kr.key, h.view(kind, kr.key)})
	}
	return out
}

// changed compares the unions with what they were. Each prefix is listed once.
func (h *Holding) changed(kind fleetbanv1.SetKind, before []viewed) Change {
	if len(before) > mostChanged {
		return Change{Large: true}
	}
	var c Change
	for _, b := range before {
		if now := h.view(kind, b.key); now != b.expires {
			c.Changed = append(c.Changed, Changed{Kind: kind, Prefix: b.prefix(), Expires: now, Before: b.expires})
		}
	}
	return c
}

// diff is the prefixes whose own state differs between two states of one set; the unions are looked at afterwards.
type diff struct {
	kind   fleetbanv1.SetKind
	before []viewed
	large  bool
}

func (h *Holding) difference(old, next *set) diff {
	d := diff{kind: next.kind}
	note := func(k key) bool {
		if len(d.before) == mostChanged {
			d.large = true
			return false
		}
		d.before = append(d.before, viewed{k, h.view(d.kind, k)})
		return true
	}
	for k, r := range next.records {
		o, ok := old.records[k]
		was, is := int64(0), int64(0)
		if ok && o.kind == present {
			was = o.expires
		}
		if r.kind == present {
			is = r.expires
		}
		if was != is && !note(k) {
			return d
		}
	}
	for k, o := range old.records {
		if _, ok := next.records[k]; !ok && o.kind == present && !note(k) {
			return d
		}
	}
	return d
}

func (h *Holding) resolve(d diff) Change {
	if d.large {
		return Change{Large: true}
	}
	return h.changed(d.kind, d.before)
}

// Expires is the latest end of a prefix over the sets of a kind, Unix milliseconds; 0 if it is in none.
func (h *Holding) Expires(kind fleetbanv1.SetKind, p netip.Prefix) int64 {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.view(kind, keyOf(p))
}

// In names the sets of a kind that a prefix is in.
func (h *Holding) In(kind fleetbanv1.SetKind, p netip.Prefix) []string {
	h.mu.RLock()
	defer h.mu.RUnlock()
	var out []string
	for _, name := range h.names {
		s := h.sets[name]
		if r, ok := s.records[keyOf(p)]; ok && s.kind == kind && r.kind == present {
			out = append(out, name)
		}
	}
	return out
}

// Each calls f once with each prefix in sets of a kind and its latest end, until f returns false. f must not call the
// Holding.
func (h *Holding) Each(kind fleetbanv1.SetKind, f func(p netip.Prefix, expiresUnixMS int64) bool) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	var sets []*set
	for _, name := range h.names {
		if s := h.sets[name]; s.kind == kind {
			sets = append(sets, s)
		}
	}
	for i, s := range sets {
	next:
		for k, r := range s.records {
			if r.kind != present {
				continue
			}
			latest := r.expires
			for j, other := range sets {
				if j == i {
					continue
				}
				if o, ok := other.records[k]; ok && o.kind == present {
					if j < i {
						continue next // told already
					}
					latest = max(latest, o.expires)
				}
			}
			if !f(k.prefix(), latest) {
				return
			}
		}
	}
}

// Count is how many records in force the sets of a kind have together; one in two sets counts twice.
func (h *Holding) Count(kind fleetbanv1.SetKind) int {
	h.mu.RLock()
	defer h.mu.RUnlock()
	n := 0
	for _, s := range h.sets {
		if s.kind == kind {
			n += s.present
		}
	}
	return n
}

// Sets describes what is held, for people.
func (h *Holding) Sets() []*hostv1.HeldSet {
	h.mu.RLock()
	defer h.mu.RUnlock()
	out := make([]*hostv1.HeldSet, 0, len(h.names))
	for _, name := range h.names {
		s := h.sets[name]
		out = append(out, hostv1.HeldSet_builder{Cursor: s.cursor(), Kind: s.kind, Records: uint64(s.present)}.Build()) //nolint:gosec // a count
	}
	return out
}

// heldPage is how many records Held gives at once.
const heldPage = 1000

// Held calls yield with the records of a set that versions above brought, tombstones included, at most 1000 a call,
// until it returns an error. The records are as they are when they are given.
func (h *Holding) Held(name string, above uint64, yield func([]*fleetbanv1.Record) error) error {
	h.mu.RLock()
	var keys []key
	if s := h.sets[name]; s != nil {
		for k, r := range s.records {
			if r.version > above {
				keys = append(keys, k)
			}
		}
	}
	h.mu.RUnlock()
	for len(keys) > 0 {
		n := min(heldPage, len(keys))
		page := make([]*fleetbanv1.Record, 0, n)
		h.mu.RLock()
		if s := h.sets[name]; s != nil {
			for _, k := range keys[:n] {
				if r, ok := s.records[k]; ok {
					page = append(page, r.message(k))
				}
			}
		}
		h.mu.RUnlock()
		keys = keys[n:]
		if len(page) == 0 {
			continue
		}
		if err := yield(page); err != nil {
			return err
		}
	}
	return nil
}
