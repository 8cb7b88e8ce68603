package holding

import (
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"pgregory.net/rapid"

	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/banset"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

// state is the whole of one set as the control plane has it.
type state map[netip.Prefix]modelRecord

type modelRecord struct {
	kind           fleetbanv1.RecordKind
	since, expires int64
}

func (s state) digest() uint64 {
	var d uint64
	for p, r := range s {
		if r.kind == fleetbanv1.RecordKind_RECORD_KIND_PRESENT {
			d ^= banset.Hash(prefix.Pack(p), r.expires)
		}
	}
	return d
}

// source is a control plane's set with all its past.
type source struct {
	name  string
	epoch uint64
	past  []state // by version
	log   []map[netip.Prefix]modelRecord
}

func newSource(name string) *source {
	return &source{name: name, epoch: 1, past: []state{{}}, log: []map[netip.Prefix]modelRecord{nil}}
}

func (s *source) version() int { return len(s.past) - 1 }

func (s *source) mutate(change map[netip.Prefix]modelRecord) {
	next := maps.Clone(s.past[s.version()])
	for p, r := range change {
		if r.kind == fleetbanv1.RecordKind_RECORD_KIND_EXPIRED {
			delete(next, p)
		} else {
			next[p] = r
		}
	}
	s.past = append(s.past, next)
	s.log = append(s.log, change)
}

func wireRecord(p netip.Prefix, r modelRecord) *fleetbanv1.Record {
	return fleetbanv1.Record_builder{Prefix: prefix.Pack(p), Kind: r.kind, SinceUnixMs: r.since, ExpiresUnixMs: r.expires, Mac: []byte("mac")}.Build()
}

func (s *source) delta(from, to int) *fleetbanv1.Delta {
	merged := make(map[netip.Prefix]modelRecord)
	for v := from + 1; v <= to; v++ {
		maps.Copy(merged, s.log[v])
	}
	d := fleetbanv1.Delta_builder{
		Set: s.name, Kind: fleetbanv1.SetKind_SET_KIND_BAN, Epoch: s.epoch, FromVersion: uint64(from), Version: uint64(to), Digest: s.past[to].digest(),
	}
	for _, p := range slices.SortedFunc(maps.Keys(merged), netip.Prefix.Compare) {
		d.Records = append(d.Records, wireRecord(p, merged[p]))
	}
	return d.Build()
}

func (s *source) pages(version, size int, partial bool, only state) []*fleetbanv1.SnapshotPage {
	var out []*fleetbanv1.SnapshotPage
	page := func() fleetbanv1.SnapshotPage_builder {
		return fleetbanv1.SnapshotPage_builder{
			Set: s.name, Kind: fleetbanv1.SetKind_SET_KIND_BAN, Epoch: s.epoch, Version: uint64(version), Digest: only.digest(),
			Page: uint32(len(out)), Partial: partial,
		}
	}
	b := page()
	for _, p := range slices.SortedFunc(maps.Keys(only), netip.Prefix.Compare) {
		if len(b.Records) == size {
			out = append(out, b.Build())
			b = page()
		}
		b.Records = append(b.Records, wireRecord(p, only[p]))
	}
	b.Last = true
	return append(out, b.Build())
}

// held is the holding's own idea of one set.
func (h *Holding) held(name string) state {
	out := make(state)
	if s := h.sets[name]; s != nil {
		for k, r := range s.records {
			out[k.prefix()] = modelRecord{fleetbanv1.RecordKind(r.kind), r.since, r.expires}
		}
	}
	return out
}

func presentOf(s state) state {
	out := make(state)
	for p, r := range s {
		if r.kind == fleetbanv1.RecordKind_RECORD_KIND_PRESENT {
			out[p] = r
		}
	}
	return out
}

type machine struct {
	dir     string
	h       *Holding
	sources []*source
	union   map[netip.Prefix]int64 // kept by what Change says only
	merged  map[string]bool
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func (m *machine) open(t *rapid.T) {
	h, err := Open(m.dir, quiet())
	if err != nil {
		t.Fatal(err)
	}
	m.h = h
}

func (m *machine) take(t *rapid.T, c Change) {
	if c.Large {
		m.union = m.all()
	}
	for _, ch := range c.Changed {
		if ch.Expires == 0 {
			delete(m.union, ch.Prefix)
		} else {
			m.union[ch.Prefix] = ch.Expires
		}
	}
	if want := m.all(); !maps.Equal(m.union, want) {
		t.Fatalf("after %+v the union is %v, want %v", c, m.union, want)
	}
}

func (m *machine) all() map[netip.Prefix]int64 {
	out := make(map[netip.Prefix]int64)
	m.h.Each(fleetbanv1.SetKind_SET_KIND_BAN, func(p netip.Prefix, expires int64) bool {
		if _, twice := out[p]; twice {
			panic("told twice: " + p.String())
		}
		out[p] = expires
		return true
	})
	return out
}

// check compares what is held with what the control plane had at that version.
func (m *machine) check(t *rapid.T) {
	want := make(map[netip.Prefix]int64)
	for _, s := range m.sources {
		got := m.h.held(s.name)
		c := m.h.Cursor(s.name)
		if d := presentOf(got).digest(); d != c.GetDigest() {
			t.Fatalf("%s: the cursor's digest is %x, the records' %x", s.name, c.GetDigest(), d)
		}
		for p, r := range presentOf(got) {
			want[p] = max(want[p], r.expires)
		}
		if m.merged[s.name] {
			continue
		}
		if int(c.GetVersion()) > s.version() {
			t.Fatalf("%s: at version %d of %d", s.name, c.GetVersion(), s.version())
		}
		if then := s.past[c.GetVersion()]; !maps.Equal(presentOf(got), presentOf(then)) {
			t.Fatalf("%s at %d holds %v, want %v", s.name, c.GetVersion(), got, then)
		}
	}
	if got := m.all(); !maps.Equal(got, want) {
		t.Fatalf("union %v, want %v", got, want)
	}
}

// TestModel drives two sets through everything that a network, a control plane and a crash can do.
func TestModel(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	runs := 0
	rapid.Check(t, func(t *rapid.T) {
		runs++
		m := &machine{dir: filepath.Join(base, fmt.Sprint(runs)), union: map[netip.Prefix]int64{}, merged: map[string]bool{}}
		if err := os.Mkdir(m.dir, 0o700); err != nil {
			t.Fatal(err)
		}
		m.sources = []*source{newSource("all"), newSource("tag:a=b")}
		m.open(t)
		defer func() { _ = m.h.Close() }()

		prefixes := rapid.SampledFrom([]netip.Prefix{
			netip.MustParsePrefix("203.0.113.1/32"), netip.MustParsePrefix("203.0.113.2/32"), netip.MustParsePrefix("203.0.113.0/24"),
			netip.MustParsePrefix("2001:db8::/64"), netip.MustParsePrefix("2001:db8::1/128"),
		})
		kinds := rapid.SampledFrom([]fleetbanv1.RecordKind{
			fleetbanv1.RecordKind_RECORD_KIND_PRESENT, fleetbanv1.RecordKind_RECORD_KIND_PRESENT,
			fleetbanv1.RecordKind_RECORD_KIND_RETRACTED, fleetbanv1.RecordKind_RECORD_KIND_EXPIRED,
		})
		pick := func(t *rapid.T) *source { return m.sources[rapid.IntRange(0, 1).Draw(t, "set")] }
		apply := func(t *rapid.T, s *source, d *fleetbanv1.Delta) Outcome {
			before := m.h.Cursor(s.name)
			c, outcome, err := m.h.ApplyDelta(d)
			if err != nil {
				t.Fatal(err)
			}
			if outcome != Applied && (!c.Empty() || m.h.Cursor(s.name).GetVersion() != before.GetVersion()) {
				t.Fatalf("%v changed something", outcome)
			}
			m.take(t, c)
			return outcome
		}
		snapshot := func(t *rapid.T, s *source, version int) {
			for _, p := range s.pages(version, rapid.IntRange(1, 3).Draw(t, "size"), false, s.past[version]) {
				c, outcome, err := m.h.ApplyPage(p)
				if err != nil || (outcome != Applied) == p.GetLast() {
					t.Fatal(outcome, err)
				}
				m.take(t, c)
			}
			m.merged[s.name] = false
		}
		t.Repeat(map[string]func(*rapid.T){
			"mutate": func(t *rapid.T) {
				change := make(map[netip.Prefix]modelRecord)
				for range rapid.IntRange(1, 3).Draw(t, "n") {
					change[prefixes.Draw(t, "prefix")] = modelRecord{kinds.Draw(t, "kind"), rapid.Int64Range(1, 50).Draw(t, "since"), rapid.Int64Range(51, 99).Draw(t, "expires")}
				}
				pick(t).mutate(change)
			},
			"follow": func(t *rapid.T) {
				s := pick(t)
				at := int(m.h.Cursor(s.name).GetVersion())
				if at >= s.version() {
					return
				}
				to := rapid.IntRange(at+1, s.version()).Draw(t, "to")
				outcome := apply(t, s, s.delta(rapid.IntRange(0, at).Draw(t, "from"), to))
				c := m.h.Cursor(s.name)
				if c.GetEpoch() == s.epoch && outcome != Applied && !m.merged[s.name] {
					t.Fatalf("a delta that follows is %v", outcome)
				}
			},
			"duplicate": func(t *rapid.T) {
				s := pick(t)
				at := int(m.h.Cursor(s.name).GetVersion())
				if at == 0 || at > s.version() {
					return
				}
				to := rapid.IntRange(1, at).Draw(t, "to")
				if outcome := apply(t, s, s.delta(to-1, to)); outcome == Applied {
					t.Fatal("a duplicate was applied")
				}
			},
			"gap": func(t *rapid.T) {
				s := pick(t)
				at := int(m.h.Cursor(s.name).GetVersion())
				if at+2 > s.version() {
					return
				}
				if outcome := apply(t, s, s.delta(at+1, at+2)); outcome != Gap {
					t.Fatalf("a delta beyond a gap is %v", outcome)
				}
			},
			"wrong digest": func(t *rapid.T) {
				s := pick(t)
				at := int(m.h.Cursor(s.name).GetVersion())
				if at >= s.version() || m.merged[s.name] {
					return
				}
				d := s.delta(at, at+1)
				d.SetDigest(d.GetDigest() ^ 1)
				if outcome := apply(t, s, d); outcome != Gap {
					t.Fatalf("a delta with another digest is %v", outcome)
				}
			},
			"snapshot": func(t *rapid.T) {
				s := pick(t)
				snapshot(t, s, rapid.IntRange(0, s.version()).Draw(t, "version"))
			},
			"broken snapshot": func(t *rapid.T) {
				s := pick(t)
				pages := s.pages(s.version(), 1, false, s.past[s.version()])
				if len(pages) < 2 {
					return
				}
				skip := rapid.IntRange(0, len(pages)-2).Draw(t, "skip")
				for i, p := range pages {
					if i == skip {
						continue
					}
					c, outcome, err := m.h.ApplyPage(p)
					if err != nil || outcome == Applied || !c.Empty() {
						t.Fatalf("page %d of a snapshot without %d: %v %v", i, skip, outcome, err)
					}
				}
			},
			"partial snapshot": func(t *rapid.T) {
				s := pick(t)
				before := presentOf(m.h.held(s.name))
				part := make(state)
				whole := s.past[s.version()]
				for _, p := range slices.SortedFunc(maps.Keys(whole), netip.Prefix.Compare) {
					if rapid.Bool().Draw(t, "known") {
						part[p] = whole[p]
					}
				}
				for _, p := range s.pages(s.version(), 2, true, part) {
					c, _, err := m.h.ApplyPage(p)
					if err != nil {
						t.Fatal(err)
					}
					m.take(t, c)
				}
				m.merged[s.name] = true
				after := m.h.held(s.name)
				for p := range before {
					if _, there := after[p]; !there {
						t.Fatalf("a partial snapshot removed %s", p)
					}
				}
			},
			"new epoch": func(t *rapid.T) {
				s := pick(t)
				s.epoch++
				at := m.h.Cursor(s.name)
				if int(at.GetVersion()) != s.version() || m.merged[s.name] {
					return
				}
				sync := fleetbanv1.SetSync_builder{Kind: fleetbanv1.SetKind_SET_KIND_BAN, Cursor: fleetbanv1.SetCursor_builder{
					Set: s.name, Epoch: s.epoch, Version: at.GetVersion(), Digest: at.GetDigest(),
				}.Build()}.Build()
				if outcome, err := m.h.Sync(sync); err != nil || outcome != Applied || m.h.Cursor(s.name).GetEpoch() != s.epoch {
					t.Fatal(outcome, err)
				}
				sync.GetCursor().SetDigest(at.GetDigest() ^ 1)
				if outcome, _ := m.h.Sync(sync); outcome != Gap {
					t.Fatal("synced with another digest")
				}
			},
			"reopen": func(t *rapid.T) {
				before := [2]state{m.h.held("all"), m.h.held("tag:a=b")}
				cursors := fmt.Sprint(m.h.Cursors())
				if rapid.Bool().Draw(t, "compact") {
					if err := m.h.disk.compact(m.h); err != nil {
						t.Fatal(err)
					}
				}
				if rapid.Bool().Draw(t, "close") {
					_ = m.h.Close()
				} else { // killed
					_ = m.h.disk.file.Close()
					_ = m.h.disk.unlock()
				}
				m.open(t)
				if !maps.Equal(before[0], m.h.held("all")) || !maps.Equal(before[1], m.h.held("tag:a=b")) || cursors != fmt.Sprint(m.h.Cursors()) {
					t.Fatal("reopened with something else")
				}
			},
			"torn tail": func(t *rapid.T) {
				_ = m.h.Close()
				name := filepath.Join(m.dir, fileName)
				info, err := os.Stat(name)
				if err != nil {
					t.Fatal(err)
				}
				cut := rapid.Int64Range(0, min(200, info.Size())).Draw(t, "cut")
				if err := os.Truncate(name, info.Size()-cut); err != nil {
					t.Fatal(err)
				}
				m.open(t)
				m.union = m.all()
				for _, s := range m.sources {
					kept := m.h.get(s.name)
					if kept.stale {
						t.Fatal("a torn tail made a contradiction")
					}
					// How far back it went isn't known for what was merged: begin from a snapshot, as a control plane would.
					if kept.merged || m.merged[s.name] || !maps.Equal(presentOf(m.h.held(s.name)), presentOf(s.past[m.h.Cursor(s.name).GetVersion()])) {
						snapshot(t, s, s.version())
					}
				}
			},
			"": m.check,
		})
	})
}

// TestHeldOffersTombstones is what a rebuild after a loss relies on.
func TestHeldOffersTombstones(t *testing.T) {
	t.Parallel()
	h, err := Open(t.TempDir(), quiet())
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close() //nolint:errcheck // a test's end
	s := newSource("all")
	a, b, c := netip.MustParsePrefix("203.0.113.1/32"), netip.MustParsePrefix("203.0.113.2/32"), netip.MustParsePrefix("203.0.113.3/32")
	one := func(p netip.Prefix, kind fleetbanv1.RecordKind) map[netip.Prefix]modelRecord {
		return map[netip.Prefix]modelRecord{p: {kind, 1, 1000}}
	}
	s.mutate(one(a, fleetbanv1.RecordKind_RECORD_KIND_PRESENT))
	s.mutate(one(b, fleetbanv1.RecordKind_RECORD_KIND_PRESENT))
	s.mutate(one(b, fleetbanv1.RecordKind_RECORD_KIND_RETRACTED))
	s.mutate(one(c, fleetbanv1.RecordKind_RECORD_KIND_PRESENT))
	for v := 1; v <= s.version(); v++ {
		if _, outcome, err := h.ApplyDelta(s.delta(v-1, v)); outcome != Applied || err != nil {
			t.Fatal(outcome, err)
		}
	}
	offered := func() (got []string) {
		if err := h.Held("all", 1, func(page []*fleetbanv1.Record) error {
			for _, r := range page {
				p, _ := prefix.Unpack(r.GetPrefix())
				got = append(got, fmt.Sprintf("%s %s %s", p, r.GetKind(), r.GetMac()))
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		slices.Sort(got)
		return got
	}
	want := []string{"203.0.113.2/32 RECORD_KIND_RETRACTED mac", "203.0.113.3/32 RECORD_KIND_PRESENT mac"}
	if got := offered(); !slices.Equal(got, want) {
		t.Errorf("offered %q, want %q", got, want)
	}
	h.Prune(1000)
	if got := offered(); !slices.Equal(got, want[1:]) {
		t.Errorf("after their end, offered %q", got)
	}
}

func TestUnknownKindsApplyNothing(t *testing.T) {
	t.Parallel()
	h, err := Open(t.TempDir(), quiet())
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close() //nolint:errcheck // a test's end
	s := newSource("all")
	s.mutate(map[netip.Prefix]modelRecord{
		netip.MustParsePrefix("203.0.113.1/32"): {fleetbanv1.RecordKind_RECORD_KIND_PRESENT, 1, 9},
		netip.MustParsePrefix("203.0.113.2/32"): {fleetbanv1.RecordKind(77), 1, 9},
	})
	if _, outcome, err := h.ApplyDelta(s.delta(0, 1)); outcome != UnknownKind || err != nil {
		t.Errorf("a record of kind 77: %v, %v", outcome, err)
	}
	d := s.delta(0, 1)
	d.SetKind(9)
	if _, outcome, err := h.ApplyDelta(d); outcome != UnknownKind || err != nil {
		t.Errorf("a set of kind 9: %v, %v", outcome, err)
	}
	d = s.delta(0, 1)
	d.GetRecords()[0].SetPrefix([]byte{1, 2, 3})
	d.GetRecords()[0].SetKind(1)
	d.GetRecords()[1].SetKind(1)
	if _, _, err := h.ApplyDelta(d); err == nil {
		t.Error("a malformed prefix was taken")
	}
	if len(h.Cursors()) != 0 || h.Count(fleetbanv1.SetKind_SET_KIND_BAN) != 0 {
		t.Error("something was applied")
	}
	if c := h.KeepOnly(nil); !c.Empty() {
		t.Error("an empty list drops something")
	}
}
