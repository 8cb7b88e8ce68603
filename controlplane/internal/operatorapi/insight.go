package operatorapi

import (
	"context"
	"errors"
	"time"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/controlplane/internal/apierr"
	"github.com/fleetban/fleetban/controlplane/internal/insight"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

const (
	usualWindow = time.Hour
	leastWindow = time.Minute
)

// GetActivity implements InsightService.
func (a *API) GetActivity(
	ctx context.Context, req *connect.Request[operatorv1.GetActivityRequest],
) (*connect.Response[operatorv1.GetActivityResponse], error) {
	p, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	window := usualWindow
	if s := req.Msg.GetWindowS(); s != 0 {
		window = max(time.Duration(s)*time.Second, leastWindow)
	}
	v, err := a.view(ctx, p)
	if err != nil {
		return nil, mapped(err)
	}
	states, err := a.o.Sets.States(ctx, p.Org)
	if err != nil {
		return nil, mapped(err)
	}
	activity, err := a.o.Insight.Activity(ctx, p.Org, window, states.Now, v.event)
	if err != nil {
		return nil, mapped(err)
	}
	answer := operatorv1.GetActivityResponse_builder{
		FromUnixMs: activity.From, StepMs: activity.Step, KeptSinceUnixMs: activity.KeptSince,
		Jails: tallies(activity.Jails), Addresses: tallies(activity.Addresses),
	}
	for _, b := range activity.Buckets {
		answer.Buckets = append(answer.Buckets, operatorv1.ActivityBucket_builder{Observed: b.Observed, Banned: b.Banned, Unbanned: b.Unbanned}.Build())
	}
	for _, t := range activity.Hosts {
		if name, known := v.names[t.Name]; known {
			answer.Hosts = append(answer.Hosts, operatorv1.Tally_builder{Name: name, Count: t.Count}.Build())
		}
	}
	return connect.NewResponse(answer.Build()), nil
}

func tallies(of []insight.Tally) []*operatorv1.Tally {
	out := make([]*operatorv1.Tally, 0, len(of))
	for _, t := range of {
		out = append(out, operatorv1.Tally_builder{Name: t.Name, Count: t.Count}.Build())
	}
	return out
}

// SearchBans implements InsightService.
func (a *API) SearchBans(ctx context.Context, req *connect.Request[operatorv1.SearchBansRequest]) (*connect.Response[operatorv1.SearchBansResponse], error) {
	p, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	q := insight.Search{
		Text: req.Msg.GetText(), Jail: req.Msg.GetJail(), Actor: req.Msg.GetActor(), IncludeUnpromoted: req.Msg.GetIncludeUnpromoted(),
		Order: req.Msg.GetOrder(), Descending: req.Msg.GetDescending(), PageSize: int(req.Msg.GetPageSize()), PageToken: req.Msg.GetPageToken(),
	}
	if host := req.Msg.GetHost(); host != "" {
		found, err := a.host(ctx, p, host)
		if err != nil {
			return nil, mapped(err)
		}
		q.HostID = found.ID
	}
	v, err := a.view(ctx, p)
	if err != nil {
		return nil, mapped(err)
	}
	q.See = v.entry
	result, err := a.o.Insight.Bans(ctx, p.Org, q)
	switch {
	case errors.Is(err, insight.ErrToken):
		return nil, apierr.Invalid("page_token", "the page token is of another search, or none of ours", "begin at the first page")
	case errors.Is(err, insight.ErrTooMany):
		return nil, apierr.Wrap(err, connect.CodeFailedPrecondition, fleetbanv1.Reason_REASON_INVALID_FIELD, "",
			"there are more bans than can be searched and sorted (300,000)", "list them in pages: fleetban bans; or explain one address")
	case err != nil:
		return nil, mapped(err)
	}
	answer := operatorv1.SearchBansResponse_builder{NextPageToken: result.NextPageToken, Matching: result.Matching, Total: result.Total}
	for _, e := range result.Entries {
		answer.Bans = append(answer.Bans, v.names.ban(e))
	}
	return connect.NewResponse(answer.Build()), nil
}
