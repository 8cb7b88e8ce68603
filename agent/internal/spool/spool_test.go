package spool

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	hostv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/host/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

// testClock is a host's clocks under a test's hand.
type testClock struct{ i instant }

func (c *testClock) now() instant { return c.i }

func (c *testClock) pass(ms int64) { c.i.bootMS += ms; c.i.wallMS += ms }

func newTestClock() *testClock { return &testClock{instant{1, 1_000_000, 1_700_000_000_000}} }

func packed(n int) []byte {
	return prefix.Pack(prefix.Single(netip.AddrFrom4([4]byte{203, 0, byte(n >> 8), byte(n)})))
}

func banned(jail string, n int, age, duration int64) *hostv1.Banned {
	return hostv1.Banned_builder{Jail: jail, Prefix: packed(n), AgeMs: age, DurationMs: duration}.Build()
}

func baselineOf(jails []string, restart bool, bans ...*hostv1.Banned) *hostv1.ObserveResponse {
	return hostv1.ObserveResponse_builder{Baseline: hostv1.Baseline_builder{Last: true, Jails: jails, Banned: bans, AfterStart: restart}.Build()}.Build()
}

func banOf(jail string, n int, age, duration int64) *hostv1.ObserveResponse {
	return hostv1.ObserveResponse_builder{Change: hostv1.Change_builder{
		Jail: jail, Prefix: packed(n), AgeMs: age, Ban: hostv1.Ban_builder{DurationMs: duration, Failures: 5}.Build(),
	}.Build()}.Build()
}

func unbanOf(jail string, n int, cause fleetbanv1.UnbanCause) *hostv1.ObserveResponse {
	return hostv1.ObserveResponse_builder{Change: hostv1.Change_builder{
		Jail: jail, Prefix: packed(n), Unban: hostv1.Unban_builder{Cause: cause}.Build(),
	}.Build()}.Build()
}

func open(t interface{ Fatal(...any) }, dir string, o Options) *Spool {
	s, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// tell writes events in short.
func tell(events []*fleetbanv1.Event) (out []string) {
	for _, e := range events {
		p, _ := prefix.Unpack(e.GetPrefix())
		line := fmt.Sprintf("%d %s %s ", e.GetSeq(), e.GetJail(), prefix.Format(p))
		switch e.WhichChange() {
		case fleetbanv1.Event_Ban_case:
			line += fmt.Sprintf("ban %d", e.GetBan().GetDurationMs()/1000)
			if e.GetBan().GetPreexisting() {
				line += " preexisting"
			}
			if e.GetBan().GetRestored() {
				line += " restored"
			}
		case fleetbanv1.Event_Extension_case:
			line += fmt.Sprintf("extension %d", e.GetExtension().GetDurationMs()/1000)
		case fleetbanv1.Event_Unban_case:
			line += e.GetUnban().GetCause().String()[len("UNBAN_CAUSE_"):]
		}
		out = append(out, line+fmt.Sprintf(" -%d", e.GetAgeMs()/1000))
	}
	return out
}

func wantNext(t *testing.T, s *Spool, after uint64, want ...string) {
	t.Helper()
	events, err := s.Next(after, 1000)
	if err != nil {
		t.Fatal(err)
	}
	if got := tell(events); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("after %d:\n got %q\nwant %q", after, got, want)
	}
}

// wantInAnyOrder wants just these, without their numbers: what one baseline shows has no order.
func wantInAnyOrder(t *testing.T, s *Spool, after uint64, want ...string) {
	t.Helper()
	events, err := s.Next(after, 1000)
	if err != nil {
		t.Fatal(err)
	}
	got := tell(events)
	for i, line := range got {
		_, got[i], _ = strings.Cut(line, " ")
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("after %d:\n got %q\nwant %q", after, got, want)
	}
}

