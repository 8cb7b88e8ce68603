package operatorapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/controlplane/internal/apierr"
	"github.com/fleetban/fleetban/controlplane/internal/auth"
	"github.com/fleetban/fleetban/controlplane/internal/sets"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

// Ban implements BanService.
func (a *API) Ban(ctx context.Context, req *connect.Request[operatorv1.BanRequest]) (*connect.Response[operatorv1.BanResponse], error) {
	p, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	parsed, where, err := targets(ctx, req.Msg.GetPrefixes())
	if err != nil {
		return nil, err
	}
	if err := checkBannable(parsed, where); err != nil {
		return nil, err
	}
	set, k, v, err := parseTag(req.Msg.GetTag())
	if err != nil {
		return nil, err
	}
	if err := checkBanScope(p, k, v); err != nil {
		return nil, err
	}
	if k != "" {
		known, err := a.o.Hosts.HasTag(ctx, p.Org, k, v)
		if err != nil {
			return nil, mapped(err)
		}
		if !known {
			return nil, apierr.NotFound("tag", fmt.Sprintf("no host has the tag %s=%s", k, v), "fleetban hosts shows the tags that there are")
		}
	}
	result, err := a.o.Sets.Ban(ctx, p.Org, sets.BanInput{
		Prefixes: parsed, Set: set, Duration: time.Duration(req.Msg.GetDurationS()) * time.Second, Actor: p.Name, Reason: req.Msg.GetReason(),
	})
	if protected := (*sets.ProtectedError)(nil); errors.As(err, &protected) {
		return nil, a.protected(ctx, p, protected, where)
	}
	if err != nil {
		return nil, mapped(err)
	}
	answer := make([]*operatorv1.BannedPrefix, 0, len(result.Prefixes))
	for _, b := range result.Prefixes {
		answer = append(answer, operatorv1.BannedPrefix_builder{
			Prefix: prefix.Format(b.Prefix), Effect: b.Effect, SuppressedBy: formatValid(b.SuppressedBy),
		}.Build())
	}
	return connect.NewResponse(operatorv1.BanResponse_builder{
		Cursor: result.Cursor.Proto(), ExpiresUnixMs: result.Expires, Prefixes: answer,
	}.Build()), nil
}

// protected names the host whose address a ban would hit, and the address, to who sees that host.
func (a *API) protected(ctx context.Context, p auth.Principal, e *sets.ProtectedError, where map[netip.Prefix]int) error {
	whose, fix := "one of the fleet's own addresses", "leave it out, or ban the narrower prefixes beside it"
	owners, err := a.owners(ctx, p, e.By)
	if err != nil {
		a.o.Logger.WarnContext(ctx, "owner of a protected address not found", slog.Any("error", err))
	}
	switch {
	case len(owners) > 0:
		whose = prefix.Format(e.By) + ", an address of " + strings.Join(owners, " and ")
	case p.Tags.Whole():
		whose = prefix.Format(e.By) + ", " + whose
	default:
		// Whose it is isn't the caller's to know, nor where it is.
		fix = "leave it out"
	}
	return apierr.Wrap(e, connect.CodeInvalidArgument, fleetbanv1.Reason_REASON_PREFIX_PROTECTED, field(where[e.Prefix]),
		fmt.Sprintf("%s covers %s", prefix.Format(e.Prefix), whose), fix)
}

// owners are the names of the hosts that have an address, of those that the caller sees.
func (a *API) owners(ctx context.Context, p auth.Principal, address netip.Prefix) ([]string, error) {
	org := p.Org
	n, err := a.o.Hosts.NamesWithin(ctx, org, p.Tags)
	if err != nil {
		return nil, err
	}
	var out []string
	for token := ""; ; {
		page, err := a.o.Sets.List(ctx, org, sets.ListInput{PageSize: 5000, PageToken: token, Kind: fleetbanv1.SetKind_SET_KIND_PROTECT})
		if err != nil {
			return nil, err
		}
		for _, e := range page.Entries {
			if e.Prefix == address {
				for _, c := range e.Claims {
					out = append(out, n[c.HostID])
				}
			}
		}
		if token = page.NextPageToken; token == "" {
			return slices.DeleteFunc(out, func(s string) bool { return s == "" }), nil
		}
	}
}

