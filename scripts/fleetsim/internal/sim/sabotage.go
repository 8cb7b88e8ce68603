package sim

import (
	"context"
	"fmt"
	"net/netip"
	"time"

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

// Sabotages are all of them.
func Sabotages() []string {
	return []string{SabotageDelta, SabotageUnban, SabotageTwice, SabotageNever, SabotageSilent}
}

// sabotage does the harm, once scenarios are over: what came later might mend it.
func (f *fleet) sabotage(ctx context.Context) error {
	for i, fault := range f.o.Sabotage {
		h, p := f.members()[i], f.prefix()
		switch fault {
		case SabotageDelta:
			h.SetSabotage(host.DropDelta)
			if _, err := f.order(ctx, long, p); err != nil {
				return err
			}
		case SabotageUnban:
			if _, err := f.order(ctx, long, p); err != nil {
				return err
			}
			if err := f.settle(ctx, f.o.SettleWithin); err != nil {
				return err
			}
			h.SetSabotage(host.KeepRetracted)
			if err := f.lift(ctx, p); err != nil {
				return err
			}
		case SabotageTwice:
			f.observe(h, jailLocal, p, long, nil)
			h.Repeat(jailLocal, p)
		case SabotageNever:
			f.ledger.ordered(p, time.Now().Add(long).UnixMilli())
		case SabotageSilent:
			f.ledger.event(eventKey{h.ID, operatorv1.FleetEventKind_FLEET_EVENT_KIND_OBSERVED, p, jailOne})
		default:
		}
	}
	return nil
}

// scripts is how many scripts Redis has run.
func (f *fleet) scripts(ctx context.Context) float64 {
	info, err := f.plane.RedisInfo(ctx, "commandstats")
	if err != nil {
		return 0
	}
	var n float64
	if _, err := fmt.Sscanf(info["cmdstat_evalsha"], "calls=%f", &n); err != nil {
		return 0
	}
	return n
}

// commanded notes that a host's fail2ban lifted a ban by order of the fleet, and is about to tell of that.
func (f *fleet) commanded(h *host.Host, jail string, p netip.Prefix) {
	f.ledger.event(eventKey{h.ID, operatorv1.FleetEventKind_FLEET_EVENT_KIND_OBSERVED_UNBAN, p, jail})
}