func TestWhatBecomesAnEvent(t *testing.T) {
	t.Parallel()
	clock := newTestClock()
	s := open(t, t.TempDir(), Options{now: clock.now})
	sshd := []string{"sshd", "nginx"}
	s.Observe(baselineOf(sshd, false, banned("sshd", 1, 60_000, 600_000)))
	s.Observe(baselineOf(sshd, false, banned("sshd", 1, 60_000, 600_000))) // again: nothing new
	s.Observe(banOf("sshd", 2, 1000, 600_000), banOf("sshd", 2, 1000, 600_000))
	wantNext(t, s, 0, "1 sshd 203.0.0.1 ban 600 preexisting -60", "2 sshd 203.0.0.2 ban 600 -1")

	clock.pass(10_000)
	s.Observe(baselineOf(sshd, false, banned("sshd", 1, 70_000, 600_000), banned("sshd", 2, 11_000, 1_200_000), banned("nginx", 3, 2000, -1)))
	wantInAnyOrder(t, s, 2, "sshd 203.0.0.2 extension 1200 -0", "nginx 203.0.0.3 ban 0 -2")

	// One is gone and nobody saw why; another runs out while nobody looks; a jail stops.
	clock.pass(540_000)
	s.Observe(baselineOf([]string{"sshd"}, false))
	wantInAnyOrder(t, s, 4, "sshd 203.0.0.1 EXPIRED -0", "sshd 203.0.0.2 UNSPECIFIED -0", "nginx 203.0.0.3 JAIL_STOPPED -0")
	// After a start, what is unknown was restored, and what is missing was nobody's decision.
	s.Observe(banOf("sshd", 4, 0, 600_000))
	s.Observe(baselineOf(sshd, true, banned("sshd", 5, 5000, 600_000)))
	wantNext(t, s, 7, "8 sshd 203.0.0.4 ban 600 -0", "9 sshd 203.0.0.4 JAIL_STOPPED -0", "10 sshd 203.0.0.5 ban 600 restored -5")
	// A new ban of one whose end was missed.
	clock.pass(700_000)
	s.Observe(banOf("sshd", 5, 0, 600_000))
	wantNext(t, s, 10, "11 sshd 203.0.0.5 EXPIRED -105", "12 sshd 203.0.0.5 ban 600 -0")
	s.Observe(unbanOf("sshd", 5, fleetbanv1.UnbanCause_UNBAN_CAUSE_PERSON), unbanOf("sshd", 5, fleetbanv1.UnbanCause_UNBAN_CAUSE_PERSON))
	wantNext(t, s, 12, "13 sshd 203.0.0.5 PERSON -0")
}

func TestChangesBetweenPagesComeAfter(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), Options{now: newTestClock().now})
	page := func(n uint32, last bool, bans ...*hostv1.Banned) *hostv1.ObserveResponse {
		return hostv1.ObserveResponse_builder{Baseline: hostv1.Baseline_builder{Page: n, Last: last, Jails: []string{"sshd"}, Banned: bans}.Build()}.Build()
	}
	s.Observe(page(0, true))
	s.Observe(page(0, false, banned("sshd", 1, 0, 600_000)), banOf("sshd", 9, 0, 600_000), page(1, true))
	wantNext(t, s, 0, "1 sshd 203.0.0.1 ban 600 -0", "2 sshd 203.0.0.9 ban 600 -0")
	// A baseline that breaks off counts for nothing.
	s.Observe(page(0, false))
	s.Interrupted()
	s.Observe(banOf("sshd", 10, 0, 600_000))
	wantNext(t, s, 2, "3 sshd 203.0.0.10 ban 600 -0")
}

func TestAgesThroughRestartsAndBoots(t *testing.T) {
	t.Parallel()
	clock, dir := newTestClock(), t.TempDir()
	s := open(t, dir, Options{now: clock.now})
	s.Observe(baselineOf([]string{"sshd"}, false), banOf("sshd", 1, 0, 600_000))
	_ = s.Close()

	// The wall clock is set back by a day: ages within one boot don't care.
	clock.pass(5000)
	clock.i.wallMS -= 86_400_000
	s = open(t, dir, Options{now: clock.now})
	wantNext(t, s, 0, "1 sshd 203.0.0.1 ban 600 -5")
	clock.i.wallMS += 86_400_000
	_ = s.Close()

	clock.i = instant{2, 100, clock.i.wallMS + 60_000} // another boot
	s = open(t, dir, Options{now: clock.now})
	wantNext(t, s, 0, "1 sshd 203.0.0.1 ban 600 -65")
	clock.i.wallMS -= 3_600_000
	wantNext(t, s, 0, "1 sshd 203.0.0.1 ban 600 -0")
}

