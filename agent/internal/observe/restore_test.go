package observe_test

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/fleetban/fleetban/agent/internal/fail2ban/fail2bantest"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

// restored is, for each time that a ban of an address is told, whether it is told as one that fail2ban read back.
func (h *halves) restored(addr string) (told []bool) {
	h.t.Helper()
	events, err := h.spool.Next(0, 100_000)
	if err != nil {
		h.t.Fatal(err)
	}
	want := prefix.Pack(netip.PrefixFrom(netip.MustParseAddr(addr), 32))
	for _, e := range events {
		if e.HasBan() && bytes.Equal(e.GetPrefix(), want) {
			told = append(told, e.GetBan().GetRestored())
		}
	}
	return told
}

// started waits until the observer has seen fail2ban start so often, and has read what it read back.
func (h *halves) started(times int) {
	h.t.Helper()
	fail2bantest.Eventually(h.t, patience, fmt.Sprintf("%d starts of fail2ban are seen", times), func() bool {
		h.logged.mu.Lock()
		defer h.logged.mu.Unlock()
		return bytes.Count(h.logged.b.Bytes(), []byte("fail2ban has started")) == times
	})
}

// A ban that was lifted, and that fail2ban bans again when it starts because its database doesn't know, is told as what it is: it
// stands again, and was read back. It is no new one, which would go to the whole fleet, and what stood all along is told once.
func TestLiftedBanReadBack(t *testing.T) {
	t.Parallel()
	const lifted, stands = "192.0.2.1", "192.0.2.2"
	for name, alive := range map[string]bool{"the agent looks on": true, "one half is dead meanwhile": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHalves(t, fail2bantest.Options{})
			h.saved()
			// fail2ban counts in seconds: those of the second in which it starts might be new.
			for _, addr := range []string{lifted, stands} {
				h.server.AttackAt("sshd", addr, time.Now().Add(-10*time.Second))
			}
			h.awaitStory(lifted, "ban")
			h.awaitStory(stands, "ban")
			// fail2ban writes a ban to its database after it has logged it, so that one that is lifted at once may be written after it
			// was deleted. Here the file as it was does the same.
			fail2bantest.Eventually(t, patience, "fail2ban's database has the bans", func() bool {
				b, err := os.ReadFile(h.server.Database)
				return err == nil && bytes.Contains(b, []byte(lifted)) && bytes.Contains(b, []byte(stands))
			})
			h.server.Stop()
			before, err := os.ReadFile(h.server.Database)
			if err != nil {
				t.Fatal(err)
			}
			h.server.Launch()
			h.started(1)
			h.server.Command("set", "sshd", "unbanip", lifted)
			h.awaitStory(lifted, "ban", "unban PERSON")
			if !alive {
				h.run.kill()
			}
			for starts := range 2 {
				h.server.Kill()
				if err := os.WriteFile(h.server.Database, before, 0o600); err != nil {
					t.Fatal(err)
				}
				h.server.Launch()
				h.logs("Restore Ban " + lifted)
				if !alive {
					h.startRun()
					alive = true
				}
				h.started(2 + starts)
				h.awaitStory(lifted, "ban", "unban PERSON", "ban")
				if got := h.restored(lifted); !slices.Equal(got, []bool{false, true}) {
					t.Errorf("told as restored: %v", got)
				}
			}
			// What comes after the second start is told, and nothing of the rest before it.
			h.server.Attack("sshd", "192.0.2.3")
			h.awaitStory("192.0.2.3", "ban")
			h.wants(map[string][]string{lifted: {"ban", "unban PERSON", "ban"}, stands: {"ban"}})
			if got := h.restored("192.0.2.3"); !slices.Equal(got, []bool{false}) {
				t.Errorf("a new ban is told as restored: %v", got)
			}
		})
	}
}
