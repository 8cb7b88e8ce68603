package cli

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"connectrpc.com/connect"

	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
)

type statusCmd struct{}

func (statusCmd) run(r *run) error {
	ctx, cancel := r.call()
	defer cancel()
	res, err := r.api.fleet.GetFleet(ctx, connect.NewRequest(&operatorv1.GetFleetRequest{}))
	if err != nil {
		return err
	}
	if !r.out.people() {
		r.out.json(res.Msg)
		return nil
	}
	m, clock := res.Msg, r.out.clock
	mode := "enforce: what a host bans is banned on all"
	if m.GetMode() == modeWatch {
		mode = r.out.paint(warn, "watch") + ": what hosts ban stays there (fleetban mode enforce)"
	}
	paused := ""
	if m.GetPausedUntilUnixMs() > m.GetServerUnixMs() {
		paused = r.out.paint(warn, "enforcement is paused") + " until " + clock.when(m.GetPausedUntilUnixMs()) + " (fleetban resume)"
	}
	online := fmt.Sprintf("%d of %d online", m.GetHostsOnline(), m.GetHosts())
	if m.GetHostsOnline() < m.GetHosts() {
		online = r.out.paint(warn, online)
	}
	durability := map[string]string{
		"always": "an acknowledged ban is on disk", "replicated": "an acknowledged ban is on more than one Redis",
		"everysec": r.out.paint(warn, "the last second of acknowledged bans can be lost with Redis"),
		"none":     r.out.paint(wrong, "acknowledged bans can be lost with Redis"),
	}[m.GetDurability()]
	rebuild := ""
	if m.GetRebuildUntilUnixMs() > m.GetServerUnixMs() {
		rebuild = r.out.paint(warn, "hosts are asked what they hold, as after each start or loss of Redis") + ", until " + clock.when(m.GetRebuildUntilUnixMs())
	}
	r.out.facts(
		[2]string{"organisation", safe(m.GetOrganisationName())},
		[2]string{"hosts", online},
		[2]string{"bans", fmt.Sprint(m.GetBans())},
		[2]string{"mode", mode},
		[2]string{"paused", paused},
		[2]string{"redis", strings.Join(nonEmpty(safe(m.GetDurability()), durability), ": ")},
		[2]string{"rebuild", rebuild},
	)
	if sets := m.GetSets(); len(sets) > 0 {
		rows := make([][]cell, 0, len(sets))
		for _, s := range sets {
			rows = append(rows, []cell{
				c(s.GetCursor().GetSet()), c(enumText(s.GetKind().String(), "SET_KIND_")), c(fmt.Sprint(s.GetRecords())),
				c(fmt.Sprint(s.GetCursor().GetVersion())), c(fmt.Sprintf("%016x", s.GetCursor().GetDigest())),
			})
		}
		r.out.line("")
		r.out.table([]string{"SET", "KIND", "RECORDS", "VERSION", "DIGEST"}, rows)
	}
	return nil
}

type watchCmd struct {
	Would bool   `help:"Only what watch mode would have banned fleet-wide."`
	After string `placeholder:"ID" help:"Begin after this event, as -o json shows its id."`
}

// run follows the events for ever, over restarts of the control plane, without a gap or saying so where there is one.
func (w *watchCmd) run(r *run) error {
	after, wait := w.After, time.Duration(0)
	if r.out.people() {
		_, _ = fmt.Fprintln(r.env.Stderr, "Watching; Ctrl-C ends it.")
	}
	for {
		began := r.env.Now()
		last, err := w.follow(r, after)
		after = last
		switch {
		case r.ctx.Err() != nil:
			return nil //nolint:nilerr // a person's Ctrl-C is how a watch ends
		case r.out.err != nil:
			return r.out.err
		case err != nil && !again(err):
			return err
		}
		if r.env.Now().Sub(began) > 10*time.Second {
			wait = 0
		}
		wait = min(max(2*wait, 250*time.Millisecond), 10*time.Second)
		if err != nil {
			_, _ = fmt.Fprintln(r.env.Stderr, "fleetban: "+escape(explain(err, r.g.URL).message, 2000)+"; trying again")
		}
		select {
		case <-r.ctx.Done():
			return nil
		case <-time.After(wait/2 + rand.N(wait/2)): //nolint:gosec // spreads load, guards nothing
		}
	}
}

