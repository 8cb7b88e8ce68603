package holding

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// crowd is n bans in one snapshot.
func crowd(n int) *source {
	s := newSource("all")
	big := make(state, n)
	for i := range n {
		var a [4]byte
		binary.BigEndian.PutUint32(a[:], 0xc6000000+uint32(i))
		big[netip.PrefixFrom(netip.AddrFrom4(a), 32)] = modelRecord{fleetbanv1.RecordKind_RECORD_KIND_PRESENT, 1, 1_900_000_000_000}
	}
	s.past = append(s.past, big)
	s.log = append(s.log, nil)
	return s
}

func (s *source) feed(t testing.TB, h *Holding) {
	t.Helper()
	for _, p := range s.pages(s.version(), 1000, false, s.past[s.version()]) {
		if _, _, err := h.ApplyPage(p); err != nil {
			t.Fatal(err)
		}
	}
	if h.Cursor(s.name).GetVersion() != uint64(s.version()) {
		t.Fatal("the snapshot isn't in force")
	}
}

func mustOpen(t testing.TB, dir string) *Holding {
	t.Helper()
	h, err := Open(dir, quiet())
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// TestFullDisk: nothing is lost while the disk is full, somebody is told, and it is saved once there is room.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=512k,mode=700"); err != nil {
		t.Fatalf("this test mounts a small file system, as root: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 450<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	h := mustOpen(t, dir)
	s := crowd(3000) // some 105 KB: too much beside the ballast
	s.feed(t, h)
	h.Maintain()
	if p := h.Problem(); !strings.Contains(p, "full") {
		t.Fatalf("problem: %q", p)
	}
	if h.Count(fleetbanv1.SetKind_SET_KIND_BAN) != 3000 {
		t.Error("memory lost something")
	}
	s.mutate(map[netip.Prefix]modelRecord{netip.MustParsePrefix("2001:db8::/64"): {fleetbanv1.RecordKind_RECORD_KIND_PRESENT, 1, 9}})
	if _, outcome, err := h.ApplyDelta(s.delta(1, 2)); outcome != Applied || err != nil {
		t.Fatal(outcome, err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	h.Maintain()
	if p := h.Problem(); p != "" {
		t.Fatalf("problem with room again: %q", p)
	}
	_ = h.disk.file.Close() // killed
	_ = h.disk.unlock()
	h = mustOpen(t, dir)
	if n := h.Count(fleetbanv1.SetKind_SET_KIND_BAN); n != 3001 || h.Cursor("all").GetVersion() != 2 {
		t.Errorf("reopened with %d records at %d", n, h.Cursor("all").GetVersion())
	}
	_ = h.Close()
}

// TestDamage: what can be read is enforced, and what contradicts itself is fetched anew.
func TestDamage(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	name := filepath.Join(dir, fileName)
	h := mustOpen(t, dir)
	s := crowd(100)
	s.feed(t, h)
	before, _ := os.ReadFile(name)
	if err := s.follow(h); err != nil {
		t.Fatal(err)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(name)
	if err != nil || len(whole) <= len(before) {
		t.Fatal(err)
	}

	flipped := append([]byte(nil), whole...)
	flipped[len(before)+frameHead+10] ^= 0xff
	if err := os.WriteFile(name, flipped, 0o600); err != nil {
		t.Fatal(err)
	}
	h = mustOpen(t, dir)
	if c := h.Cursor("all"); c.GetVersion() != 1 || h.Count(fleetbanv1.SetKind_SET_KIND_BAN) != 100 {
		t.Errorf("with a flipped bit in the last frame: %v", c)
	}
	_ = h.Close()

	if err := os.WriteFile(name, []byte("something else altogether"), 0o600); err != nil {
		t.Fatal(err)
	}
	h = mustOpen(t, dir)
	if len(h.Cursors()) != 0 {
		t.Error("read something out of nothing")
	}
	if _, err := os.Stat(name + ".unreadable"); err != nil {
		t.Error("a foreign file was not put aside")
	}
	if _, err := Open(dir, quiet()); err == nil {
		t.Error("two holdings in one folder")
	}
	_ = h.Close()
	if _, err := Open(filepath.Join(dir, "absent"), quiet()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an absent folder: %v", err)
	}
}

// follow makes one more version and applies it.
func (s *source) follow(h *Holding) error {
	s.mutate(map[netip.Prefix]modelRecord{netip.MustParsePrefix("2001:db8::/64"): {fleetbanv1.RecordKind_RECORD_KIND_PRESENT, 1, int64(s.version()) + 100}})
	_, outcome, err := h.ApplyDelta(s.delta(s.version()-1, s.version()))
	if outcome != Applied && err == nil {
		err = errors.New(outcome.String())
	}
	return err
}

// TestCompaction: the file doesn't grow with the number of changes.
func TestCompaction(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	h := mustOpen(t, dir)
	s := newSource("all")
	for range 20_000 {
		s.past = s.past[max(0, len(s.past)-2):] // the model's past isn't needed
		if len(s.past) == 2 {
			s.past, s.log = s.past[1:], [](map[netip.Prefix]modelRecord){nil}
		}
		s.mutate(map[netip.Prefix]modelRecord{netip.MustParsePrefix("2001:db8::/64"): {fleetbanv1.RecordKind_RECORD_KIND_PRESENT, 1, int64(h.Cursor("all").GetVersion()) + 100}})
		d := s.delta(0, 1)
		v := h.Cursor("all").GetVersion()
		d.SetFromVersion(v)
		d.SetVersion(v + 1)
		if _, outcome, err := h.ApplyDelta(d); outcome != Applied || err != nil {
			t.Fatal(outcome, err)
		}
	}
	h.Maintain()
	if h.disk.size > 1000 {
		t.Errorf("after compaction the file has %d bytes", h.disk.size)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	h = mustOpen(t, dir)
	if v := h.Cursor("all").GetVersion(); v != 20_000 {
		t.Errorf("reopened at version %d", v)
	}
	_ = h.Close()
}

func FuzzDecode(f *testing.F) {
	s := &set{name: "all", kind: 1, epoch: 1, version: 2, digest: 3}
	f.Add(appendFrame(nil, opDelta, 0, s, nothing)[frameHead:])
	done := false
	f.Add(appendFrame(nil, opImage, flagFirst, s, func() (key, record, bool) {
		defer func() { done = true }()
		return keyOf(netip.MustParsePrefix("203.0.113.9/32")), record{kind: present, macLen: 3}, !done
	})[frameHead:])
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := decode(b, nil)
		if err == nil && len(l.records)*32 > len(b) {
			t.Fatalf("%d records out of %d bytes", len(l.records), len(b))
		}
	})
}

// BenchmarkOpen loads 100,000 saved records. The whole start has 1 s.
func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	h := mustOpen(b, dir)
	crowd(100_000).feed(b, h)
	_ = h.Close()
	for b.Loop() {
		h := mustOpen(b, dir)
		_ = h.Close()
	}
}

// BenchmarkDelta is one ban into 100,000.
func BenchmarkDelta(b *testing.B) {
	h := mustOpen(b, b.TempDir())
	defer h.Close() //nolint:errcheck // a benchmark's end
	s := crowd(100_000)
	s.feed(b, h)
	digest := h.Cursor("all").GetDigest()
	s2 := newSource("all")
	p := netip.MustParsePrefix("2001:db8::/64")
	v, last := uint64(1), uint64(0)
	for b.Loop() {
		r := modelRecord{fleetbanv1.RecordKind_RECORD_KIND_PRESENT, 1, int64(v) + 100}
		now := state{p: r}.digest()
		digest ^= last ^ now
		last = now
		d := fleetbanv1.Delta_builder{Set: s2.name, Kind: 1, Epoch: 1, FromVersion: v, Version: v + 1, Digest: digest, Records: []*fleetbanv1.Record{wireRecord(p, r)}}.Build()
		if _, outcome, err := h.ApplyDelta(d); outcome != Applied || err != nil {
			b.Fatal(outcome, err)
		}
		v++
	}
}

// BenchmarkMemory prints what a record costs.
func BenchmarkMemory(b *testing.B) {
	dir := b.TempDir()
	h := mustOpen(b, dir)
	crowd(100_000).feed(b, h)
	_ = h.Close()
	for b.Loop() {
		debug.FreeOSMemory()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		h := mustOpen(b, dir)
		debug.FreeOSMemory()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapInuse-before.HeapInuse)/100_000, "heap-B/record")
		_ = h.Close()
	}
}