func TestAcknowledgedEventsAreKeptForAWhile(t *testing.T) {
	t.Parallel()
	clock, dir := newTestClock(), t.TempDir()
	s := open(t, dir, Options{now: clock.now, KeepEvents: 10})
	s.Observe(baselineOf([]string{"sshd"}, false))
	for i := range 30 {
		s.Observe(banOf("sshd", i, 0, 600_000))
	}
	s.Ack("another spool", 30)
	if acked, last := s.Positions(); acked != 0 || last != 30 {
		t.Fatalf("positions %d, %d", acked, last)
	}
	s.Ack(s.ID(), 25)
	s.compact()
	if events, err := s.Next(0, 100); err != nil || len(events) != 15 || events[0].GetSeq() != 16 {
		t.Fatalf("kept %v, %v", tell(events), err)
	}
	id := s.ID()
	_ = s.Close()
	s = open(t, dir, Options{now: clock.now, KeepEvents: 10})
	if acked, last := s.Positions(); acked != 25 || last != 30 || s.ID() != id {
		t.Fatalf("reopened: %d, %d, %s", acked, last, s.ID())
	}
	// The control plane lost some: it is sent them again.
	if err := s.Begin(20); err != nil {
		t.Fatal(err)
	}
	if events, _ := s.Next(20, 100); len(events) != 10 {
		t.Errorf("after a rewind: %v", tell(events))
	}
	clock.pass(11 * 60_000)
	s.Ack(s.ID(), 29)
	s.compact()
	if events, _ := s.Next(0, 100); len(events) != 5 { // those acknowledged just now, and the one that waits
		t.Errorf("after the window: %v", tell(events))
	}
}

func TestRolledBack(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), Options{now: newTestClock().now})
	s.Observe(baselineOf([]string{"sshd"}, false), banOf("sshd", 1, 0, 600_000), banOf("sshd", 2, 0, 600_000))
	s.Ack(s.ID(), 1)
	id := s.ID()
	if err := s.Begin(7); !errors.Is(err, ErrRotated) || s.ID() == id {
		t.Fatalf("Begin: %v", err)
	}
	wantNext(t, s, 0, "1 sshd 203.0.0.2 ban 600 -0")
	if err := s.Begin(0); err != nil {
		t.Error(err)
	}
}

// TestFullDisk fills a real file system: a tmpfs of its own.
func TestFullDisk(t *testing.T) {
	clock := newTestClock()
	dir := mountTmpfs(t, "64k")
	o := Options{now: clock.now, MaxMemory: 20}
	s := open(t, dir, o)
	s.Observe(baselineOf([]string{"sshd"}, false), banOf("sshd", 1, 0, 600_000))
	hog := filepath.Join(dir, "hog")
	f, err := os.Create(hog) //nolint:gosec // a test's
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := f.Write(make([]byte, 512)); err != nil {
			break
		}
	}
	_ = f.Close()
	n := 1
	for s.Health().GetProblem() == "" { // what is left of the last page
		n++
		if n > 1000 {
			t.Fatal("the disk never filled")
		}
		s.Observe(banOf("sshd", n, 0, 600_000))
	}
	for range 30 {
		n++
		s.Observe(banOf("sshd", n, 0, 600_000))
	}
	_, last := s.Positions()
	lost := s.Health().GetLost()
	if lost == 0 || last+lost != uint64(n) { //nolint:gosec // positive
		t.Errorf("%d observed, %d kept, %d lost", n, last, lost)
	}
	if events, err := s.Next(0, 1000); err != nil || uint64(len(events)) != last {
		t.Errorf("while full: %d events of %d, %v", len(events), last, err)
	}
	// Killed now, the next start must not use the sequence numbers that were sent from memory again.
	copied := t.TempDir()
	b, _ := os.ReadFile(filepath.Join(dir, fileName)) //nolint:gosec // a test's
	if err := os.WriteFile(filepath.Join(copied, fileName), b, 0o600); err != nil {
		t.Fatal(err)
	}
	if again := open(t, copied, o); again.ID() == s.ID() {
		t.Error("the spool goes on with its id although events that it sent are gone")
	}

	if err := os.Remove(hog); err != nil {
		t.Fatal(err)
	}
	clock.pass(retryDisk)
	s.Observe(unbanOf("sshd", 1, fleetbanv1.UnbanCause_UNBAN_CAUSE_PERSON))
	if p := s.Health().GetProblem(); p != "" && !s.WantsBaseline() {
		t.Errorf("after room was made: %s", p)
	}
	if !s.WantsBaseline() {
		t.Error("no baseline is wanted although changes were left out")
	}
	var bans []*hostv1.Banned
	for i := 2; i <= n; i++ {
		bans = append(bans, banned("sshd", i, retryDisk, 600_000))
	}
	s.Observe(baselineOf([]string{"sshd"}, false, bans...))
	_ = s.Close()
	s = open(t, dir, o)
	if _, last := s.Positions(); last != uint64(n)+1 { //nolint:gosec // positive
		t.Errorf("%d events on disk in the end, want %d", last, n+1)
	}
}

