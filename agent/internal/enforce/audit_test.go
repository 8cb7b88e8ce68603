package enforce_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/fleetban/fleetban/agent/internal/enforce"
	"github.com/fleetban/fleetban/agent/internal/nft"
)

// TestPeriodicAudit: what was changed in the kernel without the kernel's telling is put right every five minutes, and told.
func TestPeriodicAudit(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.delta("all", ban, change{"203.0.113.9/32", present, 0}, change{"203.0.113.10/32", present, 24 * time.Hour})
	ticks := make(chan time.Time)
	h.runOn(ticks)
	pass := func(n int) {
		for range n {
			ticks <- time.Now()
		}
	}
	pass(2) // the watch is on
	if err := h.e.ChangeUnheard(t.Context(), nft.Update{
		Add:    []nft.Element{{Prefix: netip.MustParsePrefix("192.0.2.1/32"), Remaining: time.Hour}},
		Remove: []netip.Prefix{netip.MustParsePrefix("203.0.113.9/32")},
	}); err != nil {
		t.Fatal(err)
	}
	pass(enforce.AuditEvery - 3)
	h.wantKernel("a second before the audit", "192.0.2.1/32", "203.0.113.10/32")
	if got := h.e.Health().GetRepairs(); got != 0 || len(h.lately.Incidents()) != 0 {
		t.Fatalf("before the audit: %d repairs, told %v", got, h.lately.Incidents())
	}
	changed := h.e.Changed()
	pass(2)
	h.wantKernel("audited", "203.0.113.9/32", "203.0.113.10/32")
	select {
	case <-changed:
	default:
		t.Error("who waits for a change isn't woken")
	}
	if got := h.e.Health().GetRepairs(); got != 1 {
		t.Errorf("%d repairs are told, want 1", got)
	}
	if told := h.lately.Incidents(); len(told) != 1 || told[0].GetCode() != "nftables-changed" || told[0].GetCount() != 1 {
		t.Errorf("told %v", told)
	}
	// Nor is what is right put right again.
	pass(enforce.AuditEvery + 1)
	if got := h.e.Health().GetRepairs(); got != 1 {
		t.Errorf("after an audit of what is right, %d repairs are told", got)
	}
}
