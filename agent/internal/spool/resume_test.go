package spool

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	hostv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/host/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// at gives an observation its position.
func at(feed, position uint64, o *hostv1.ObserveResponse) *hostv1.ObserveResponse {
	o.SetFeed(feed)
	o.SetPosition(position)
	return o
}

// TestResumesWhereItWas kills the process at any byte of any write and has the helper tell again what came after the place
// that the new one names, less what was acknowledged: the events are those of a life without a death.
func TestResumesWhereItWas(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		root, err := os.MkdirTemp("", "spool")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(root) //nolint:errcheck // best effort
		clock := newTestClock()
		o := Options{now: clock.now}
		const feed = 7
		changes := []*hostv1.ObserveResponse{baselineOf([]string{"a"}, false)}
		for range rapid.IntRange(1, 40).Draw(t, "changes") {
			n := rapid.IntRange(0, 2).Draw(t, "n")
			if rapid.Bool().Draw(t, "ban") {
				changes = append(changes, banOf("a", n, 0, rapid.SampledFrom([]int64{-1, 100_000}).Draw(t, "for")))
			} else {
				changes = append(changes, unbanOf("a", n, fleetbanv1.UnbanCause_UNBAN_CAUSE_PERSON))
			}
		}
		for i, c := range changes {
			at(feed, uint64(i+1), c)
		}
		all := func(s *Spool) []string {
			events, err := s.Next(0, 1000)
			if err != nil {
				t.Fatal(err)
			}
			return tell(events)
		}
		_ = os.Mkdir(filepath.Join(root, "whole"), 0o700)
		whole := open(t, filepath.Join(root, "whole"), o)
		whole.Observe(changes...)
		defer whole.Close()

		dir := filepath.Join(root, "0")
		_ = os.Mkdir(dir, 0o700)
		s := open(t, dir, o)
		defer func() { _ = s.Close() }()
		acked, next := uint64(0), 0
		for deaths := 0; next < len(changes); {
			n := rapid.IntRange(1, len(changes)-next).Draw(t, "at once")
			path := filepath.Join(dir, fileName)
			before, _ := os.ReadFile(path) //nolint:gosec // a test's
			s.Observe(changes[next : next+n]...)
			next += n
			if rapid.IntRange(0, 2).Draw(t, "dies") > 0 {
				_, acked = s.Safe()
				continue
			}
			after, _ := os.ReadFile(path) //nolint:gosec // a test's
			if !bytes.HasPrefix(after, before) {
				t.Fatal("the journal was written anew")
			}
			left := after[:len(before)+rapid.IntRange(0, len(after)-len(before)).Draw(t, "torn")]
			deaths++
			dir = filepath.Join(root, fmt.Sprint(deaths))
			_ = os.Mkdir(dir, 0o700)
			if err := os.WriteFile(filepath.Join(dir, fileName), left, 0o600); err != nil {
				t.Fatal(err)
			}
			_ = s.Close()
			s = open(t, dir, o)
			if rapid.Bool().Draw(t, "anew") {
				s.mu.Lock()
				s.compact() // the place must be in the new journal too
				s.mu.Unlock()
				_ = s.Close()
				s = open(t, dir, o)
			}
			of, through := s.Taken()
			if of != 0 && of != feed || through > uint64(next) {
				t.Fatalf("it went on at %d of %d", through, of)
			}
			next = int(max(through, acked)) //nolint:gosec // small
		}
		if got, want := all(s), all(whole); !slices.Equal(got, want) {
			t.Fatalf("told %q, want %q", got, want)
		}
	})
}

// Nobody is told to forget what is in memory only.
func TestWhatADiskRefusesIsNotAcknowledged(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	clock := newTestClock()
	s := open(t, dir, Options{now: clock.now})
	defer s.Close()
	s.Observe(at(7, 1, baselineOf([]string{"a"}, false)), at(7, 2, banOf("a", 1, 0, 100_000)))
	s.mu.Lock()
	s.refused(os.ErrClosed)
	s.mu.Unlock()
	s.Observe(at(7, 3, banOf("a", 2, 0, 100_000)))
	if _, safe := s.Safe(); safe != 2 {
		t.Errorf("safe through %d, want 2", safe)
	}
	if _, taken := s.Taken(); taken != 3 {
		t.Errorf("taken through %d, want 3", taken)
	}
	clock.pass(retryDisk)
	s.Mend()
	if _, safe := s.Safe(); safe != 3 {
		t.Errorf("after the disk was mended, safe through %d, want 3", safe)
	}
}

// An unban that was read late is judged by when it was: before the ban's end a person did it, and before the ban itself it
// was of another one.
func TestUnbansWithoutACause(t *testing.T) {
	t.Parallel()
	clock := newTestClock()
	s := open(t, t.TempDir(), Options{now: clock.now})
	defer s.Close()
	s.Observe(baselineOf([]string{"a"}, false))
	for n, duration := range []int64{100_000, 100_000, 100_000, -1, 100_000} {
		s.Observe(banOf("a", n, 0, duration))
	}
	clock.pass(200_000)
	late := func(n int, age int64) *hostv1.ObserveResponse {
		o := unbanOf("a", n, fleetbanv1.UnbanCause_UNBAN_CAUSE_UNSPECIFIED)
		o.GetChange().SetAgeMs(age)
		return o
	}
	s.Observe(late(0, 150_000), late(1, 100_000), late(2, 98_500), late(3, 10), late(4, 210_000), late(9, 10))
	events, err := s.Next(5, 100)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(tell(events), ", "); got != "6 a 203.0.0.0 PERSON -150, 7 a 203.0.0.1 EXPIRED -100, 8 a 203.0.0.2 EXPIRED -98, 9 a 203.0.0.3 PERSON -0" {
		t.Error(got)
	}
}
