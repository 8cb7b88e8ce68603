package cli

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

const (
	modeEnforce = fleetbanv1.Mode_MODE_ENFORCE
	modeWatch   = fleetbanv1.Mode_MODE_WATCH
	pageSize    = 1000
)

// done answers a change that has nothing to tell.
func (r *run) done(message proto.Message, text string) error {
	if r.out.people() {
		r.out.line("%s", text)
	} else {
		r.out.json(message)
	}
	return nil
}

func (r *run) allHosts() ([]*operatorv1.Host, error) {
	var hosts []*operatorv1.Host
	for token := ""; ; {
		ctx, cancel := r.call()
		res, err := r.api.hosts.ListHosts(ctx, connect.NewRequest(operatorv1.ListHostsRequest_builder{PageSize: pageSize, PageToken: token}.Build()))
		cancel()
		if err != nil {
			return nil, err
		}
		hosts = append(hosts, res.Msg.GetHosts()...)
		if token = res.Msg.GetNextPageToken(); token == "" {
			return hosts, nil
		}
	}
}

type hostsCmd struct {
	List    listHostsCmd   `cmd:"" default:"1" help:"List hosts."`
	Disable disableHostCmd `cmd:"" help:"End a host's stream and refuse its identity until it is enabled."`
	Enable  enableHostCmd  `cmd:"" help:"Let a disabled host in again."`
	Delete  forgetCmd      `cmd:"" help:"Delete a host: its stream ends and its identity is refused for good."`
}

type listHostsCmd struct{}

func (listHostsCmd) run(r *run) error {
	hosts, err := r.allHosts()
	if err != nil {
		return err
	}
	if !r.out.people() {
		list(r.out, operatorv1.ListHostsResponse_builder{Hosts: hosts}.Build(), hosts)
		return nil
	}
	if len(hosts) == 0 {
		r.out.line("No host is enrolled. fleetban join-token create prints the line that enrols one.")
		return nil
	}
	rows := make([][]cell, 0, len(hosts))
	for _, h := range hosts {
		rows = append(rows, []cell{
			c(h.GetName()), r.presence(h), r.enforcement(h), behind(h), fail2ban(h.GetHealth().GetFail2Ban()), c(tags(h.GetTags())),
			c(h.GetFacts().GetAgentVersion()), c(r.out.clock.ago(h.GetSeenUnixMs())),
		})
	}
	r.out.table([]string{"HOST", "STATE", "ENFORCES", "SETS", "FAIL2BAN", "TAGS", "AGENT", "SEEN"}, rows)
	return nil
}

func (r *run) presence(h *operatorv1.Host) cell {
	switch h.GetPresence() {
	case operatorv1.Presence_PRESENCE_ONLINE:
		return painted(good, "online")
	case operatorv1.Presence_PRESENCE_OFFLINE:
		return painted(wrong, "offline")
	case operatorv1.Presence_PRESENCE_NEW:
		return painted(warn, "new")
	case operatorv1.Presence_PRESENCE_QUARANTINED:
		return painted(wrong, "quarantined")
	case operatorv1.Presence_PRESENCE_DISABLED:
		return painted(warn, "disabled")
	default:
		return c("unknown")
	}
}

func (r *run) enforcement(h *operatorv1.Host) cell {
	switch {
	case h.GetInert() != fleetbanv1.Inert_INERT_UNSPECIFIED:
		return painted(warn, "no: "+inertText(h.GetInert()))
	case h.GetPresence() == operatorv1.Presence_PRESENCE_NEW:
		return painted(warn, "not yet")
	case h.GetExceptionsTotal() > 0:
		return painted(warn, "all but "+fmt.Sprint(h.GetExceptionsTotal()))
	default:
		return painted(good, "yes")
	}
}

// behind says whether the host holds the latest versions.
func behind(h *operatorv1.Host) cell {
	late := 0
	for _, s := range h.GetSets() {
		if s.GetAcknowledged() < s.GetCurrent() {
			late++
		}
	}
	if late == 0 {
		return c("current")
	}
	return painted(warn, fmt.Sprintf("%d of %d behind", late, len(h.GetSets())))
}

func fail2ban(f *fleetbanv1.Fail2BanHealth) cell {
	switch f.GetState() {
	case fleetbanv1.Fail2BanHealth_STATE_UP:
		return c("up " + f.GetVersion())
	case fleetbanv1.Fail2BanHealth_STATE_DOWN:
		return painted(wrong, "down")
	case fleetbanv1.Fail2BanHealth_STATE_BROKEN:
		return painted(wrong, "broken")
	case fleetbanv1.Fail2BanHealth_STATE_STARTING:
		return painted(warn, "starting")
	case fleetbanv1.Fail2BanHealth_STATE_STOPPING:
		return painted(warn, "stopping")
	default:
		return c("-")
	}
}

