package stream_test

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/fleetban/fleetban/agent/stream"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// TestCountsWait: what every ban changes on every host is told later than what a person should know.
func TestCountsWait(t *testing.T) {
	t.Parallel()
	p := newPeer(t)
	var enforced atomic.Uint64
	var inert atomic.Bool
	client := startWith(t, p, p.server.URL, newSink(), newSource(0), func(c *stream.Config) {
		c.Health = func() *fleetbanv1.Health {
			e := fleetbanv1.EnforcerHealth_builder{Enforced: enforced.Load()}
			if inert.Load() {
				e.Inert = fleetbanv1.Inert_INERT_OFF
			}
			return fleetbanv1.Health_builder{Enforcer: e.Build()}.Build()
		}
	})
	c := p.next().welcome(fleetbanv1.Welcome_builder{})
	inert.Store(true)
	client.HealthChanged()
	c.await("that it is off", func(m *fleetbanv1.ConnectRequest) bool {
		return m.GetHealth().GetEnforcer().GetInert() == fleetbanv1.Inert_INERT_OFF
	})
	began := time.Now()
	enforced.Store(7)
	client.HealthChanged()
	c.await("the new count", func(m *fleetbanv1.ConnectRequest) bool { return m.GetHealth().GetEnforcer().GetEnforced() == 7 })
	if took := time.Since(began); took < time.Second {
		t.Errorf("a count was told after %s", took)
	}
}

// TestCountsAreLookedAtWhenDue: who says that only counts changed, however often, has Health asked once, for all of them.
func TestCountsAreLookedAtWhenDue(t *testing.T) {
	t.Parallel()
	p := newPeer(t)
	var looked, enforced atomic.Uint64
	client := startWith(t, p, p.server.URL, newSink(), newSource(0), func(c *stream.Config) {
		c.Health = func() *fleetbanv1.Health {
			looked.Add(1)
			return fleetbanv1.Health_builder{Enforcer: fleetbanv1.EnforcerHealth_builder{Enforced: enforced.Load()}.Build()}.Build()
		}
	})
	c := p.next().welcome(fleetbanv1.Welcome_builder{})
	eventually(t, "connected", func() bool { return client.Status().Connected && looked.Load() == 2 }) // for the Hello, and whether it changed since
	for n := range uint64(50) {
		enforced.Store(n + 1)
		client.CountsChanged()
	}
	c.await("the last count", func(m *fleetbanv1.ConnectRequest) bool { return m.GetHealth().GetEnforcer().GetEnforced() == 50 })
	if n := looked.Load(); n != 3 {
		t.Errorf("Health was asked %d times", n)
	}
	client.CountsChanged()
	client.HealthChanged() // asks at once, and finds nothing but counts
	eventually(t, "asked", func() bool { return looked.Load() >= 4 })
}
