package operatorapi

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/controlplane/internal/apierr"
	"github.com/fleetban/fleetban/controlplane/internal/auth"
	"github.com/fleetban/fleetban/controlplane/internal/hosts"
	"github.com/fleetban/fleetban/controlplane/internal/scope"
	"github.com/fleetban/fleetban/controlplane/internal/sets"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/banset"
)

// view is what a caller sees of an organisation: everything, or what is within their tags. Of a fleet ban that is in force
// on hosts within, the prefix and its end are seen, and of its claims those within: of jails of such hosts, and of people
// and rules where they are for such hosts or for every host.
type view struct {
	tags scope.Tags
	// names are the hosts' names by their ids, those that are seen.
	names names
}

// view reads what the caller sees.
func (a *API) view(ctx context.Context, p auth.Principal) (view, error) {
	known, err := a.o.Hosts.NamesWithin(ctx, p.Org, p.Tags)
	return view{tags: p.Tags, names: known}, err
}

// host finds one that the caller sees.
func (a *API) host(ctx context.Context, p auth.Principal, host string) (hosts.Identity, error) {
	return a.o.Hosts.FindWithin(ctx, p.Org, host, p.Tags)
}

// callersHost is who calls, and the host that a request names, where they see it.
func (a *API) callersHost(ctx context.Context, host string) (auth.Principal, hosts.Identity, error) {
	p, err := caller(ctx)
	if err != nil {
		return p, hosts.Identity{}, err
	}
	found, err := a.host(ctx, p, host)
	if err != nil {
		return p, found, mapped(err)
	}
	return p, found, nil
}

func (v view) host(id string) bool {
	_, is := v.names[id]
	return is
}

// claim reports whether a claim is seen.
func (v view) claim(c sets.Claim) bool {
	switch {
	case v.tags.Whole():
		return true
	case c.HostID != "":
		return v.host(c.HostID)
	default:
		return c.Set != "" && v.tags.Shows(c.Set)
	}
}

func (v view) tombstone(t sets.Tombstone) bool {
	if v.tags.Whole() || t.HostID == "" {
		return v.tags.Shows(t.Set)
	}
	return v.host(t.HostID)
}

// entry is what is seen of one; false where that is nothing.
func (v view) entry(e sets.Entry) (sets.Entry, bool) {
	if v.tags.Whole() {
		return e, true
	}
	seen := e
	seen.Claims, seen.Tombstones, seen.Expires = nil, nil, 0
	for _, c := range e.Claims {
		if c.Counts() && v.tags.Shows(c.Set) && sets.KindOf(c.Set) == sets.KindOf(banset.All) {
			seen.Expires = max(seen.Expires, c.Expires)
		}
		if v.claim(c) {
			seen.Claims = append(seen.Claims, c)
		}
	}
	for _, t := range e.Tombstones {
		if v.tombstone(t) {
			seen.Tombstones = append(seen.Tombstones, t)
		}
	}
	return seen, seen.Expires > 0 || len(seen.Claims) > 0 || len(seen.Tombstones) > 0
}

// keep selects for sets.List: entries with something in force or claimed within, and with a filter, where a claim that is
// seen fits.
func (v view) keep(in sets.ListInput) func(sets.Entry) bool {
	if v.tags.Whole() {
		return nil
	}
	return func(e sets.Entry) bool {
		seen, _ := v.entry(e)
		if in.Jail == "" && in.HostID == "" {
			return seen.Expires > 0 || in.IncludeUnpromoted && len(seen.Claims) > 0
		}
		return slices.ContainsFunc(seen.Claims, func(c sets.Claim) bool {
			return (in.Jail == "" || c.Jail == in.Jail) && (in.HostID == "" || c.HostID == in.HostID) && (c.Counts() || in.IncludeUnpromoted)
		})
	}
}

func (v view) event(e sets.FleetEvent) bool {
	switch {
	case v.tags.Whole():
		return true
	case e.HostID != "":
		return v.host(e.HostID)
	}
	switch e.Kind {
	case operatorv1.FleetEventKind_FLEET_EVENT_KIND_PAUSED, operatorv1.FleetEventKind_FLEET_EVENT_KIND_RESUMED,
		operatorv1.FleetEventKind_FLEET_EVENT_KIND_MODE, operatorv1.FleetEventKind_FLEET_EVENT_KIND_ALLOWED,
		operatorv1.FleetEventKind_FLEET_EVENT_KIND_DISALLOWED:
		// Of every host, and so of those within.
		return true
	default:
		// A person's unban may be of any set where it names none, and a notice of any host.
		return e.Set != "" && v.tags.Shows(e.Set)
	}
}

// covers are those of sets that are seen.
func (v view) covers(all []sets.Cover) []sets.Cover {
	if v.tags.Whole() {
		return all
	}
	return slices.DeleteFunc(slices.Clone(all), func(c sets.Cover) bool { return !v.tags.Shows(c.Set) })
}

// within restricts an unban; nil for the whole fleet.
func (v view) within() *sets.Within {
	if v.tags.Whole() {
		return nil
	}
	w := &sets.Within{Host: v.host}
	for _, tag := range v.tags {
		w.Sets = append(w.Sets, tag.Set())
	}
	return w
}

// checkBanScope refuses a ban for more hosts than the caller steers.
func checkBanScope(p auth.Principal, k, v string) error {
	if p.Tags.Whole() || k != "" && p.Tags.Names(k, v) {
		return nil
	}
	return apierr.New(connect.CodePermissionDenied, fleetbanv1.Reason_REASON_PERMISSION_DENIED, "tag",
		"you steer only hosts with "+strings.Join(p.Tags.Strings(), " or "), fmt.Sprintf("write for example --tag %s", p.Tags[0]))
}

// checkJoinScope refuses a join token for hosts that would be others' too, or not the caller's.
func checkJoinScope(p auth.Principal, tags map[string]string) error {
	if p.Tags.Whole() {
		return nil
	}
	for k, v := range tags {
		if !p.Tags.Names(k, v) {
			return joinScopeError(p)
		}
	}
	if len(tags) == 0 {
		return joinScopeError(p)
	}
	return nil
}

func joinScopeError(p auth.Principal) error {
	return apierr.New(connect.CodePermissionDenied, fleetbanv1.Reason_REASON_PERMISSION_DENIED, "tags",
		"you enrol only hosts with "+strings.Join(p.Tags.Strings(), " or "), fmt.Sprintf("write --tag %s, and no other tag", p.Tags[0]))
}
