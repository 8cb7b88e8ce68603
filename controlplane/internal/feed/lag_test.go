package feed

import (
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/metrics"
	"github.com/fleetban/fleetban/controlplane/internal/metrics/metricstest"
	"github.com/fleetban/fleetban/controlplane/internal/sets"
	"github.com/fleetban/fleetban/controlplane/internal/store/redistest"
	"github.com/fleetban/fleetban/controlplane/internal/testwait"
	"github.com/fleetban/fleetban/proto/wire/banset"
)

// A ring that was never heard, with no other one after it, is found by looking.
func TestLookFindsWhatWasNotHeard(t *testing.T) {
	t.Parallel()
	const org = "01TESTORGANISATION00000000"
	st := redistest.Start(t).Open()
	s := sets.New(st, sets.Options{})
	t.Cleanup(s.Close)
	m := metrics.New(metrics.Options{})
	feeds := New(Options{Store: st, Sets: s, Metrics: m, Sign: func(string, string, sets.Record) []byte { return make([]byte, 16) }})
	t.Cleanup(feeds.Close)
	m.Observe(metrics.Sources{Sets: feeds.State})
	f, release := feeds.Acquire(org)
	defer release()
	sub := f.Subscribe([]sets.Cursor{{Set: banset.All}}, nil)
	defer sub.Close()
	var last sets.Cursor
	for _, address := range []string{"203.0.113.1/32", "203.0.113.2/32"} {
		done, err := s.Ban(t.Context(), org, sets.BanInput{Prefixes: []netip.Prefix{netip.MustParsePrefix(address)}, Set: banset.All, Duration: time.Hour, Actor: "alice"})
		if err != nil {
			t.Fatal(err)
		}
		last = done.Cursor
	}
	at := func() (version uint64) {
		f.mu.Lock()
		defer f.mu.Unlock()
		if l := f.lines[banset.All]; l.loaded {
			version = l.last.delta.Version
		}
		return version
	}
	testwait.For(t, "the line is current", func() bool { return at() == last.Version })

	states, err := s.States(t.Context(), org)
	if err != nil {
		t.Fatal(err)
	}
	if f.compare(states) {
		t.Error("a current line lacks something")
	}
	figure := func(name string) float64 {
		return metricstest.Scrape(t, m.Handler(slog.New(slog.DiscardHandler)))[name]
	}
	// Where a ring that is late, or the feed's own look, comes first, it is tried again.
	testwait.For(t, "what wasn't heard is told at the first look, and read after the second", func() bool {
		if at() != last.Version {
			return false
		}
		before := figure("fleetban_doorbell_gaps_total") // the first rings may have come before the line was read
		// As if the last ring had been lost on its way.
		f.mu.Lock()
		l := f.lines[banset.All]
		l.reset(sets.Cursor{Set: banset.All, Epoch: last.Epoch, Version: last.Version - 1})
		f.mu.Unlock()
		if !f.compare(states) || figure("fleetban_doorbell_gaps_total") != before || figure("fleetban_set_lag_versions") != 1 || figure("fleetban_set_lag_seconds") <= 0 {
			return false
		}
		return f.compare(states) && figure("fleetban_doorbell_gaps_total") == before+1
	})
	testwait.For(t, "the line is current again", func() bool { return at() == last.Version })
	if f.compare(states) || figure("fleetban_set_lag_versions") != 0 || figure("fleetban_set_lag_seconds") != 0 {
		t.Errorf("afterwards it is %v versions behind", figure("fleetban_set_lag_versions"))
	}
}