// TestCompactionMeetsApplies: what is applied while the file is written anew is in the new file too.
func TestCompactionMeetsApplies(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	h := mustOpen(t, dir)
	s := newSource("all")
	var compacted atomic.Int32
	stopped := make(chan error, 1)
	go func() {
		for range 30 {
			if err := h.disk.compact(h); err != nil {
				stopped <- err
				break
			}
			compacted.Add(1)
		}
		close(stopped)
	}()
	for compacted.Load() < 30 && len(stopped) == 0 {
		if err := s.follow(h); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
	t.Logf("%d deltas during %d compactions", s.version(), compacted.Load())
	_ = h.disk.file.Close() // killed
	_ = h.disk.unlock()
	h = mustOpen(t, dir)
	if c := h.Cursor("all"); c.GetVersion() != uint64(s.version()) || c.GetDigest() != s.past[s.version()].digest() {
		t.Errorf("reopened at %v", c)
	}
	_ = h.Close()
}

// TestRefusedDeltaLeavesNoTrace, even one that names a prefix twice.
func TestRefusedDeltaLeavesNoTrace(t *testing.T) {
	t.Parallel()
	h := mustOpen(t, t.TempDir())
	defer h.Close() //nolint:errcheck // a test's end
	s := newSource("all")
	if err := s.follow(h); err != nil {
		t.Fatal(err)
	}
	before := h.Cursor("all").String()
	p := netip.MustParsePrefix("2001:db8::/64")
	d := s.delta(0, 1)
	d.SetFromVersion(1)
	d.SetVersion(2)
	d.SetDigest(77)
	d.SetRecords([]*fleetbanv1.Record{
		wireRecord(p, modelRecord{fleetbanv1.RecordKind_RECORD_KIND_RETRACTED, 1, 5}),
		wireRecord(p, modelRecord{fleetbanv1.RecordKind_RECORD_KIND_PRESENT, 1, 9}),
	})
	if c, outcome, err := h.ApplyDelta(d); outcome != Gap || err != nil || !c.Empty() {
		t.Fatal(c, outcome, err)
	}
	if got := presentOf(h.held("all")); len(got) != 1 || got[p] != s.past[1][p] || h.Cursor("all").String() != before {
		t.Errorf("holds %v at %v", got, h.Cursor("all"))
	}
}

// However much a control plane sends, in whatever number of sets and unfinished snapshots, no more is held than there is
// room for, and what is held stays.
func TestMoreThanThereIsRoomFor(t *testing.T) {
	t.Parallel()
	h := mustOpen(t, t.TempDir())
	defer h.Close() //nolint:errcheck // a test's end
	h.most = 2500
	s := crowd(1000)
	s.feed(t, h)

	// A snapshot that never ends, and others beside it.
	outcomes := map[Outcome]int{}
	for _, name := range []string{"one", "two", "all"} {
		flood := crowd(10_000)
		flood.name = name
		for _, p := range flood.pages(flood.version(), 500, false, flood.past[flood.version()]) {
			_, outcome, err := h.ApplyPage(p)
			if err != nil {
				t.Fatal(err)
			}
			outcomes[outcome]++
		}
	}
	if outcomes[Applied] != 0 || outcomes[Gap] == 0 {
		t.Errorf("outcomes: %v", outcomes)
	}
	total := 0
	for _, s := range h.sets {
		total += len(s.records)
		if s.pending != nil {
			total += len(s.pending.records)
		}
	}
	if total > h.most || len(h.held("all")) != 1000 || h.Full() == "" {
		t.Errorf("%d records, %d of the set before, told: %q", total, len(h.held("all")), h.Full())
	}

	// With no room left at all, a ban can still be lifted, and when the rest has room nobody is told any more.
	h.most = 1000
	var first netip.Prefix
	for first = range s.past[s.version()] {
		break
	}
	s.mutate(map[netip.Prefix]modelRecord{first: {fleetbanv1.RecordKind_RECORD_KIND_RETRACTED, 1, 5}})
	d := s.delta(s.version()-1, s.version())
	if _, outcome, err := h.ApplyDelta(d); outcome != Applied || err != nil {
		t.Errorf("lifting a ban: %v, %v", outcome, err)
	}
	if h.Full() != "" {
		t.Errorf("still told: %s", h.Full())
	}
}

// A file system that turned read-only is no reason to enforce nothing after a restart.
func TestReadOnlyFolder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	// By system calls: a program started meanwhile would hold other tests' locks until it runs.
	mount := func(flags uintptr) {
		t.Helper()
		if err := unix.Mount("none", dir, "tmpfs", flags, "size=8m"); err != nil {
			t.Fatalf("mount (root is needed): %v", err)
		}
	}
	mount(0)
	defer unix.Unmount(dir, unix.MNT_DETACH) //nolint:errcheck // a test's end
	mount(unix.MS_REMOUNT | unix.MS_RDONLY)
	h := mustOpen(t, dir) // with nothing saved yet
	if h.Problem() == "" {
		t.Error("nobody is told")
	}
	_ = h.Close()

	mount(unix.MS_REMOUNT)
	h = mustOpen(t, dir)
	s := crowd(100)
	s.feed(t, h)
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	mount(unix.MS_REMOUNT | unix.MS_RDONLY)
	h = mustOpen(t, dir)
	if n, p := len(h.held("all")), h.Problem(); n != 100 || !strings.Contains(p, "writable") {
		t.Errorf("%d of 100 records, problem %q", n, p)
	}
	s.mutate(map[netip.Prefix]modelRecord{netip.MustParsePrefix("2001:db8::/64"): {fleetbanv1.RecordKind_RECORD_KIND_PRESENT, 1, 9}})
	if _, outcome, err := h.ApplyDelta(s.delta(s.version()-1, s.version())); outcome != Applied || err != nil {
		t.Errorf("a ban while it can't be saved: %v, %v", outcome, err)
	}
	h.Maintain()
	mount(unix.MS_REMOUNT)
	h.Maintain()
	if p := h.Problem(); p != "" {
		t.Errorf("it can be written again, and is told: %s", p)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	h = mustOpen(t, dir)
	defer h.Close() //nolint:errcheck // a test's end
	if n := len(h.held("all")); n != 101 {
		t.Errorf("%d of 101 records", n)
	}
}
