package host

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/fleetban/fleetban/agent/stream"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/banset"
)

// kernel is a host's sets, as the agent's helper keeps them.
type kernel struct {
	world *World
	host  *Host

	mu       sync.Mutex
	sets     map[string]*set
	executed map[string]bool
	sabotage Sabotage
	// since is when the stream began, Unix nanoseconds: what was made before is caught up on.
	since int64
}

// set is one set.
type set struct {
	name                   string
	kind                   fleetbanv1.SetKind
	epoch, version, digest uint64
	present                uint64 // how many records are in force
	held                   held
	merged                 bool
	pending                *pages
}

// pages is a snapshot that isn't whole yet.
type pages struct {
	first *fleetbanv1.SnapshotPage
	next  uint32
	held  map[uint32]*Record // by slot
}

func newKernel(w *World, h *Host) *kernel {
	return &kernel{world: w, host: h, sets: map[string]*set{}, executed: map[string]bool{}}
}

var _ stream.Sink = (*kernel)(nil)

// Cursors implements stream.Sink.
func (k *kernel) Cursors(context.Context) ([]*fleetbanv1.SetCursor, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.cursors(), nil
}

func (k *kernel) cursors() (out []*fleetbanv1.SetCursor) {
	for _, s := range k.sets {
		if s.epoch != 0 {
			out = append(out, s.cursor())
		}
	}
	return out
}

func (s *set) cursor() *fleetbanv1.SetCursor {
	return fleetbanv1.SetCursor_builder{Set: s.name, Epoch: s.epoch, Version: s.version, Digest: s.digest}.Build()
}

// Begin implements stream.Sink.
func (k *kernel) Begin(_ context.Context, w *fleetbanv1.Welcome, _ int64, _ []netip.Addr) error {
	k.world.Connects.Add(1)
	k.mu.Lock()
	defer k.mu.Unlock()
	named := map[string]bool{}
	for _, s := range w.GetSets() {
		named[s.GetSet()] = true
	}
	for name := range k.sets {
		if len(named) > 0 && !named[name] {
			delete(k.sets, name)
		}
	}
	k.since = time.Now().UnixNano()
	return nil
}

// Apply implements stream.Sink.
func (k *kernel) Apply(ctx context.Context, u stream.Update, _ int64) (stream.Applied, error) {
	k.host.delay(ctx)
	k.mu.Lock()
	defer k.mu.Unlock()
	var outcome stream.Outcome
	var s *set
	switch {
	case u.Delta != nil:
		k.world.Deltas.Add(1)
		s = k.get(u.Delta.GetSet(), u.Delta.GetKind())
		outcome = k.delta(s, u.Delta)
	case u.Page != nil:
		k.world.Pages.Add(1)
		s = k.get(u.Page.GetSet(), u.Page.GetKind())
		outcome = k.page(s, u.Page)
	default:
		k.world.Syncs.Add(1)
		c := u.Sync.GetCursor()
		s = k.get(c.GetSet(), u.Sync.GetKind())
		outcome = stream.Gap
		if s.version == c.GetVersion() && s.digest == c.GetDigest() {
			s.epoch, s.merged, s.pending = c.GetEpoch(), false, nil
			outcome = stream.Done
		}
	}
	if outcome == stream.Gap {
		k.world.Gaps.Add(1)
	}
	if outcome == stream.Done {
		k.host.changed()
	}
	return stream.Applied{Outcome: outcome, Cursor: s.cursor()}, nil
}

func (k *kernel) get(name string, kind fleetbanv1.SetKind) *set {
	s := k.sets[name]
	if s == nil {
		s = &set{name: name, kind: kind}
		k.sets[name] = s
	}
	return s
}

func (k *kernel) delta(s *set, d *fleetbanv1.Delta) stream.Outcome {
	switch {
	case s.epoch == 0 && s.version == 0: // nothing is held yet: any epoch is good
	case s.epoch != d.GetEpoch():
		return stream.Gap
	}
	if s.version >= d.GetVersion() {
		return stream.Done
	}
	if s.version < d.GetFromVersion() {
		return stream.Gap
	}
	if k.sabotage == DropDelta && s.name == "all" && len(d.GetRecords()) > 0 && d.GetRecords()[0].GetKind() == Present {
		// Says that it did, and didn't.
		k.sabotage = None
		s.epoch, s.version, s.digest = d.GetEpoch(), d.GetVersion(), d.GetDigest()
		return stream.Done
	}
	// What can't be read must change nothing.
	c := k.world.change(d, d.GetVersion(), d.GetRecords())
	if c.outcome != 0 {
		return c.outcome
	}
	digest := k.digest(s, c)
	if digest != d.GetDigest() && !s.merged {
		return stream.Gap
	}
	k.put(s, c.records, d.GetVersion())
	s.pending = nil
	s.epoch, s.version, s.digest = d.GetEpoch(), d.GetVersion(), digest
	s.merged = s.merged && s.digest != d.GetDigest()
	return stream.Done
}

