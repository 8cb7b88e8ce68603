package sim

import (
	"context"
	"fmt"
	"net/netip"

	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	"github.com/fleetban/fleetban/scripts/fleetsim/internal/host"
)

// The faults that Options.Sabotage names. Each is of a kind that the product could have; a check that doesn't find them
// proves nothing.
const (
	// SabotageDelta: a host drops a delta and says that it has it.
	SabotageDelta = "delta"
	// SabotageUnban: a host goes on banning what was unbanned.
	SabotageUnban = "unban"
	// SabotageTwice: a host tells of a ban twice.
	SabotageTwice = "twice"
	// SabotageNever: a ban that the ledger knows of is told to nobody.
	SabotageNever = "never"
	// SabotageSilent: a host says nothing of a ban, and has it acknowledged.
	SabotageSilent = "silent"
)

// arm is called before scenarios begin: these faults lie in wait.
func (f *fleet) arm() {
	switch f.o.Sabotage {
	case SabotageDelta:
		f.members()[0].SetSabotage(host.DropDelta)
	case SabotageUnban:
		f.members()[0].SetSabotage(host.KeepRetracted)
	}
}

// sabotage is called when they are over.
func (f *fleet) sabotage() error {
	h, p := f.members()[0], f.prefix()
	switch f.o.Sabotage {
	case "", SabotageDelta, SabotageUnban:
	case SabotageTwice:
		f.observe(h, jailLocal, p, long, nil)
		h.Repeat(jailLocal, p)
	case SabotageNever:
		f.ledger.ordered(p, 1<<52)
	case SabotageSilent:
		f.ledger.event(eventKey{h.ID, operatorv1.FleetEventKind_FLEET_EVENT_KIND_OBSERVED, p, jailOne})
	default:
		return fmt.Errorf("there is no sabotage %q", f.o.Sabotage)
	}
	return nil
}

// reads is how many commands Redis has run, but for the simulator's own.
func (f *fleet) reads(ctx context.Context) float64 {
	info, err := f.plane.RedisInfo(ctx, "stats")
	if err != nil {
		return 0
	}
	var n float64
	if _, err := fmt.Sscan(info["total_commands_processed"], &n); err != nil {
		return 0
	}
	return n
}

// commanded notes that a host's fail2ban lifted a ban by order of the fleet, and is about to tell of that.
func (f *fleet) commanded(h *host.Host, jail string, p netip.Prefix) {
	f.ledger.event(eventKey{h.ID, operatorv1.FleetEventKind_FLEET_EVENT_KIND_OBSERVED_UNBAN, p, jail})
}