func tags(m map[string]string) string {
	parts := make([]string, 0, len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		parts = append(parts, k+"="+m[k])
	}
	return strings.Join(parts, " ")
}

func inertText(i fleetbanv1.Inert) string {
	switch i {
	case fleetbanv1.Inert_INERT_OFF:
		return "switched off on the host"
	case fleetbanv1.Inert_INERT_PAUSED:
		return "paused"
	case fleetbanv1.Inert_INERT_UNABLE:
		return "nftables can't be used there"
	case fleetbanv1.Inert_INERT_OBSERVE:
		return "its policy says observe"
	case fleetbanv1.Inert_INERT_PROXIED:
		return "its clients come through a proxy"
	default:
		return "inert"
	}
}

type hostCmd struct {
	Host string `arg:"" help:"Name or id."`
}

func (h *hostCmd) run(r *run) error {
	ctx, cancel := r.call()
	defer cancel()
	res, err := r.api.hosts.GetHost(ctx, connect.NewRequest(operatorv1.GetHostRequest_builder{Host: h.Host}.Build()))
	if err != nil {
		return err
	}
	host := res.Msg.GetHost()
	if !r.out.people() {
		r.out.json(host)
		return nil
	}
	r.showHost(host)
	return nil
}

func (r *run) showHost(h *operatorv1.Host) {
	clock, health := r.out.clock, h.GetHealth()
	show := func(c cell) string { return r.out.paint(c.colour, safe(c.text)) }
	state := show(r.presence(h))
	if h.GetSinceUnixMs() > 0 {
		state += " since " + clock.when(h.GetSinceUnixMs())
	}
	if h.GetCause() != "" {
		state += ": " + safe(h.GetCause())
	}
	enforcer := health.GetEnforcer()
	r.out.facts(
		[2]string{"host", safe(h.GetName())},
		[2]string{"id", safe(h.GetHostId())},
		[2]string{"state", state},
		[2]string{"tags", safe(tags(h.GetTags()))},
		[2]string{"system", safe(strings.TrimSpace(h.GetFacts().GetOs() + " " + h.GetFacts().GetKernel() + " " + h.GetFacts().GetArch()))},
		[2]string{"agent", safe(h.GetFacts().GetAgentVersion())},
		[2]string{"enrolled", clock.when(h.GetEnrolledUnixMs())},
		[2]string{"seen", clock.ago(h.GetSeenUnixMs())},
		[2]string{"replica", safe(h.GetReplica())},
		[2]string{"policy", safe(health.GetPolicyLevel())},
		[2]string{"enforces", show(r.enforcement(h))},
		[2]string{"kernel", safe(fmt.Sprintf("%s: %d enforced, %d suppressed, %d refused, %d repairs", cmp.Or(enforcer.GetBackend(), "unknown"),
			enforcer.GetEnforced(), enforcer.GetSuppressed(), enforcer.GetRefused(), enforcer.GetRepairs()))},
		[2]string{"", ""},
		[2]string{"fail2ban", show(fail2ban(health.GetFail2Ban()))},
		[2]string{"problem", safe(strings.Join(nonEmpty(health.GetFail2Ban().GetProblem(), enforcer.GetProblem(), health.GetSpool().GetProblem()), "; "))},
		[2]string{"events", eventsText(health)},
	)
	if sets := h.GetSets(); len(sets) > 0 {
		rows := make([][]cell, 0, len(sets))
		for _, s := range sets {
			state := painted(good, "current")
			if s.GetAcknowledged() < s.GetCurrent() {
				state = painted(warn, fmt.Sprintf("%d behind", s.GetCurrent()-s.GetAcknowledged()))
			}
			rows = append(rows, []cell{c(s.GetSet()), c(fmt.Sprint(s.GetAcknowledged())), c(fmt.Sprint(s.GetCurrent())), state})
		}
		r.out.line("")
		r.out.table([]string{"SET", "HAS", "LATEST", "STATE"}, rows)
	}
	if jails := health.GetFail2Ban().GetJails(); len(jails) > 0 {
		rows := make([][]cell, 0, len(jails))
		for _, j := range jails {
			rows = append(rows, []cell{
				c(j.GetName()), c(fmt.Sprint(j.GetBanned())), c(fmt.Sprint(j.GetBannedTotal())), c(fmt.Sprint(j.GetFailed())),
				c(seconds(j.GetBantimeS())), c(seconds(j.GetFindtimeS())), c(fmt.Sprint(j.GetMaxretry())),
			})
		}
		r.out.line("")
		r.out.table([]string{"JAIL", "BANNED", "EVER", "FAILING", "BANTIME", "FINDTIME", "RETRIES"}, rows)
	}
	if exceptions := h.GetExceptions(); len(exceptions) > 0 {
		rows := make([][]cell, 0, len(exceptions))
		for _, e := range exceptions {
			rows = append(rows, []cell{c(unpacked(e.GetPrefix())), c(e.GetSet()), c(refusalText(e.GetRefusal()))})
		}
		r.out.line("")
		r.out.table([]string{"NOT ENFORCED", "SET", "WHY"}, rows)
		if more := int(h.GetExceptionsTotal()) - len(exceptions); more > 0 {
			r.out.line("… and %d more", more)
		}
	}
	for _, f := range health.GetFindings() {
		r.out.line("")
		r.out.line("%s: %s", r.out.paint(severity(f.GetSeverity()), safe(f.GetProblem())), safe(f.GetFix()))
	}
}

