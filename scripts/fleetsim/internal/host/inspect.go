package host

import (
	"net/netip"

	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/banset"
)

// Held is one set of a host, as a check sees it.
type Held struct {
	Epoch, Version uint64
	// Said is the digest that the host tells the control plane; Digest that of what it holds, computed anew.
	Said, Digest uint64
	// Records are what it holds, tombstones included. Not to be changed.
	Records []*Record
}

// Held is what the host holds of a set.
func (h *Host) Held(name string) Held {
	k := h.kernel
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.sets[name]
	if s == nil {
		return Held{}
	}
	out := Held{Epoch: s.epoch, Version: s.version, Said: s.digest}
	for _, e := range s.held.all {
		r := k.world.records.get(e.id)
		out.Records = append(out.Records, r)
		out.Digest ^= r.hash
	}
	return out
}

// At is how far the host follows a set.
func (h *Host) At(name string) (epoch, version, digest uint64) {
	h.kernel.mu.Lock()
	defer h.kernel.mu.Unlock()
	if s := h.kernel.sets[name]; s != nil {
		return s.epoch, s.version, s.digest
	}
	return 0, 0, 0
}

// enforced is how many prefixes are in the simulated kernel.
func (k *kernel) enforced() (n uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if s := k.sets[banset.All]; s != nil {
		return s.present
	}
	return 0
}

// OnCommand is told of each ban that a host's fail2ban lifted by order of the fleet. Set it before hosts start.
type OnCommand func(h *Host, jail string, p netip.Prefix)

func (w *World) unbannedBy(h *Host, jail string, p netip.Prefix) {
	if w.OnCommand != nil {
		w.OnCommand(h, jail, p)
	}
}

// Present is the kind of records that are in force.
const Present = fleetbanv1.RecordKind_RECORD_KIND_PRESENT

// Banned reports whether the host's fail2ban has a prefix banned in a jail.
func (h *Host) Banned(jail string, p netip.Prefix) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, ok := h.banned[jailed{jail, p}]
	return ok
}
