package operatorapi

import (
	"context"
	"net/netip"
	"slices"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/controlplane/internal/auth"
	"github.com/fleetban/fleetban/controlplane/internal/hosts"
	"github.com/fleetban/fleetban/controlplane/internal/sets"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

// explainedEvents is how many recent events an explanation shows.
const explainedEvents = 20

// Explain implements BanService.
func (a *API) Explain(ctx context.Context, req *connect.Request[operatorv1.ExplainRequest]) (*connect.Response[operatorv1.ExplainResponse], error) {
	p, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	address, err := parseAddress("address", req.Msg.GetAddress())
	if err != nil {
		return nil, err
	}
	found, err := a.o.Sets.Explain(ctx, p.Org, address)
	if err != nil {
		return nil, mapped(err)
	}
	v, err := a.view(ctx, p)
	if err != nil {
		return nil, mapped(err)
	}
	kept := explainedEvents
	if !p.Tags.Whole() {
		kept *= 50 // most may be others'
	}
	events, err := a.o.Sets.LatestEvents(ctx, p.Org, address, kept)
	if err != nil {
		return nil, mapped(err)
	}
	events = slices.DeleteFunc(events, func(e sets.FleetEvent) bool { return !v.event(e) })
	events = events[:min(len(events), explainedEvents)]
	entries := found.Entries
	found.Entries = nil
	for _, e := range entries {
		if seen, any := v.entry(e); any {
			found.Entries = append(found.Entries, seen)
		}
	}
	n := v.names
	answer := operatorv1.ExplainResponse_builder{Address: prefix.Format(address)}
	for _, e := range found.Entries {
		answer.Bans = append(answer.Bans, n.ban(e))
		answer.Banned = answer.Banned || e.Expires > 0 && !e.SuppressedBy.IsValid()
		for _, t := range e.Tombstones {
			answer.Tombstones = append(answer.Tombstones, tombstone(t))
		}
	}
	for _, e := range found.AllowedBy {
		answer.AllowedBy = append(answer.AllowedBy, allowed(e))
	}
	answer.Banned = answer.Banned && len(found.AllowedBy) == 0
	for _, e := range events {
		answer.Events = append(answer.Events, n.event(e))
	}
	if answer.Hosts, err = a.enforcement(ctx, p, n, found); err != nil {
		return nil, mapped(err)
	}
	return connect.NewResponse(answer.Build()), nil
}

// enforcement tells for each host whether it enforces a fleet ban that covers the address, and which of its jails have it.
func (a *API) enforcement(ctx context.Context, p auth.Principal, n names, found sets.Explanation) ([]*operatorv1.HostEnforcement, error) {
	bySet := map[string][]netip.Prefix{}
	jails := map[string][]string{}
	for _, e := range found.Entries {
		for _, c := range e.Claims {
			if c.Counts() && !slices.Contains(bySet[c.Set], e.Prefix) {
				bySet[c.Set] = append(bySet[c.Set], e.Prefix)
			}
			if c.Source == operatorv1.ClaimSource_CLAIM_SOURCE_JAIL && !slices.Contains(jails[c.HostID], c.Jail) {
				jails[c.HostID] = append(jails[c.HostID], c.Jail)
			}
		}
	}
	best := map[string]hosts.Standing{}
	var order []string
	if len(bySet) > 0 {
		states, err := a.o.Sets.States(ctx, p.Org)
		if err != nil {
			return nil, err
		}
		for set, prefixes := range bySet {
			standings, err := a.o.Hosts.StandingsWithin(ctx, p.Org, p.Tags, states.Set(set).Cursor.Proto(), packAll(prefixes))
			if err != nil {
				return nil, err
			}
			for _, s := range standings {
				before, seen := best[s.HostID]
				if !seen {
					order = append(order, s.HostID)
				}
				if !seen || rank(s.State) > rank(before.State) {
					best[s.HostID] = s
				}
			}
		}
	}
	// With no fleet ban, only the hosts matter that have it banned themselves.
	for id := range jails {
		if _, seen := best[id]; !seen {
			best[id] = hosts.Standing{HostID: id, Name: n[id]}
			order = append(order, id)
		}
	}
	slices.SortFunc(order, func(x, y string) int { return compareNames(best[x], best[y]) })
	out := make([]*operatorv1.HostEnforcement, 0, len(order))
	for _, id := range order {
		s := best[id]
		slices.Sort(jails[id])
		out = append(out, operatorv1.HostEnforcement_builder{
			HostId: s.HostID, HostName: s.Name, State: s.State, Refusal: s.Refusal, Inert: s.Inert, Jails: jails[id], SeenUnixMs: s.Seen,
		}.Build())
	}
	return out, nil
}

// rank orders what is told of a host that holds several sets which cover the address: that it enforces one, if it does.
func rank(s operatorv1.EnforcementState) int {
	return slices.Index([]operatorv1.EnforcementState{
		operatorv1.EnforcementState_ENFORCEMENT_STATE_OUT_OF_SCOPE, operatorv1.EnforcementState_ENFORCEMENT_STATE_OFFLINE,
		operatorv1.EnforcementState_ENFORCEMENT_STATE_PENDING, operatorv1.EnforcementState_ENFORCEMENT_STATE_REFUSED,
		operatorv1.EnforcementState_ENFORCEMENT_STATE_INERT, operatorv1.EnforcementState_ENFORCEMENT_STATE_ENFORCED,
	}, s)
}

func compareNames(a, b hosts.Standing) int {
	switch {
	case a.Name < b.Name:
		return -1
	case a.Name > b.Name:
		return 1
	default:
		return 0
	}
}
