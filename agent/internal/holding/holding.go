package holding

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"

	hostv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/host/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// Bounds of what is held.
const (
	maxSets = 256
	// maxRecords is for all sets together, snapshots under way included. As many take less than 300 MB here and 100 MB of
	// the kernel: what the helper's unit allows it. A fleet of 100,000 bans is a tenth of it.
	maxRecords = 1_000_000
	maxName    = 128
)

// Outcome is what became of a delta, a page or a sync.
type Outcome = hostv1.ApplyResponse_Outcome

// The outcomes, as the helper answers them.
const (
	Applied     = hostv1.ApplyResponse_OUTCOME_APPLIED
	Skipped     = hostv1.ApplyResponse_OUTCOME_SKIPPED
	Gap         = hostv1.ApplyResponse_OUTCOME_GAP
	UnknownKind = hostv1.ApplyResponse_OUTCOME_UNKNOWN_KIND
	More        = hostv1.ApplyResponse_OUTCOME_MORE
)

// Changed is a prefix whose union over the sets of one kind has changed.
type Changed struct {
	Kind   fleetbanv1.SetKind
	Prefix netip.Prefix
	// Expires is the latest end over these sets; 0: in none of them any more. Before is what it was.
	Expires, Before int64
}

// Change is what an Apply did to the unions. Large says that it is too long to list: look at everything.
type Change struct {
	Changed []Changed
	Large   bool
}

// Empty reports whether the unions are as before.
func (c Change) Empty() bool { return !c.Large && len(c.Changed) == 0 }

// mostChanged is how long a Change may be; beyond, comparing everything costs less.
const mostChanged = 4096

// Holding is the sets of this host. Safe for concurrent use.
type Holding struct {
	log *slog.Logger

	mu    sync.RWMutex
	sets  map[string]*set
	names []string // sorted
	disk  *disk
	// most is maxRecords; full names the set that found no room last.
	most int
	full string
}

type set struct {
	name    string
	kind    fleetbanv1.SetKind
	epoch   uint64
	version uint64
	digest  uint64 // of records, always
	records map[key]record
	present int
	// merged: a partial snapshot went in, so our digest isn't the control plane's.
	merged bool
	// stale: what was read from disk contradicts its own digest. Enforced, but only a snapshot continues it.
	stale   bool
	pending *pending
}

// pending is a snapshot of which pages are still to come.
type pending struct {
	kind                   fleetbanv1.SetKind
	epoch, version, digest uint64
	partial                bool
	next                   uint32
	records                map[key]record
}

// Open loads what is saved in dir, which must exist. An error means that the folder can't be used at all; damaged
// files are repaired, and logged.
func Open(dir string, log *slog.Logger) (*Holding, error) {
	h := &Holding{log: log, sets: make(map[string]*set), most: maxRecords}
	d, err := openDisk(dir, log, h.replay)
	if err != nil {
		return nil, fmt.Errorf("open the saved sets: %w", err)
	}
	h.disk = d
	for _, s := range h.sets {
		s.pending = nil
		if s.stale {
			log.Warn("A saved set contradicts its digest and is fetched anew; what it holds stays enforced", "set", s.name, "version", s.version)
		}
	}
	return h, nil
}

// ErrMalformed is wrapped by errors of Apply…: nothing was changed.
var ErrMalformed = errors.New("malformed update")

func known(kind fleetbanv1.SetKind) bool {
	switch kind {
	case fleetbanv1.SetKind_SET_KIND_BAN, fleetbanv1.SetKind_SET_KIND_ALLOW, fleetbanv1.SetKind_SET_KIND_PROTECT:
		return true
	default:
		return false
	}
}

func checkName(name string) error {
	if name == "" || len(name) > maxName {
		return fmt.Errorf("%w: a set's name of %d bytes, want 1 to %d", ErrMalformed, len(name), maxName)
	}
	return nil
}

// get returns the set, making an empty one that isn't kept yet.
func (h *Holding) get(name string) *set {
	if s := h.sets[name]; s != nil {
		return s
	}
	return &set{name: name, records: make(map[key]record)}
}

func (h *Holding) keep(s *set) {
	if h.sets[s.name] == nil {
		h.sets[s.name] = s
		h.names = append(h.names, s.name)
		slices.Sort(h.names)
	}
}

func (h *Holding) forget(name string) {
	h.names = slices.DeleteFunc(h.names, func(n string) bool { return n == name })
}

