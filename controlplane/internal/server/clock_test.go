package server

import (
	"testing"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/store/redistest"
)

// Redis' clock is set back, or a replica whose clock is behind takes over: hosts are told that, and nothing here goes back.
func TestClockGoesBack(t *testing.T) {
	t.Parallel()
	st := redistest.Start(t).Open()
	c := &clock{}
	sample := func() {
		t.Helper()
		if err := c.sample(t.Context(), st); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		sample()
	}
	if _, steps := c.told(); steps != 0 {
		t.Errorf("it was set %d times", steps)
	}
	const ahead = 10 * time.Minute
	c.offset += ahead // as Redis had it before
	was := c.now()
	sample()
	at, steps := c.told()
	if back := was.Sub(at); back < ahead-time.Minute || back > ahead || steps != 1 {
		t.Errorf("hosts are told that it went back by %s, set %d times", back, steps)
	}
	if now := c.now(); now.Before(was) {
		t.Errorf("it goes back here, by %s", was.Sub(now))
	}
}