// Unban implements BanService.
func (a *API) Unban(ctx context.Context, req *connect.Request[operatorv1.UnbanRequest]) (*connect.Response[operatorv1.UnbanResponse], error) {
	p, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	parsed, _, err := targets(ctx, req.Msg.GetPrefixes())
	if err != nil {
		return nil, err
	}
	v, err := a.view(ctx, p)
	if err != nil {
		return nil, mapped(err)
	}
	result, err := a.o.Sets.Unban(ctx, p.Org, sets.UnbanInput{Prefixes: parsed, Actor: p.Name, Reason: req.Msg.GetReason(), Within: v.within()})
	if err != nil {
		return nil, mapped(err)
	}
	n := v.names
	answer := operatorv1.UnbanResponse_builder{}
	for _, c := range result.Cursors {
		if v.tags.Shows(c.Set) {
			answer.Cursors = append(answer.Cursors, c.Proto())
		}
	}
	for _, u := range result.Prefixes {
		b := operatorv1.UnbannedPrefix_builder{Prefix: prefix.Format(u.Prefix), Retracted: n.claims(u.Retracted)}
		for _, id := range claimingHosts(u.Retracted) {
			if slices.Contains(result.Ordered, id) {
				b.OrderedHosts = append(b.OrderedHosts, n[id])
			}
		}
		for _, c := range v.covers(u.StillCoveredBy) {
			b.StillCoveredBy = append(b.StillCoveredBy, operatorv1.Cover_builder{Prefix: prefix.Format(c.Prefix), Set: c.Set, ExpiresUnixMs: c.Expires}.Build())
		}
		answer.Prefixes = append(answer.Prefixes, b.Build())
	}
	return connect.NewResponse(answer.Build()), nil
}

// claimingHosts are the hosts whose jails claimed, each once.
func claimingHosts(claims []sets.Claim) []string {
	var out []string
	for _, c := range claims {
		if c.Source == operatorv1.ClaimSource_CLAIM_SOURCE_JAIL && c.HostID != "" && !slices.Contains(out, c.HostID) {
			out = append(out, c.HostID)
		}
	}
	return out
}

// ListBans implements BanService.
func (a *API) ListBans(ctx context.Context, req *connect.Request[operatorv1.ListBansRequest]) (*connect.Response[operatorv1.ListBansResponse], error) {
	p, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	in := sets.ListInput{
		PageSize: int(req.Msg.GetPageSize()), PageToken: req.Msg.GetPageToken(), Kind: fleetbanv1.SetKind_SET_KIND_BAN,
		IncludeUnpromoted: req.Msg.GetIncludeUnpromoted(), Jail: req.Msg.GetJail(),
	}
	if req.Msg.GetHost() != "" {
		host, err := a.host(ctx, p, req.Msg.GetHost())
		if err != nil {
			return nil, mapped(err)
		}
		in.HostID = host.ID
	}
	v, err := a.view(ctx, p)
	if err != nil {
		return nil, mapped(err)
	}
	in.Keep = v.keep(in)
	result, err := a.o.Sets.List(ctx, p.Org, in)
	if err != nil {
		return nil, mapped(err)
	}
	if !p.Tags.Whole() {
		if result.Total, err = a.bansWithin(ctx, p); err != nil {
			return nil, mapped(err)
		}
	}
	bans := make([]*operatorv1.FleetBan, 0, len(result.Entries))
	for _, e := range result.Entries {
		seen, _ := v.entry(e)
		bans = append(bans, v.names.ban(seen))
	}
	return connect.NewResponse(operatorv1.ListBansResponse_builder{Bans: bans, NextPageToken: result.NextPageToken, Total: result.Total}.Build()), nil
}

// bansWithin is how many fleet bans are in force in the sets that the caller sees.
func (a *API) bansWithin(ctx context.Context, p auth.Principal) (uint64, error) {
	states, err := a.o.Sets.States(ctx, p.Org)
	if err != nil {
		return 0, err
	}
	total := uint64(0)
	for _, s := range states.Sets {
		if s.Kind == fleetbanv1.SetKind_SET_KIND_BAN && p.Tags.Shows(s.Cursor.Set) {
			total += s.Records
		}
	}
	return total, nil
}

// WatchReceipts implements BanService.
func (a *API) WatchReceipts(
	ctx context.Context, req *connect.Request[operatorv1.WatchReceiptsRequest], stream *connect.ServerStream[operatorv1.WatchReceiptsResponse],
) error {
	p, err := caller(ctx)
	if err != nil {
		return err
	}
	parsed, _, err := parsePrefixes(req.Msg.GetPrefixes())
	if err != nil {
		return err
	}
	states, err := a.o.Sets.States(ctx, p.Org)
	if err != nil {
		return mapped(err)
	}
	// No host can ever acknowledge a version that isn't: waiting for it would not end.
	cursor := req.Msg.GetCursor()
	if state := states.Set(cursor.GetSet()); !p.Tags.Shows(cursor.GetSet()) || cursor.GetEpoch() > states.Epoch || cursor.GetEpoch() == states.Epoch && cursor.GetVersion() > state.Cursor.Version {
		return apierr.Invalid("cursor", fmt.Sprintf("the set %q has no version %d", cursor.GetSet(), cursor.GetVersion()),
			"pass the cursor that Ban, Unban or Allow answered, as it is")
	}
	ctx, cancel := a.streaming(ctx)
	defer cancel()
	bell, release := a.bell(p.Org)
	defer release()
	return ended(ctx, a.o.Hosts.WatchReceiptsWithin(ctx, p.Org, p.Tags, cursor, packAll(parsed), bell, stream.Send))
}