// ApplyDelta applies d. A delta that was applied already is Skipped, one that doesn't follow or leads elsewhere than it
// announces is a Gap, and one with a kind of record or set that we don't know is UnknownKind; these change nothing.
func (h *Holding) ApplyDelta(d *fleetbanv1.Delta) (Change, Outcome, error) {
	if err := checkName(d.GetSet()); err != nil {
		return Change{}, 0, err
	}
	if d.GetFromVersion() >= d.GetVersion() {
		return Change{}, 0, fmt.Errorf("%w: a delta from version %d to %d", ErrMalformed, d.GetFromVersion(), d.GetVersion())
	}
	records, ok, err := parse(d.GetRecords(), d.GetVersion())
	if err != nil {
		return Change{}, 0, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if !ok || !known(d.GetKind()) {
		return Change{}, UnknownKind, nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.get(d.GetSet())
	switch {
	case s.stale:
		return Change{}, Gap, nil
	case s.version == 0 && s.epoch == 0 && len(s.records) == 0: // nothing held yet: any epoch is good
		if h.sets[s.name] == nil && len(h.sets) >= maxSets {
			return Change{}, 0, fmt.Errorf("%w: %d sets are held, which is the most", ErrMalformed, maxSets)
		}
		s.kind = d.GetKind()
	case s.epoch != d.GetEpoch() || s.kind != d.GetKind():
		return Change{}, Gap, nil
	}
	if s.version >= d.GetVersion() {
		if s.version == d.GetVersion() && s.digest != d.GetDigest() && !s.merged {
			return Change{}, Gap, nil
		}
		return Change{}, Skipped, nil
	}
	if s.version < d.GetFromVersion() || !h.room(s, s.records, records) {
		return Change{}, Gap, nil
	}
	before := h.views(s.kind, records)
	undo := s.apply(records)
	if s.digest != d.GetDigest() && !s.merged {
		s.revert(undo)
		return Change{}, Gap, nil
	}
	s.pending = nil
	s.epoch, s.version = d.GetEpoch(), d.GetVersion()
	if s.merged && s.digest == d.GetDigest() {
		s.merged = false
	}
	h.keep(s)
	h.fits(s.name)
	h.disk.append(frame{op: opDelta, set: s, records: records})
	return h.changed(s.kind, before), Applied, nil
}

// room reports whether there is room for what records add to one map of a set's. What takes records out always has room.
func (h *Holding) room(to *set, into map[key]record, records []keyed) bool {
	total := len(records)
	for _, s := range h.sets {
		total += len(s.records)
		if s.pending != nil {
			total += len(s.pending.records)
		}
	}
	if total > h.most {
		for _, kr := range records {
			if _, ok := into[kr.key]; ok || kr.kind == expired {
				total--
			}
		}
	}
	if total <= h.most {
		return true
	}
	if h.full != to.name {
		h.log.Error("The control plane sends more records than this host takes; what is held stays in force", "set", to.name, "most", h.most)
	}
	h.full = to.name
	return false
}

// fits notes that all of a set that was sent is held.
func (h *Holding) fits(name string) {
	if h.full == name {
		h.full = ""
	}
}

// Full says that more was sent than is held, and what to do; empty if not.
func (h *Holding) Full() string {
	h.mu.RLock()
	defer h.mu.RUnlock()
	if h.full == "" {
		return ""
	}
	return fmt.Sprintf("the control plane sends more than the %d records that a host takes (set %.128q): what is held stays in force, the rest isn't enforced", h.most, h.full)
}

// undone is a record as it was before; existed is false where there was none.
type undone struct {
	keyed
	existed bool
}

// apply changes the records and the digest, and says how to undo it.
func (s *set) apply(records []keyed) []undone {
	undo := make([]undone, 0, len(records))
	for _, kr := range records {
		old, existed := s.records[kr.key]
		undo = append(undo, undone{keyed{kr.key, old}, existed})
		s.put(kr.key, kr.record)
	}
	return undo
}

func (s *set) revert(undo []undone) {
	for _, u := range slices.Backward(undo) {
		if !u.existed {
			u.kind = expired
		}
		s.put(u.key, u.record)
	}
}

// put sets one record; EXPIRED takes it out.
func (s *set) put(k key, r record) {
	if old, ok := s.records[k]; ok {
		s.digest ^= old.hash(k)
		if old.kind == present {
			s.present--
		}
	}
	if r.kind == expired {
		delete(s.records, k)
		return
	}
	s.digest ^= r.hash(k)
	if r.kind == present {
		s.present++
	}
	s.records[k] = r
}

// ApplyPage takes in one page. The last one makes the set equal to the snapshot at once, if the digest is as
// announced; a partial snapshot is merged and takes nothing out. Pages out of order are a Gap.
func (h *Holding) ApplyPage(p *fleetbanv1.SnapshotPage) (Change, Outcome, error) {
	if err := checkName(p.GetSet()); err != nil {
		return Change{}, 0, err
	}
	records, ok, err := parse(p.GetRecords(), p.GetVersion())
	if err != nil {
		return Change{}, 0, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if !ok || !known(p.GetKind()) {
		return Change{}, UnknownKind, nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.get(p.GetSet())
	if h.sets[s.name] == nil {
		if len(h.sets) >= maxSets {
			return Change{}, 0, fmt.Errorf("%w: %d sets are held, which is the most", ErrMalformed, maxSets)
		}
		s.kind = p.GetKind()
	}
	if p.GetPage() == 0 {
		s.pending = &pending{
			kind: p.GetKind(), epoch: p.GetEpoch(), version: p.GetVersion(), digest: p.GetDigest(), partial: p.GetPartial(),
			records: make(map[key]record, len(records)),
		}
		h.keep(s) // an empty set at version 0, so that the pages have a place
	}
	w := s.pending
	if w == nil || w.next != p.GetPage() || w.kind != p.GetKind() || w.epoch != p.GetEpoch() || w.version != p.GetVersion() ||
		w.digest != p.GetDigest() || w.partial != p.GetPartial() || !h.room(s, w.records, records) {
		s.pending = nil
		return Change{}, Gap, nil
	}
	for _, kr := range records {
		if kr.kind == expired {
			delete(w.records, kr.key)
			continue
		}
		w.records[kr.key] = kr.record
	}
	w.next++
	if !p.GetLast() {
		return Change{}, More, nil
	}
	s.pending = nil
	return h.finish(s, w)
}

// finish puts a whole snapshot in force.
func (h *Holding) finish(s *set, w *pending) (Change, Outcome, error) {
	next := &set{
		name: s.name, kind: w.kind, epoch: w.epoch, version: w.version,
		records: w.records,
	}
	for k, r := range w.records {
		next.digest ^= r.hash(k)
		if r.kind == present {
			next.present++
		}
	}
	if next.digest != w.digest && !w.partial {
		return Change{}, Gap, nil
	}
	for k, old := range s.records {
		if _, ok := next.records[k]; ok {
			continue
		}
		// What a snapshot doesn't name: a partial one leaves it standing. Tombstones stay in any case, until they end:
		// the control plane may need them back one day, and they do nothing here.
		if w.partial || old.kind == retracted {
			next.put(k, old)
		}
	}
	next.merged = w.partial && next.digest != w.digest

	d := h.difference(s, next)
	d.large = d.large || s.kind != next.kind
	h.disk.append(frame{op: opImage, set: next})
	*s = *next
	h.fits(s.name)
	return h.resolve(d), Applied, nil
}

// Sync takes over the epoch for a set that is at the cursor.
func (h *Holding) Sync(m *fleetbanv1.SetSync) (Outcome, error) {
	c := m.GetCursor()
	if err := checkName(c.GetSet()); err != nil {
		return 0, err
	}
	if !known(m.GetKind()) {
		return UnknownKind, nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.get(c.GetSet())
	if h.sets[s.name] == nil {
		if len(h.sets) >= maxSets {
			return 0, fmt.Errorf("%w: %d sets are held, which is the most", ErrMalformed, maxSets)
		}
		s.kind = m.GetKind()
	}
	if s.stale || s.kind != m.GetKind() || s.version != c.GetVersion() || s.digest != c.GetDigest() {
		return Gap, nil
	}
	if h.sets[s.name] != nil && s.epoch == c.GetEpoch() && !s.merged {
		return Skipped, nil
	}
	s.epoch, s.merged, s.pending = c.GetEpoch(), false, nil
	h.keep(s)
	h.disk.append(frame{op: opCursor, set: s})
	return Applied, nil
}

// Cursors is what is held of each set, sorted by name. A set of which nothing is held yet is left out, and so is one
// that needs a snapshot.
func (h *Holding) Cursors() []*fleetbanv1.SetCursor {
	h.mu.RLock()
	defer h.mu.RUnlock()
	var out []*fleetbanv1.SetCursor
	for _, name := range h.names {
		if s := h.sets[name]; !s.stale && s.epoch != 0 {
			out = append(out, s.cursor())
		}
	}
	return out
}

// Cursor is what is held of one set; all zero but the name if nothing is.
func (h *Holding) Cursor(name string) *fleetbanv1.SetCursor {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.get(name).cursor()
}

func (s *set) cursor() *fleetbanv1.SetCursor {
	return fleetbanv1.SetCursor_builder{Set: s.name, Epoch: s.epoch, Version: s.version, Digest: s.digest}.Build()
}

// KeepOnly drops the sets that are not named. An empty list drops nothing: a control plane that lost everything must
// not make its hosts lose it too.
func (h *Holding) KeepOnly(names []string) Change {
	if len(names) == 0 {
		return Change{}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	var change Change
	for _, name := range slices.Clone(h.names) {
		if slices.Contains(names, name) {
			continue
		}
		s := h.sets[name]
		delete(h.sets, name)
		h.forget(name)
		h.fits(name)
		h.disk.append(frame{op: opDrop, set: s})
		if s.present > 0 {
			change.Large = true
		}
	}
	return change
}

// Prune forgets tombstones that have ended.
func (h *Holding) Prune(nowUnixMS int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.sets {
		if len(s.records) == s.present {
			continue
		}
		for k, r := range s.records {
			if r.kind == retracted && r.expires <= nowUnixMS {
				delete(s.records, k)
			}
		}
	}
}

// Maintain syncs what was written, tries again what couldn't be, and compacts the file when it has grown. To be called
// about once a second.
func (h *Holding) Maintain() {
	h.disk.maintain(h)
}

// Problem says why what is held isn't saved; empty if it is.
func (h *Holding) Problem() string { return h.disk.problemText() }

// Close saves.
func (h *Holding) Close() error {
	h.Maintain()
	err := h.disk.close()
	if p := h.Problem(); p != "" && err == nil {
		err = errors.New(p)
	}
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}
