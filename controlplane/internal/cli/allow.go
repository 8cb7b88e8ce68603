package cli

import (
	"strings"
	"time"

	"connectrpc.com/connect"

	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

type allowCmd struct {
	Prefixes []string `arg:"" name:"prefix" help:"What is never to be banned."`
	For      Duration `help:"For how long; without it, for ever."`
	Reason   string   `help:"Why, for whoever looks."`
	waiting
}

func (a *allowCmd) run(r *run) error {
	began := r.env.Now()
	ctx, cancel := r.call()
	defer cancel()
	res, err := r.api.allow.Allow(ctx, connect.NewRequest(operatorv1.AllowRequest_builder{
		Prefixes: a.Prefixes, DurationS: int64(time.Duration(a.For).Seconds()), Reason: a.Reason,
	}.Build()))
	if err != nil {
		return err
	}
	if r.out.people() {
		lasts := "for ever"
		if a.For > 0 {
			lasts = "for " + span(time.Duration(a.For))
		}
		r.out.line("%s allowed %s", safe(strings.Join(a.Prefixes, ", ")), lasts)
		r.affected("exempts", res.Msg.GetSuppresses())
	}
	return r.concluded(r.follow(a.waiting, began, []*fleetbanv1.SetCursor{res.Msg.GetCursor()}, nil), "allow", raw(res.Msg), "in force", false)
}

type disallowCmd struct {
	Prefixes []string `arg:"" name:"prefix" help:"What to take off the allowlist."`
	waiting
}

func (d *disallowCmd) run(r *run) error {
	began := r.env.Now()
	ctx, cancel := r.call()
	defer cancel()
	res, err := r.api.allow.Disallow(ctx, connect.NewRequest(operatorv1.DisallowRequest_builder{Prefixes: d.Prefixes}.Build()))
	if err != nil {
		return err
	}
	if r.out.people() {
		r.out.line("%s taken off the allowlist", safe(strings.Join(d.Prefixes, ", ")))
		r.affected("bans again", res.Msg.GetReinstates())
	}
	return r.concluded(r.follow(d.waiting, began, []*fleetbanv1.SetCursor{res.Msg.GetCursor()}, nil), "disallow", raw(res.Msg), "in force", false)
}

func (r *run) affected(verb string, prefixes []string) {
	if len(prefixes) > 0 {
		r.out.line("  %s %s", verb, safe(strings.Join(prefixes, ", ")))
	}
}

type allowedCmd struct{}

func (allowedCmd) run(r *run) error {
	var all []*operatorv1.AllowedPrefix
	for token := ""; ; {
		ctx, cancel := r.call()
		res, err := r.api.allow.ListAllowed(ctx, connect.NewRequest(operatorv1.ListAllowedRequest_builder{PageSize: pageSize, PageToken: token}.Build()))
		cancel()
		if err != nil {
			return err
		}
		all = append(all, res.Msg.GetAllowed()...)
		if token = res.Msg.GetNextPageToken(); token == "" {
			break
		}
	}
	if !r.out.people() {
		list(r.out, operatorv1.ListAllowedResponse_builder{Allowed: all}.Build(), all)
		return nil
	}
	if len(all) == 0 {
		r.out.line("The allowlist is empty.")
		return nil
	}
	rows := make([][]cell, 0, len(all))
	for _, a := range all {
		rows = append(rows, []cell{
			c(a.GetPrefix()), c(r.out.clock.in(a.GetExpiresUnixMs())), c(a.GetActor()), c(r.out.clock.ago(a.GetSinceUnixMs())), c(a.GetReason()),
		})
	}
	r.out.table([]string{"PREFIX", "ENDS", "BY", "SINCE", "WHY"}, rows)
	return nil
}