func severity(s fleetbanv1.Finding_Severity) colour {
	switch s {
	case fleetbanv1.Finding_SEVERITY_ERROR:
		return wrong
	case fleetbanv1.Finding_SEVERITY_WARNING:
		return warn
	default:
		return plain
	}
}

func eventsText(h *fleetbanv1.Health) string {
	source := map[fleetbanv1.EventSource]string{
		fleetbanv1.EventSource_EVENT_SOURCE_LOG: "from the log", fleetbanv1.EventSource_EVENT_SOURCE_POLL: "by polling",
	}[h.GetFail2Ban().GetSource()]
	if source == "" {
		return ""
	}
	text := fmt.Sprintf("%s, at most %d ms late; %d waiting", source, h.GetFail2Ban().GetDelayMs(), h.GetSpool().GetWaiting())
	if lost := h.GetSpool().GetLost(); lost > 0 {
		text += fmt.Sprintf(", %d lost", lost)
	}
	return text
}

func nonEmpty(parts ...string) []string {
	return slices.DeleteFunc(parts, func(s string) bool { return s == "" })
}

type jailsCmd struct{}

// jailSummary is one jail over all hosts.
type jailSummary struct {
	Jail        string   `json:"jail"`
	Hosts       []string `json:"hosts"`
	Banned      uint64   `json:"banned"`
	BannedTotal uint64   `json:"bannedTotal"`
	Failed      uint64   `json:"failed"`
}

func (jailsCmd) run(r *run) error {
	hosts, err := r.allHosts()
	if err != nil {
		return err
	}
	found := map[string]*jailSummary{}
	for _, h := range hosts {
		for _, j := range h.GetHealth().GetFail2Ban().GetJails() {
			s := found[j.GetName()]
			if s == nil {
				s = &jailSummary{Jail: j.GetName()}
				found[j.GetName()] = s
			}
			s.Hosts = append(s.Hosts, h.GetName())
			s.Banned += j.GetBanned()
			s.BannedTotal += j.GetBannedTotal()
			s.Failed += j.GetFailed()
		}
	}
	jails := slices.SortedFunc(maps.Values(found), func(a, b *jailSummary) int { return strings.Compare(a.Jail, b.Jail) })
	switch {
	case r.out.format == "json":
		r.out.json(map[string]any{"jails": append([]*jailSummary{}, jails...)})
	case r.out.format == "jsonl":
		for _, j := range jails {
			r.out.json(j)
		}
	case len(jails) == 0:
		r.out.line("No host has told of a jail.")
	default:
		rows := make([][]cell, 0, len(jails))
		for _, j := range jails {
			rows = append(rows, []cell{
				c(j.Jail), c(fmt.Sprint(len(j.Hosts))), c(fmt.Sprint(j.Banned)), c(fmt.Sprint(j.BannedTotal)), c(fmt.Sprint(j.Failed)), c(strings.Join(j.Hosts, " ")),
			})
		}
		r.out.table([]string{"JAIL", "HOSTS", "BANNED", "EVER", "FAILING", "ON"}, rows)
	}
	return nil
}

type commandsCmd struct {
	Host string `arg:"" help:"Name or id."`
}

