package operatorapi

import (
	"github.com/fleetban/fleetban/controlplane/internal/sets"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

// names are the hosts' names by their ids.
type names map[string]string

func (n names) claim(c sets.Claim) *operatorv1.Claim {
	return operatorv1.Claim_builder{
		Source: c.Source, HostId: c.HostID, HostName: n[c.HostID], Jail: c.Jail, Actor: c.Actor, Reason: c.Reason,
		SinceUnixMs: c.Since, ExpiresUnixMs: c.Expires, Set: c.Set, Unpromoted: c.Unpromoted, Failures: c.Failures,
	}.Build()
}

func (n names) claims(all []sets.Claim) []*operatorv1.Claim {
	out := make([]*operatorv1.Claim, 0, len(all))
	for _, c := range all {
		out = append(out, n.claim(c))
	}
	return out
}

func (n names) ban(e sets.Entry) *operatorv1.FleetBan {
	return operatorv1.FleetBan_builder{
		Prefix: prefix.Format(e.Prefix), ExpiresUnixMs: e.Expires, Claims: n.claims(e.Claims), SuppressedBy: formatValid(e.SuppressedBy),
	}.Build()
}

func (n names) event(e sets.FleetEvent) *operatorv1.FleetEvent {
	return operatorv1.FleetEvent_builder{
		Id: e.ID, AtUnixMs: e.At, Kind: e.Kind, Prefix: formatValid(e.Prefix), HostId: e.HostID, HostName: n[e.HostID], Jail: e.Jail,
		Actor: e.Actor, Reason: e.Reason, ExpiresUnixMs: e.Expires, Unpromoted: e.Unpromoted,
	}.Build()
}

// allowed is an entry of the allowlist; of several claims on it, the one that lasts longest.
func allowed(e sets.Entry) *operatorv1.AllowedPrefix {
	var longest sets.Claim
	for _, c := range e.Claims {
		if c.Expires >= longest.Expires {
			longest = c
		}
	}
	return operatorv1.AllowedPrefix_builder{
		Prefix: prefix.Format(e.Prefix), Reason: longest.Reason, Actor: longest.Actor, SinceUnixMs: longest.Since, ExpiresUnixMs: longest.Expires,
	}.Build()
}

func tombstone(t sets.Tombstone) *operatorv1.Tombstone {
	return operatorv1.Tombstone_builder{Prefix: prefix.Format(t.Prefix), AtUnixMs: t.At, ExpiresUnixMs: t.Expires, Actor: t.Actor}.Build()
}