func TestForeignFileIsLeftAlone(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, fileName)
	want := bytes.Repeat([]byte("not a journal "), 10)
	if err := os.WriteFile(path, want, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, Options{}); !errors.Is(err, errNotJournal) {
		t.Errorf("got %v", err)
	}
	if got, _ := os.ReadFile(path); !bytes.Equal(got, want) { //nolint:gosec // a test's
		t.Error("it was changed")
	}
}

// controlPlane is what the control plane makes of events: it stores each once and folds them.
type controlPlane struct {
	t     *rapid.T
	marks map[string]uint64
	state map[string]int64 // jail and prefix: when it ends by the test's clock; -1: never
}

func (c *controlPlane) take(spool string, events []*fleetbanv1.Event, now int64) {
	for _, e := range events {
		if e.GetSeq() <= c.marks[spool] {
			continue
		}
		c.marks[spool] = e.GetSeq()
		key := e.GetJail() + string(e.GetPrefix())
		_, stands := c.state[key]
		switch e.WhichChange() {
		case fleetbanv1.Event_Ban_case:
			if stands {
				c.t.Fatalf("told of a ban twice: %v", e)
			}
			c.state[key] = endOf(now-e.GetAgeMs(), e.GetBan().GetDurationMs())
		case fleetbanv1.Event_Unban_case:
			if !stands {
				c.t.Fatalf("told of an unban twice: %v", e)
			}
			delete(c.state, key)
		default: // the model makes no others
		}
	}
}

func endOf(start, duration int64) int64 {
	if duration < 0 {
		return -1
	}
	return start + duration
}

