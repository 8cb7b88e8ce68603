package leases_test

import (
	"slices"
	"testing"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/leases"
	"github.com/fleetban/fleetban/controlplane/internal/store/redistest"
	"github.com/fleetban/fleetban/controlplane/internal/testwait"
)

// One replica holds it at a time; it changes hands when it is given back and when it runs out, and all of that can be read.
func TestHistory(t *testing.T) {
	t.Parallel()
	st := redistest.Start(t).Open()
	ctx := t.Context()
	read := func() leases.State {
		t.Helper()
		s, err := leases.Read(ctx, st, "jobs")
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if s := read(); s.Holder != "" || len(s.History) != 0 {
		t.Errorf("of nobody: %+v", s)
	}
	hold := func(l *leases.Lease) (bool, bool) {
		t.Helper()
		held, fresh, err := l.Hold(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return held, fresh
	}
	one, two := leases.New(st, "jobs", "one", time.Hour), leases.New(st, "jobs", "two", 50*time.Millisecond)
	if held, fresh := hold(one); !held || !fresh {
		t.Fatal("nobody has it, and it can't be had")
	}
	if held, _ := hold(two); held || two.Term() != 0 {
		t.Error("two hold it")
	}
	if held, fresh := hold(one); !held || fresh || one.Taken() != 1 {
		t.Error("it isn't renewed")
	}
	first := one.Term()
	if s := read(); s.Holder != "one" || s.Term != first || len(s.History) != 0 || !s.Until.After(s.Since) {
		t.Errorf("%+v", s)
	}
	if err := one.Release(ctx); err != nil || one.Term() != 0 {
		t.Fatal(err, one.Term())
	}
	if s := read(); s.Holder != "" || len(s.History) != 1 || s.History[0].Holder != "one" || !s.History[0].Released {
		t.Errorf("given back: %+v", s)
	}
	if held, _ := hold(two); !held || two.Term() <= first {
		t.Errorf("term %d after %d", two.Term(), first)
	}
	testwait.For(t, "it runs out and changes hands", func() bool { held, _ := hold(one); return held })
	s := read()
	if s.Holder != "one" || s.Term <= two.Term() || len(s.History) != 2 {
		t.Fatalf("%+v", s)
	}
	if ran, gave := s.History[0], s.History[1]; ran.Holder != "two" || ran.Released || ran.Term != two.Term() || gave.Term != first || gave.Ended.Before(gave.Since) {
		t.Errorf("%+v", s.History)
	}
	for range 20 { // only so many are kept
		for _, l := range []*leases.Lease{one, two} {
			if err := one.Release(ctx); err != nil {
				t.Fatal(err)
			}
			if err := two.Release(ctx); err != nil {
				t.Fatal(err)
			}
			hold(l)
		}
	}
	if s := read(); len(s.History) != 16 && len(s.History) != 17 {
		t.Errorf("%d terms are kept", len(s.History))
	}
}

// What was done under it is told, by whom it was done in which term; what a replica did that lost it meanwhile isn't.
func TestRuns(t *testing.T) {
	t.Parallel()
	st := redistest.Start(t).Open()
	ctx := t.Context()
	one, two := leases.New(st, "jobs", "one", 50*time.Millisecond), leases.New(st, "jobs", "two", time.Hour)
	began := time.UnixMilli(1_800_000_000_000).UTC()
	run := func(l *leases.Lease, name, problem string) {
		t.Helper()
		if err := l.Ran(ctx, leases.Run{Name: name, Began: began, Took: 7 * time.Millisecond, Problem: problem}); err != nil {
			t.Fatal(err)
		}
	}
	run(one, "early", "") // nobody has it
	if held, _, err := one.Hold(ctx); !held || err != nil {
		t.Fatal(held, err)
	}
	run(one, "presence", "")
	run(one, "expiry", "")
	first := one.Term()
	testwait.For(t, "it runs out, which one doesn't know", func() bool { held, _, err := two.Hold(ctx); return held && err == nil })
	run(one, "presence", "too late")
	run(two, "expiry", "failed for 1 of 2")
	s, err := leases.Read(ctx, st, "jobs")
	want := []leases.Run{
		{Name: "expiry", Began: began, Took: 7 * time.Millisecond, Problem: "failed for 1 of 2", Term: two.Term()},
		{Name: "presence", Began: began, Took: 7 * time.Millisecond, Term: first},
	}
	if err != nil || !slices.Equal(s.Runs, want) {
		t.Errorf("%+v, %v; want %+v", s.Runs, err, want)
	}
}

// A lease that an earlier release held is read and taken over.
func TestEarlierRelease(t *testing.T) {
	t.Parallel()
	st := redistest.Start(t).Open()
	ctx := t.Context()
	if err := st.Client().HSet(ctx, "fb:lease:jobs", "holder", "old", "until", "1700000015000", "term", "1700000000000").Err(); err != nil {
		t.Fatal(err)
	}
	l := leases.New(st, "jobs", "new", time.Minute)
	if held, _, err := l.Hold(ctx); !held || err != nil {
		t.Fatal(held, err)
	}
	s, err := leases.Read(ctx, st, "jobs")
	if err != nil || s.Holder != "new" || len(s.History) != 1 || s.History[0].Since.UnixMilli() != 1700000000000 {
		t.Errorf("%+v, %v", s, err)
	}
}