// again: the stream may be taken up; other failures would only repeat.
func again(err error) bool {
	switch connect.CodeOf(err) {
	case connect.CodeUnavailable, connect.CodeDeadlineExceeded, connect.CodeAborted, connect.CodeCanceled:
		f := explain(err, "")
		return f.code == exitUnavailable || f.code == exitFailed
	default:
		return false
	}
}

// follow shows one stream and returns the last event's id.
func (w *watchCmd) follow(r *run, after string) (string, error) {
	ctx, cancel := context.WithCancel(r.ctx)
	defer cancel()
	stream, err := r.api.fleet.Watch(ctx, connect.NewRequest(operatorv1.WatchRequest_builder{After: after, Would: w.Would}.Build()))
	if err != nil {
		return after, err
	}
	defer func() { _ = stream.Close() }()
	for stream.Receive() {
		m := stream.Msg()
		if m.GetGap() && r.out.people() {
			r.out.line("%s", r.out.paint(warn, "… events before this one were dropped: this watch was away too long"))
		}
		if id := m.GetEvent().GetId(); id != "" {
			after = id
		}
		if m.HasEvent() {
			r.showEvent(m)
		}
		if r.out.err != nil {
			return after, nil
		}
	}
	// With no event yet, go on from where the stream began.
	if after == "" {
		after = stream.ResponseHeader().Get("Fleetban-After")
	}
	return after, stream.Err()
}

func (r *run) showEvent(m *operatorv1.WatchResponse) {
	if !r.out.people() {
		before := r.out.format
		r.out.format = "jsonl" // a stream is lines, in json too
		r.out.json(m)
		r.out.format = before
		return
	}
	r.out.clock.now = r.env.Now()
	row := r.eventRow(m.GetEvent())
	row[0].text = time.UnixMilli(m.GetEvent().GetAtUnixMs()).In(r.out.clock.now.Location()).Format("15:04:05.000")
	var parts []string
	for _, field := range row {
		if field.text != "" {
			parts = append(parts, r.out.paint(field.colour, safe(field.text)))
		}
	}
	r.out.line("%s", strings.Join(parts, "  "))
}

// eventRow is when, what, prefix, who, more.
func (r *run) eventRow(e *operatorv1.FleetEvent) []cell {
	what := painted(plain, strings.ToLower(enumText(e.GetKind().String(), "FLEET_EVENT_KIND_")))
	var more []string
	switch e.GetKind() {
	case operatorv1.FleetEventKind_FLEET_EVENT_KIND_OBSERVED, operatorv1.FleetEventKind_FLEET_EVENT_KIND_OBSERVED_EXTENSION:
		if e.GetUnpromoted() != 0 {
			more = append(more, "stays local: "+unpromotedText(e.GetUnpromoted()))
		}
	case operatorv1.FleetEventKind_FLEET_EVENT_KIND_BANNED:
		what.colour = wrong
		if e.GetExpiresUnixMs() > 0 {
			more = append(more, "until "+r.until(e.GetExpiresUnixMs()))
		}
	case operatorv1.FleetEventKind_FLEET_EVENT_KIND_UNBANNED, operatorv1.FleetEventKind_FLEET_EVENT_KIND_HOST_ONLINE:
		what.colour = good
	case operatorv1.FleetEventKind_FLEET_EVENT_KIND_HOST_OFFLINE, operatorv1.FleetEventKind_FLEET_EVENT_KIND_HOST_CLONED,
		operatorv1.FleetEventKind_FLEET_EVENT_KIND_PAUSED, operatorv1.FleetEventKind_FLEET_EVENT_KIND_NOTICE:
		what.colour = warn
	default:
	}
	if e.GetReason() != "" {
		more = append(more, e.GetReason())
	}
	who := cmp.Or(e.GetHostName(), e.GetHostId())
	if e.GetJail() != "" {
		who = e.GetJail() + "@" + who
	}
	return []cell{c(r.out.clock.ago(e.GetAtUnixMs())), what, c(e.GetPrefix()), c(cmp.Or(who, e.GetActor())), c(strings.Join(more, "; "))}
}

