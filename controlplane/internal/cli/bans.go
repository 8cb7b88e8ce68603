package cli

import (
	"cmp"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"

	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

type bansCmd struct {
	Jail       string `help:"Only those that a jail of this name claims."`
	Host       string `help:"Only those that this host claims."`
	Unpromoted bool   `help:"Also what was observed and stays on its host."`
	Limit      int    `default:"500" help:"Show at most so many in a table; 0 shows all. JSON has all."`
}

func (b *bansCmd) run(r *run) error {
	var shown []*operatorv1.FleetBan
	var total uint64
	var more bool
	for token := ""; ; {
		ctx, cancel := r.call()
		res, err := r.api.bans.ListBans(ctx, connect.NewRequest(operatorv1.ListBansRequest_builder{
			PageSize: pageSize, PageToken: token, IncludeUnpromoted: b.Unpromoted, Jail: b.Jail, Host: b.Host,
		}.Build()))
		cancel()
		if err != nil {
			return err
		}
		total = res.Msg.GetTotal()
		if r.out.format == "jsonl" {
			list(r.out, nil, res.Msg.GetBans())
		} else {
			shown = append(shown, res.Msg.GetBans()...)
		}
		token = res.Msg.GetNextPageToken()
		more = b.Limit > 0 && len(shown) > b.Limit || b.Limit > 0 && len(shown) == b.Limit && token != ""
		if token == "" || r.out.people() && more || r.out.err != nil {
			break
		}
	}
	switch {
	case r.out.format == "jsonl":
	case r.out.format == "json":
		r.out.json(operatorv1.ListBansResponse_builder{Bans: shown, Total: total}.Build())
	case len(shown) == 0 && b.Jail == "" && b.Host == "":
		r.out.line("No fleet ban is in force.")
	case len(shown) == 0:
		r.out.line("None of those; %s in force in all.", plural(total, "fleet ban", "fleet bans"))
	default:
		if more {
			shown = shown[:b.Limit]
		}
		rows := make([][]cell, 0, len(shown))
		for _, ban := range shown {
			rows = append(rows, r.banRow(ban))
		}
		r.out.table([]string{"PREFIX", "ENDS", "BY", "SINCE", "WHY", "SCOPE"}, rows)
		if more {
			r.out.line("… and more: %s in force in all. --limit 0 shows them.", plural(total, "fleet ban", "fleet bans"))
		}
	}
	return nil
}

func (r *run) banRow(ban *operatorv1.FleetBan) []cell {
	var by, why, scope []string
	since := int64(0)
	for _, claim := range ban.GetClaims() {
		by = appendNew(by, claimant(claim))
		why = appendNew(why, cmp.Or(claim.GetReason(), claim.GetJail()))
		scope = appendNew(scope, claim.GetSet())
		if since == 0 || claim.GetSinceUnixMs() < since {
			since = claim.GetSinceUnixMs()
		}
	}
	ends := c(r.out.clock.in(ban.GetExpiresUnixMs()))
	switch {
	case ban.GetSuppressedBy() != "":
		ends = painted(warn, "allowed by "+ban.GetSuppressedBy())
	case ban.GetExpiresUnixMs() == 0:
		ends = painted(dim, "stays local")
	}
	return []cell{c(ban.GetPrefix()), ends, c(strings.Join(by, ", ")), c(r.out.clock.ago(since)), c(strings.Join(why, "; ")), c(strings.Join(scope, " "))}
}

func appendNew(all []string, s string) []string {
	if s == "" {
		return all
	}
	for _, have := range all {
		if have == s {
			return all
		}
	}
	return append(all, s)
}

// claimant is who wishes a ban: a host's jail, a person, a rule.
func claimant(claim *operatorv1.Claim) string {
	switch claim.GetSource() {
	case operatorv1.ClaimSource_CLAIM_SOURCE_JAIL:
		return claim.GetJail() + "@" + cmp.Or(claim.GetHostName(), claim.GetHostId())
	case operatorv1.ClaimSource_CLAIM_SOURCE_RECOVERED:
		return "recovered from hosts"
	default:
		return cmp.Or(claim.GetActor(), enumText(claim.GetSource().String(), "CLAIM_SOURCE_"))
	}
}

func enumText(name, prefix string) string {
	return strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(name, prefix)), "_", " ")
}

func unpacked(packed []byte) string {
	p, err := prefix.Unpack(packed)
	if err != nil {
		return "?"
	}
	return prefix.Format(p)
}

func seconds(s int64) string {
	if s < 0 {
		return "for ever"
	}
	return span(time.Duration(s) * time.Second)
}

type banCmd struct {
	Prefixes []string `arg:"" name:"prefix" help:"203.0.113.9, 203.0.113.0/24, 2001:db8::/64 …"`
	For      Duration `required:"" help:"For how long: 90s, 1h, 7d, at most 366d."`
	Reason   string   `help:"Why, for whoever looks."`
	Tag      string   `placeholder:"k=v" help:"Only on hosts with this tag."`
	waiting
}

// waiting is how long a change is followed to the hosts.
type waiting struct {
	Wait   Duration `default:"5s" help:"How long to wait for the hosts."`
	NoWait bool     `help:"Don't wait for the hosts."`
}