// digest is what the set's digest comes to by a change, of what this host holds.
func (k *kernel) digest(s *set, c *change) uint64 {
	digest := s.digest
	if c.once {
		for _, r := range c.records {
			if old := s.held.at(r.slot); old != 0 {
				digest ^= k.world.records.get(old).hash
			}
			digest ^= r.hash
		}
		return digest
	}
	by := make(map[uint32]uint64, len(c.records)) // slot → the part of what is held by then
	for _, r := range c.records {
		was, ok := by[r.slot]
		if old := s.held.at(r.slot); !ok && old != 0 {
			was = k.world.records.get(old).hash
		}
		digest ^= was ^ r.hash
		by[r.slot] = r.hash
	}
	return digest
}

// put holds records. The digest is the caller's.
func (k *kernel) put(s *set, records []*Record, version uint64) {
	at := k.world.arriving(k.host)
	defer at.close()
	for _, r := range records {
		was := false
		if old := s.held.at(r.slot); old != 0 {
			was = k.world.records.get(old).Present()
		}
		if k.sabotage == KeepRetracted && was && r.Kind == fleetbanv1.RecordKind_RECORD_KIND_RETRACTED {
			k.sabotage = None
			continue
		}
		id := r.id
		if r.Kind == fleetbanv1.RecordKind_RECORD_KIND_EXPIRED {
			id = 0
		}
		s.held.put(r.slot, id, version)
		if was {
			s.present--
		}
		if r.Present() {
			s.present++
		}
		at.applied++
		if r.Present() && !was && s.name == banset.All {
			at.arrived(r.window, k.since)
		}
	}
}

func (k *kernel) page(s *set, p *fleetbanv1.SnapshotPage) stream.Outcome {
	if p.GetPage() == 0 {
		s.pending = &pages{first: p, held: map[uint32]*Record{}}
	}
	w := s.pending
	if w == nil || w.next != p.GetPage() || w.first.GetEpoch() != p.GetEpoch() || w.first.GetVersion() != p.GetVersion() ||
		w.first.GetDigest() != p.GetDigest() || w.first.GetPartial() != p.GetPartial() {
		s.pending = nil
		return stream.Gap
	}
	c := k.world.change(p, p.GetVersion()+uint64(p.GetPage()), p.GetRecords())
	if c.outcome != 0 {
		s.pending = nil
		return c.outcome
	}
	for _, r := range c.records {
		if r.Kind != fleetbanv1.RecordKind_RECORD_KIND_EXPIRED {
			w.held[r.slot] = r
		}
	}
	w.next++
	if !p.GetLast() {
		return stream.More
	}
	s.pending = nil
	k.world.Snapshots.Add(1)
	var digest uint64
	for _, r := range w.held {
		digest ^= r.hash
	}
	if digest != p.GetDigest() && !p.GetPartial() {
		return stream.Gap
	}
	for slot, e := range s.held.all {
		if w.held[slot] != nil {
			continue
		}
		// What a whole snapshot doesn't name goes, but for tombstones: the control plane may need them back one day.
		if r := k.world.records.get(e.id); !p.GetPartial() && r.Present() {
			s.held.put(slot, 0, p.GetVersion())
			s.present--
		} else if p.GetPartial() {
			digest ^= r.hash
		}
	}
	k.put(s, slices.Collect(maps.Values(w.held)), p.GetVersion())
	s.epoch, s.version, s.digest = p.GetEpoch(), p.GetVersion(), digest
	s.merged = p.GetPartial() && digest != p.GetDigest()
	return stream.Done
}

// Settings implements stream.Sink.
func (*kernel) Settings(context.Context, *fleetbanv1.Settings, int64) error { return nil }

// Exceptions implements stream.Sink: this host enforces all that it holds.
func (*kernel) Exceptions(context.Context) (stream.Exceptions, error) {
	return stream.Exceptions{}, nil
}

// Held implements stream.Sink.
func (k *kernel) Held(_ context.Context, name string, above uint64, page func([]*fleetbanv1.Record) error) error {
	k.mu.Lock()
	var out []*fleetbanv1.Record
	if s := k.sets[name]; s != nil {
		for _, e := range s.held.all {
			if e.version() > above {
				out = append(out, message(k.world.records.get(e.id)))
			}
		}
	}
	k.mu.Unlock()
	for len(out) > 0 {
		n := min(1000, len(out))
		if err := page(out[:n]); err != nil {
			return err
		}
		out = out[n:]
	}
	return nil
}

// Execute implements stream.Sink: fail2ban unbans what it is told to, once however often it is told.
func (k *kernel) Execute(_ context.Context, c *fleetbanv1.Command, _ int64) *fleetbanv1.CommandResult {
	k.mu.Lock()
	again := k.executed[c.GetCommandId()]
	k.executed[c.GetCommandId()] = true
	k.mu.Unlock()
	if !again {
		k.world.Executed.Add(1)
		k.host.unbanned(c.GetUnbanInJails().GetPrefixes(), c.GetCommandId())
	}
	return fleetbanv1.CommandResult_builder{CommandId: c.GetCommandId(), Outcome: fleetbanv1.CommandOutcome_COMMAND_OUTCOME_DONE}.Build()
}

// wipe forgets everything, as a machine does that is installed anew with its identity kept.
func (k *kernel) wipe() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.sets = map[string]*set{}
}