func (r *run) until(ms int64) string {
	if ms >= never {
		return "further notice"
	}
	return r.out.clock.when(ms)
}

type joinTokenCmd struct {
	Create joinCreateCmd `cmd:"" help:"Make a join token and print the line that enrols a host."`
	List   joinListCmd   `cmd:"" help:"List join tokens."`
	Revoke joinRevokeCmd `cmd:"" help:"End a join token; hosts that it enrolled stay."`
}

type joinCreateCmd struct {
	For  Duration          `default:"24h" help:"How long it lives, 1m to 366d."`
	Uses uint32            `default:"1" help:"How many hosts it may enrol."`
	Tag  map[string]string `placeholder:"k=v" help:"Tags of the hosts it enrols; may be repeated."`
	Note string            `help:"What it is for."`

	Ephemeral Duration `placeholder:"1h" help:"Delete the hosts it enrols when they were offline for so long, 1m to 30d."`
	Host      string   `placeholder:"NAME" help:"Enrol this host again, once, with a new key: its disk was replaced, or its key lost."`
}

func (j *joinCreateCmd) run(r *run) error {
	ctx, cancel := r.call()
	defer cancel()
	res, err := r.api.join.CreateJoinToken(ctx, connect.NewRequest(operatorv1.CreateJoinTokenRequest_builder{
		DurationS: int64(time.Duration(j.For).Seconds()), Uses: j.Uses, Tags: j.Tag, Note: j.Note,
		EphemeralS: int64(time.Duration(j.Ephemeral).Seconds()), Host: j.Host,
	}.Build()))
	if err != nil {
		return err
	}
	if !r.out.people() {
		r.out.json(res.Msg)
		return nil
	}
	token := res.Msg.GetJoinToken()
	r.out.line("Paste this on a host, as root; it asks for the token:")
	r.out.line("")
	r.out.line("  %s", escape(res.Msg.GetInstallLine(), 2000))
	r.out.line("")
	r.out.line("Join token (shown once): %s", safe(res.Msg.GetSecret()))
	if j.Host != "" {
		r.out.line("For %s again, which gets a new key by it, until %s.", safe(j.Host), r.out.clock.when(token.GetExpiresUnixMs()))
		return nil
	}
	r.out.line("For %s, until %s.", plural(uint64(token.GetUses()), "host", "hosts"), r.out.clock.when(token.GetExpiresUnixMs()))
	return nil
}

type joinListCmd struct{}

func (joinListCmd) run(r *run) error {
	ctx, cancel := r.call()
	defer cancel()
	res, err := r.api.join.ListJoinTokens(ctx, connect.NewRequest(&operatorv1.ListJoinTokensRequest{}))
	if err != nil {
		return err
	}
	tokens := res.Msg.GetJoinTokens()
	switch {
	case !r.out.people():
		list(r.out, res.Msg, tokens)
	case len(tokens) == 0:
		r.out.line("There is no join token.")
	default:
		rows := make([][]cell, 0, len(tokens))
		for _, t := range tokens {
			rows = append(rows, []cell{
				c(t.GetId()), c(fmt.Sprintf("%d of %d", t.GetUsesLeft(), t.GetUses())), c(r.out.clock.in(t.GetExpiresUnixMs())), c(tags(t.GetTags())),
				c(t.GetActor()), c(t.GetNote()),
			})
		}
		r.out.table([]string{"ID", "USES LEFT", "ENDS", "TAGS", "BY", "NOTE"}, rows)
	}
	return nil
}

type joinRevokeCmd struct {
	ID string `arg:"" name:"id" help:"As list shows it."`
}

func (j *joinRevokeCmd) run(r *run) error {
	ctx, cancel := r.call()
	defer cancel()
	// The whole secret means its token; its beginning is enough to say which, and the rest isn't sent about.
	id := j.ID
	if len(id) > 12 && strings.HasPrefix(id, "fbj_") {
		id = id[:12]
	}
	res, err := r.api.join.RevokeJoinToken(ctx, connect.NewRequest(operatorv1.RevokeJoinTokenRequest_builder{Id: id}.Build()))
	if err != nil {
		return err
	}
	return r.done(res.Msg, "Revoked.")
}