func (b *banCmd) run(r *run) error {
	began := r.env.Now()
	ctx, cancel := r.call()
	defer cancel()
	res, err := r.api.bans.Ban(ctx, connect.NewRequest(operatorv1.BanRequest_builder{
		Prefixes: b.Prefixes, DurationS: int64(time.Duration(b.For).Seconds()), Reason: b.Reason, Tag: b.Tag,
	}.Build()))
	if err != nil {
		return err
	}
	if r.out.people() {
		for _, p := range res.Msg.GetPrefixes() {
			r.out.line("%s", r.banSentence(p, time.Duration(b.For), res.Msg.GetExpiresUnixMs()))
		}
	}
	outcome := r.follow(b.waiting, began, []*fleetbanv1.SetCursor{res.Msg.GetCursor()}, prefixes(res.Msg.GetPrefixes()))
	return r.concluded(outcome, "ban", raw(res.Msg), "enforced", anySuppressed(res.Msg))
}

func (r *run) banSentence(p *operatorv1.BannedPrefix, d time.Duration, expires int64) string {
	name := safe(p.GetPrefix())
	lasts := fmt.Sprintf("for %s (until %s)", span(d), r.out.clock.when(expires))
	switch p.GetEffect() {
	case operatorv1.BannedPrefix_EFFECT_EXTENDED:
		return fmt.Sprintf("%s was banned, now %s", name, lasts)
	case operatorv1.BannedPrefix_EFFECT_UNCHANGED:
		return fmt.Sprintf("%s is banned for longer already; this ban is kept beside it", name)
	case operatorv1.BannedPrefix_EFFECT_SUPPRESSED:
		return fmt.Sprintf("%s: %s %s allows it (fleetban disallow %s)", name, r.out.paint(warn, "recorded, not enforced:"),
			safe(p.GetSuppressedBy()), safe(p.GetSuppressedBy()))
	default:
		return fmt.Sprintf("%s banned %s", name, lasts)
	}
}

func prefixes(banned []*operatorv1.BannedPrefix) []string {
	out := make([]string, 0, len(banned))
	for _, p := range banned {
		out = append(out, p.GetPrefix())
	}
	return out
}

func anySuppressed(res *operatorv1.BanResponse) bool {
	for _, p := range res.GetPrefixes() {
		if p.GetEffect() == operatorv1.BannedPrefix_EFFECT_SUPPRESSED {
			return true
		}
	}
	return false
}

type unbanCmd struct {
	Prefixes []string `arg:"" name:"prefix" help:"What to unban, as it was banned."`
	Reason   string   `help:"Why, for whoever looks."`
	waiting
}

func (u *unbanCmd) run(r *run) error {
	began := r.env.Now()
	ctx, cancel := r.call()
	defer cancel()
	res, err := r.api.bans.Unban(ctx, connect.NewRequest(operatorv1.UnbanRequest_builder{Prefixes: u.Prefixes, Reason: u.Reason}.Build()))
	if err != nil {
		return err
	}
	covered := false
	for _, p := range res.Msg.GetPrefixes() {
		covered = covered || len(p.GetStillCoveredBy()) > 0
		if r.out.people() {
			r.unbanSentences(p)
		}
	}
	outcome := r.follow(u.waiting, began, res.Msg.GetCursors(), nil)
	return r.concluded(outcome, "unban", raw(res.Msg), "lifted", covered)
}

func (r *run) unbanSentences(p *operatorv1.UnbannedPrefix) {
	name := safe(p.GetPrefix())
	if len(p.GetRetracted()) == 0 {
		r.out.line("%s itself was not banned", name)
	} else {
		var by []string
		for _, claim := range p.GetRetracted() {
			by = appendNew(by, claimant(claim))
		}
		r.out.line("%s unbanned: %s retracted (%s)", name, plural(uint64(len(p.GetRetracted())), "claim", "claims"), safe(strings.Join(by, ", ")))
	}
	if hosts := p.GetOrderedHosts(); len(hosts) > 0 {
		r.out.line("  ordered to unban it in their jails: %s", safe(strings.Join(hosts, ", ")))
	}
	for _, cover := range p.GetStillCoveredBy() {
		r.out.line("  %s by %s (%s), which ends %s", r.out.paint(warn, "still banned"), safe(cover.GetPrefix()), safe(cover.GetSet()),
			r.out.clock.in(cover.GetExpiresUnixMs()))
		r.out.line("  To exempt it alone: fleetban allow %s --for 1h", name)
	}
}

// concluded tells where the change is in force, and turns what is missing into the exit code.
func (r *run) concluded(o outcome, name string, answer json.RawMessage, done string, notWhole bool) error {
	if r.out.people() {
		r.showReceipts(o, done)
	} else {
		all := map[string]any{name: answer}
		if o.receipts != nil {
			all["receipts"], all["elapsedMs"] = raw(o.receipts), o.elapsed.Milliseconds()
		}
		r.out.json(all)
	}
	if o.err != nil {
		return o.err
	}
	if notWhole || o.receipts != nil && !everywhere(o.receipts) {
		return incomplete()
	}
	return nil
}