// TestEachChangeOnce lets changes be repeated, missed and reordered with baselines while the process is killed at any
// byte of any write, and wants every change told exactly once.
func TestEachChangeOnce(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		root, err := os.MkdirTemp("", "spool")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(root) //nolint:errcheck // best effort
		clock := newTestClock()
		o := Options{now: clock.now, KeepEvents: 5, KeepFor: time.Minute, MaxEvents: rapid.SampledFrom([]int{8, 100_000}).Draw(t, "room")}
		dir := filepath.Join(root, "0")
		_ = os.Mkdir(dir, 0o700)
		s := open(t, dir, o)
		type ban struct {
			jail            string
			n               int
			start, duration int64
		}
		truth := map[string]ban{}
		cp := &controlPlane{t, map[string]uint64{}, map[string]int64{}}
		deliver := func() {
			for {
				events, err := s.Next(cp.marks[s.ID()], 3)
				if err != nil {
					t.Fatal(err)
				}
				if len(events) == 0 {
					return
				}
				cp.take(s.ID(), events, clock.i.bootMS)
				s.Ack(s.ID(), cp.marks[s.ID()])
			}
		}
		whole := func() *hostv1.ObserveResponse {
			var bans []*hostv1.Banned
			for _, b := range truth {
				bans = append(bans, banned(b.jail, b.n, clock.i.bootMS-b.start, b.duration))
			}
			return baselineOf([]string{"a", "b"}, false, bans...)
		}
		restarts := 0
		observe := func(r ...*hostv1.ObserveResponse) {
			path := filepath.Join(dir, fileName)
			before, _ := os.ReadFile(path) //nolint:gosec // a test's
			s.Observe(r...)
			if rapid.IntRange(0, 3).Draw(t, "crash") > 0 {
				return
			}
			// Killed in the midst of writing: what was there before, and any part of what was appended.
			after, _ := os.ReadFile(path) //nolint:gosec // a test's
			left := after
			if bytes.HasPrefix(after, before) {
				left = after[:len(before)+rapid.IntRange(0, len(after)-len(before)).Draw(t, "torn")]
			} else if rapid.Bool().Draw(t, "before rename") {
				left = before
			}
			restarts++
			dir = filepath.Join(root, fmt.Sprint(restarts))
			_ = os.Mkdir(dir, 0o700)
			if err := os.WriteFile(filepath.Join(dir, fileName), left, 0o600); err != nil {
				t.Fatal(err)
			}
			_ = s.Close()
			s = open(t, dir, o)
		}
		observe(baselineOf([]string{"a", "b"}, false))
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			clock.pass(rapid.Int64Range(0, 20_000).Draw(t, "pass"))
			for key, b := range truth { // fail2ban lifts what ran out
				if b.duration >= 0 && b.start+b.duration <= clock.i.bootMS {
					delete(truth, key)
				}
			}
			jail, n := rapid.SampledFrom([]string{"a", "b"}).Draw(t, "jail"), rapid.IntRange(0, 3).Draw(t, "n")
			key := jail + string(packed(n))
			times := rapid.IntRange(0, 2).Draw(t, "times told")
			switch rapid.IntRange(0, 4).Draw(t, "what") {
			case 0, 1:
				if _, stands := truth[key]; stands {
					break
				}
				b := ban{jail, n, clock.i.bootMS, rapid.SampledFrom([]int64{-1, 10_000, 100_000}).Draw(t, "for")}
				truth[key] = b
				for range times {
					observe(banOf(jail, n, 0, b.duration))
				}
			case 2:
				if _, stands := truth[key]; !stands {
					break
				}
				delete(truth, key)
				for range times {
					observe(unbanOf(jail, n, fleetbanv1.UnbanCause_UNBAN_CAUSE_PERSON))
				}
			case 3:
				observe(whole())
			case 4:
				deliver()
			}
		}
		// In the end all is known, however little room there is.
		for range 10 {
			observe(whole())
			deliver()
		}
		if len(cp.state) != len(truth) {
			t.Fatalf("the control plane has %d bans, fail2ban %d", len(cp.state), len(truth))
		}
		for key := range truth {
			if _, ok := cp.state[key]; !ok {
				t.Fatalf("the control plane lacks %q", key)
			}
		}
		if want := len(truth); s.table.size() != want {
			t.Fatalf("the table has %d, want %d", s.table.size(), want)
		}
	})
}

// FuzzJournal reads what no spool wrote.
func FuzzJournal(f *testing.F) {
	dir := f.TempDir()
	s := open(f, dir, Options{now: newTestClock().now})
	s.Observe(baselineOf([]string{"sshd"}, false), banOf("sshd", 1, 0, 600_000))
	_ = s.Close()
	b, _ := os.ReadFile(filepath.Join(dir, fileName)) //nolint:gosec // a test's
	f.Add(b)
	f.Add(b[:len(b)-3])
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, fileName), b, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(dir, Options{now: newTestClock().now})
		if err != nil {
			return
		}
		if _, err := s.Next(0, 10); err != nil {
			t.Fatal(err)
		}
		s.Observe(banOf("sshd", 77, 0, 600_000))
		_ = s.Close()
	})
}

func BenchmarkObserve(b *testing.B) {
	s := open(b, b.TempDir(), Options{})
	s.Observe(baselineOf([]string{"sshd"}, false))
	for i := 0; b.Loop(); i++ {
		s.Observe(banOf("sshd", i%65536, 0, int64(600_000+i*10_000)))
	}
}