func (cmd *commandsCmd) run(r *run) error {
	ctx, cancel := r.call()
	defer cancel()
	res, err := r.api.hosts.ListCommands(ctx, connect.NewRequest(operatorv1.ListCommandsRequest_builder{Host: cmd.Host}.Build()))
	if err != nil {
		return err
	}
	commands := res.Msg.GetCommands()
	if !r.out.people() {
		list(r.out, res.Msg, commands)
		return nil
	}
	if len(commands) == 0 {
		r.out.line("Nothing was ordered there lately.")
		return nil
	}
	rows := make([][]cell, 0, len(commands))
	for _, command := range commands {
		state, note := painted(warn, "waits"), ""
		if command.HasResult() {
			state = painted(plain, enumText(command.GetResult().GetOutcome().String(), "COMMAND_OUTCOME_"))
			if command.GetResult().GetOutcome() == fleetbanv1.CommandOutcome_COMMAND_OUTCOME_DONE {
				state.colour = good
			}
			note = command.GetResult().GetMessage()
		}
		rows = append(rows, []cell{
			c(r.out.clock.ago(command.GetIssuedUnixMs())), c(order(command.GetCommand())), c(command.GetActor()), state, c(note), c(command.GetCommand().GetCommandId()),
		})
	}
	r.out.table([]string{"ORDERED", "WHAT", "BY", "STATE", "NOTE", "ID"}, rows)
	return nil
}

func order(command *fleetbanv1.Command) string {
	text := func(packed [][]byte) string {
		var all []string
		for _, p := range packed[:min(len(packed), 3)] {
			all = append(all, unpacked(p))
		}
		if more := len(packed) - len(all); more > 0 {
			all = append(all, fmt.Sprintf("and %d more", more))
		}
		return strings.Join(all, " ")
	}
	switch {
	case command.HasUnbanInJails():
		return "unban " + text(command.GetUnbanInJails().GetPrefixes())
	case command.HasBanInJail():
		return "ban in " + command.GetBanInJail().GetJail() + " " + text(command.GetBanInJail().GetPrefixes())
	default:
		return "an order this release doesn't know"
	}
}

type releaseCmd struct {
	Host string `arg:"" help:"Name or id."`
}

func (cmd *releaseCmd) run(r *run) error {
	ctx, cancel := r.call()
	defer cancel()
	res, err := r.api.hosts.ReleaseHost(ctx, connect.NewRequest(operatorv1.ReleaseHostRequest_builder{Host: cmd.Host}.Build()))
	if err != nil {
		return err
	}
	return r.done(res.Msg, safe(cmd.Host)+" is trusted again, from its next connection on.")
}

type forgetCmd struct {
	Host          string `arg:"" help:"Name or id."`
	RetractClaims bool   `help:"Also retract what its jails claim: bans that nothing else claims end."`
}

func (cmd *forgetCmd) run(r *run) error {
	ctx, cancel := r.call()
	defer cancel()
	res, err := r.api.hosts.DeleteHost(ctx, connect.NewRequest(operatorv1.DeleteHostRequest_builder{Host: cmd.Host, RetractClaims: cmd.RetractClaims}.Build()))
	if err != nil {
		return err
	}
	return r.done(res.Msg, safe(cmd.Host)+" is forgotten: its identity is refused. On the host: fleetban-agent uninstall."+retractedText(cmd.RetractClaims, res.Msg.GetRetracted()))
}

func retractedText(asked bool, n uint32) string {
	if !asked {
		return ""
	}
	return " " + plural(uint64(n), "claim of it was retracted.", "claims of it were retracted.")
}

type disableHostCmd struct {
	Host          string `arg:"" help:"Name or id."`
	RetractClaims bool   `help:"Also retract what its jails claim: bans that nothing else claims end."`
	Reason        string `help:"Why; people and the audit log are told."`
}

func (cmd *disableHostCmd) run(r *run) error {
	ctx, cancel := r.call()
	defer cancel()
	res, err := r.api.hosts.DisableHost(ctx, connect.NewRequest(operatorv1.DisableHostRequest_builder{
		Host: cmd.Host, RetractClaims: cmd.RetractClaims, Reason: cmd.Reason,
	}.Build()))
	if err != nil {
		return err
	}
	return r.done(res.Msg, safe(cmd.Host)+" is disabled: what it enforces stays as it is, until fleetban hosts enable."+retractedText(cmd.RetractClaims, res.Msg.GetRetracted()))
}

type enableHostCmd struct {
	Host string `arg:"" help:"Name or id."`
}

func (cmd *enableHostCmd) run(r *run) error {
	ctx, cancel := r.call()
	defer cancel()
	res, err := r.api.hosts.EnableHost(ctx, connect.NewRequest(operatorv1.EnableHostRequest_builder{Host: cmd.Host}.Build()))
	if err != nil {
		return err
	}
	return r.done(res.Msg, safe(cmd.Host)+" is enabled. Its agent tries again within five minutes.")
}