type explainCmd struct {
	Address string `arg:"" help:"An address or a prefix."`
}

func (e *explainCmd) run(r *run) error {
	ctx, cancel := r.call()
	defer cancel()
	res, err := r.api.bans.Explain(ctx, connect.NewRequest(operatorv1.ExplainRequest_builder{Address: e.Address}.Build()))
	if err != nil {
		return err
	}
	if !r.out.people() {
		r.out.json(res.Msg)
		return nil
	}
	r.showExplanation(res.Msg)
	return nil
}

func (r *run) showExplanation(m *operatorv1.ExplainResponse) {
	name := safe(m.GetAddress())
	switch {
	case m.GetBanned():
		r.out.line("%s is %s fleet-wide.", name, r.out.paint(wrong, "banned"))
	case len(m.GetAllowedBy()) > 0:
		r.out.line("%s is %s and not banned.", name, r.out.paint(good, "allowed"))
	default:
		r.out.line("%s is %s fleet-wide.", name, r.out.paint(good, "not banned"))
	}
	for _, allowed := range m.GetAllowedBy() {
		r.out.line("  allowed by %s (%s, %s), ends %s", safe(allowed.GetPrefix()), safe(cmp.Or(allowed.GetReason(), "no reason given")),
			safe(allowed.GetActor()), r.out.clock.in(allowed.GetExpiresUnixMs()))
	}
	if rows := r.claimRows(m.GetBans()); len(rows) > 0 {
		r.out.line("")
		r.out.table([]string{"PREFIX", "CLAIMED BY", "SINCE", "ENDS", "WHY", "FLEET-WIDE"}, rows)
	}
	for _, t := range m.GetTombstones() {
		r.out.line("")
		r.out.line("%s was unbanned by %s %s: older claims are refused until %s.", safe(t.GetPrefix()), safe(cmp.Or(t.GetActor(), "its host")),
			r.out.clock.ago(t.GetAtUnixMs()), r.out.clock.when(t.GetExpiresUnixMs()))
	}
	if rows := r.enforcementRows(m.GetHosts()); len(rows) > 0 {
		r.out.line("")
		r.out.table([]string{"HOST", "STATE", "WHY", "IN ITS JAILS", "SEEN"}, rows)
	}
	if events := m.GetEvents(); len(events) > 0 {
		r.out.line("")
		rows := make([][]cell, 0, len(events))
		for _, event := range events {
			rows = append(rows, r.eventRow(event))
		}
		r.out.table([]string{"WHEN", "WHAT", "PREFIX", "WHO", "MORE"}, rows)
	}
}

func (r *run) claimRows(bans []*operatorv1.FleetBan) [][]cell {
	var rows [][]cell
	for _, ban := range bans {
		for _, claim := range ban.GetClaims() {
			why := cmp.Or(claim.GetReason(), claim.GetJail())
			if claim.GetFailures() > 0 {
				why += fmt.Sprintf(" (%s)", plural(uint64(claim.GetFailures()), "failure", "failures"))
			}
			state := painted(good, "yes ("+claim.GetSet()+")")
			switch {
			case claim.GetUnpromoted() != 0:
				state = painted(dim, "no: "+unpromotedText(claim.GetUnpromoted()))
			case ban.GetSuppressedBy() != "":
				state = painted(warn, "no: allowed by "+ban.GetSuppressedBy())
			case claim.GetSet() == "":
				state = painted(dim, "no")
			}
			rows = append(rows, []cell{
				c(ban.GetPrefix()), c(claimant(claim)), c(r.out.clock.ago(claim.GetSinceUnixMs())), c(r.out.clock.in(claim.GetExpiresUnixMs())), c(why), state,
			})
		}
	}
	return rows
}

func unpromotedText(u operatorv1.Unpromoted) string {
	switch u {
	case operatorv1.Unpromoted_UNPROMOTED_WATCH_MODE:
		return "the fleet only watches"
	case operatorv1.Unpromoted_UNPROMOTED_LOCAL_JAIL:
		return "jails of this kind stay local"
	case operatorv1.Unpromoted_UNPROMOTED_AWAITS_SECOND_HOST:
		return "a second host has to see it"
	case operatorv1.Unpromoted_UNPROMOTED_RESTORED:
		return "restored by fail2ban at its start"
	case operatorv1.Unpromoted_UNPROMOTED_PREEXISTING:
		return "from before the host joined"
	case operatorv1.Unpromoted_UNPROMOTED_NOT_PUBLIC:
		return "not a single public address"
	case operatorv1.Unpromoted_UNPROMOTED_PROTECTED:
		return "one of the fleet's own"
	case operatorv1.Unpromoted_UNPROMOTED_HOST_RATE:
		return "its host bans too much"
	case operatorv1.Unpromoted_UNPROMOTED_ORGANISATION_RATE:
		return "the fleet bans too much"
	case operatorv1.Unpromoted_UNPROMOTED_COMMANDED:
		return "ordered by the fleet"
	case operatorv1.Unpromoted_UNPROMOTED_ALLOWED:
		return "allowed"
	default:
		return "stays local"
	}
}
