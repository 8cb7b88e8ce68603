package hostcli

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/fleetban/fleetban/agent/internal/identity"
	"github.com/fleetban/fleetban/agent/internal/localrpc"
	hostv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/host/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/host/v1/hostv1connect"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/banset"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

// report is what both halves say, or why they don't.
type report struct {
	agent     *hostv1.RunStatusResponse
	helper    *hostv1.StatusResponse
	agentErr  error
	helperErr error
	findings  []*fleetbanv1.Finding
}

func (c *cli) report(ctx context.Context) report {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	r := report{agent: &hostv1.RunStatusResponse{}, helper: &hostv1.StatusResponse{}}
	runClient := localrpc.NewClient(c.opts.socket)
	defer runClient.Close()
	r.agentErr = explain(runClient.Call(ctx, hostv1connect.RunServiceStatusProcedure, &hostv1.RunStatusRequest{}, r.agent), "fleetban-agent")
	r.helperErr = c.callHelper(ctx, hostv1connect.HelperServiceStatusProcedure, hostv1.StatusRequest_builder{Doctor: true}.Build(), r.helper)
	add := func(s fleetbanv1.Finding_Severity, code, problem, fix string) {
		r.findings = append(r.findings, fleetbanv1.Finding_builder{Severity: s, Code: code, Problem: problem, Fix: fix}.Build())
	}
	const bad = fleetbanv1.Finding_SEVERITY_ERROR
	if r.helperErr != nil {
		add(bad, "helper-away", "the root half doesn't answer: "+r.helperErr.Error(), "What is in the kernel stays enforced meanwhile.")
	}
	if _, err := identity.Load(c.opts.agentDir); err != nil && r.agentErr != nil {
		add(bad, "not-enrolled", err.Error(), "Make a join token in the console or with fleetban join-token create.")
	} else if r.agentErr != nil {
		add(bad, "agent-away", "the unprivileged half doesn't answer: "+r.agentErr.Error(), "Known bans stay enforced meanwhile.")
	}
	if r.agentErr == nil {
		if !r.agent.GetStream().GetConnected() {
			add(bad, "not-connected", "no stream to "+r.agent.GetUrl()+": "+r.agent.GetStream().GetProblem(), "It is tried again by itself; known bans stay enforced.")
		}
		if since := r.agent.GetStream().GetStoreAwaySinceUnixMs(); since > 0 {
			add(bad, "store-away", "the control plane can't reach its Redis since "+ago(since)+": no ban goes from host to host meanwhile",
				"Start Redis; /readyz of the control plane says more. What is known stays enforced, and what is banned here waits.")
		}
		if !r.agent.GetHelperConnected() && r.helperErr == nil {
			add(bad, "helper-refuses-agent", "the unprivileged half can't use the helper: "+r.agent.GetHelperProblem(), "Start both with the same --run-user.")
		}
		if p := r.agent.GetSpool().GetProblem(); p != "" {
			add(fleetbanv1.Finding_SEVERITY_WARNING, "spool", p,
				"Free space on the disk of the state folder, or bring the control plane back; nothing is lost that fail2ban still bans.")
		}
	}
	r.findings = append(r.findings, r.helper.GetFindings()...)
	return r
}

func (r report) errors() (n int) {
	for _, f := range r.findings {
		if f.GetSeverity() == fleetbanv1.Finding_SEVERITY_ERROR {
			n++
		}
	}
	return n
}

func (r report) end() error {
	if r.errors() > 0 {
		return errProblem
	}
	return nil
}

func (c *cli) status(ctx context.Context, _ []string) error {
	r := c.report(ctx)
	if c.opts.output == "json" {
		if err := c.printJSON(r); err != nil {
			return err
		}
		return r.end()
	}
	c.printAgent(r)
	c.printHelper(r)
	c.printLately(r.agent.GetIncidents(), r.helper.GetIncidents())
	c.printFindings(r.findings, fleetbanv1.Finding_SEVERITY_WARNING)
	return r.end()
}

func (c *cli) doctor(ctx context.Context, _ []string) error {
	r := c.report(ctx)
	if c.opts.output == "json" {
		if err := c.printJSON(r); err != nil {
			return err
		}
		return r.end()
	}
	c.printFindings(r.findings, fleetbanv1.Finding_SEVERITY_INFO)
	if len(r.findings) == 0 {
		c.printf("%s Nothing is wrong.\n", c.paint(green, "✓"))
	}
	return r.end()
}

// printJSON writes {"agent": …, "helper": …, "findings": […]}.
func (c *cli) printJSON(r report) error {
	var b bytes.Buffer
	b.WriteString(`{"agent":`)
	put := func(m proto.Message, err error) error {
		if err != nil {
			b.WriteString("null")
			return nil //nolint:nilerr // a half that is away is null here and a finding below
		}
		text, err := protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: true}.Marshal(m)
		b.Write(readable(text))
		return err
	}
	if err := put(r.agent, r.agentErr); err != nil {
		return err
	}
	b.WriteString(`,"helper":`)
	if err := put(r.helper, r.helperErr); err != nil {
		return err
	}
	b.WriteString(`,"findings":[`)
	for i, f := range r.findings {
		if i > 0 {
			b.WriteByte(',')
		}
		if err := put(f, nil); err != nil {
			return err
		}
	}
	b.WriteString("]}")
	var out bytes.Buffer
	if err := json.Indent(&out, b.Bytes(), "", "  "); err != nil {
		return err
	}
	out.WriteByte('\n')
	_, err := out.WriteTo(c.out)
	return err
}

// readable writes the prefixes in a message's JSON as people and programs write them: JSON has no bytes, and protobuf's
// base64 of our packing tells nobody anything.
func readable(text []byte) []byte {
	const key = `"prefix":`
	out := make([]byte, 0, len(text))
	for {
		before, after, ok := bytes.Cut(text, []byte(key))
		out = append(out, before...)
		if !ok {
			return out
		}
		out = append(out, key...)
		value, rest, ok := bytes.Cut(bytes.TrimPrefix(bytes.TrimLeft(after, " "), []byte(`"`)), []byte(`"`))
		packed, err := base64.StdEncoding.DecodeString(string(value))
		if !ok || err != nil {
			text = after
			continue
		}
		out = append(out, `"`+unpacked(packed)+`"`...)
		text = rest
	}
}

func (c *cli) row(name, format string, args ...any) {
	c.printf("%-14s%s\n", name, fmt.Sprintf(format, args...))
}

func (c *cli) printAgent(r report) {
	if r.agentErr != nil {
		c.row("Agent", "%s", c.paint(red, "doesn't answer"))
		return
	}
	a, s := r.agent, r.agent.GetStream()
	c.row("Host", "%s of %s", a.GetHostName(), a.GetOrganisationName())
	since := ago(s.GetSinceUnixMs())
	if s.GetConnected() {
		c.row("Stream", "%s to %s, replica %s, for %s, round trip %s", c.paint(green, "up"), a.GetUrl(), s.GetReplica(), since,
			time.Duration(s.GetRoundTripUs())*time.Microsecond)
	} else {
		c.row("Stream", "%s to %s for %s: %s", c.paint(red, "down"), a.GetUrl(), since, s.GetProblem())
	}
	sp := a.GetSpool()
	spool := fmt.Sprintf("%d events, %d stored by the control plane, %d wait", a.GetEventsLast(), a.GetEventsThrough(), sp.GetWaiting())
	if sp.GetLost() > 0 {
		spool += fmt.Sprintf(", %d found no room", sp.GetLost())
	}
	c.row("Events", "%s", spool)
	if off := a.GetClockOffsetMs(); off > 2000 || off < -2000 {
		c.row("Clock", "this host's differs from the control plane's by %s", time.Duration(off)*time.Millisecond)
	}
}

func (c *cli) printHelper(r report) {
	if r.helperErr != nil {
		c.row("Helper", "%s", c.paint(red, "doesn't answer"))
		return
	}
	h := r.helper
	f := h.GetFail2Ban()
	state := strings.ToLower(strings.TrimPrefix(f.GetState().String(), "STATE_"))
	if f.GetState() == fleetbanv1.Fail2BanHealth_STATE_UP {
		banned := uint64(0)
		for _, j := range f.GetJails() {
			banned += j.GetBanned()
		}
		source := "its log"
		if f.GetSource() == fleetbanv1.EventSource_EVENT_SOURCE_POLL {
			source = "polling"
		}
		c.row("fail2ban", "%s %s, %d jails, %d banned; seen through %s within %d ms", c.paint(green, state), f.GetVersion(), len(f.GetJails()), banned, source, f.GetDelayMs())
	} else {
		c.row("fail2ban", "%s: %s", c.paint(red, state), f.GetProblem())
	}
	e := h.GetEnforcer()
	c.row("Enforcement", "%s: %d in force, %d suppressed by allowlists, %d refused by this host", c.enforcing(h), e.GetEnforced(), e.GetSuppressed(), e.GetRefused())
	c.row("Policy", "%s (%s)", h.GetPolicyLevel(), h.GetPolicyPath())
	for _, s := range h.GetSets() {
		cur := s.GetCursor()
		c.row("Set "+cur.GetSet(), "%d records, version %d of epoch %d, digest %016x", s.GetRecords(), cur.GetVersion(), cur.GetEpoch(), cur.GetDigest())
	}
	for _, a := range h.GetLocalAllows() {
		until := "for good"
		if ms := a.GetUntilUnixMs(); ms > 0 {
			until = "until " + time.UnixMilli(ms).Format(time.DateTime)
		}
		c.row("Allowed here", "%s %s", unpacked(a.GetPrefix()), until)
	}
	for i, x := range h.GetExceptions() {
		if i == 20 {
			c.row("", "and %d more (fleetban-agent status -o json)", int(h.GetExceptionsTotal())-i)
			break
		}
		c.row("Refused", "%s of %s: %s", unpacked(x.GetPrefix()), x.GetSet(),
			strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(x.GetRefusal().String(), "REFUSAL_")), "_", " "))
	}
}

// printLately tells what mended itself.
func (c *cli) printLately(halves ...[]*hostv1.Incident) {
	name := "Lately"
	for _, half := range halves {
		for _, i := range half {
			times := "once, "
			if i.GetCount() != 1 {
				times = fmt.Sprintf("%d times, last ", i.GetCount())
			}
			c.row(name, "%s (%s%s ago)", i.GetWhat(), times, ago(i.GetLastUnixMs()))
			name = ""
		}
	}
}

// enforcing says whether this host enforces, and if not, who or what keeps it from it and until when.
func (c *cli) enforcing(h *hostv1.StatusResponse) string {
	e := h.GetEnforcer()
	until := func(ms int64) string {
		if ms <= 0 || ms >= banset.Never {
			return ""
		}
		return " until " + time.UnixMilli(ms).Format(time.DateTime)
	}
	switch e.GetInert() {
	case fleetbanv1.Inert_INERT_UNSPECIFIED:
		return c.paint(green, "enforcing") + " by " + e.GetBackend()
	case fleetbanv1.Inert_INERT_OFF:
		if when := until(e.GetOffUntilUnixMs()); when != "" {
			return c.paint(red, "off") + ", by a person on this host" + when
		}
		return c.paint(red, "off") + ", by a person on this host until fleetban-agent on"
	case fleetbanv1.Inert_INERT_PAUSED:
		return c.paint(red, "paused") + " for the whole fleet" + until(h.GetSettings().GetPausedUntilUnixMs())
	case fleetbanv1.Inert_INERT_OBSERVE:
		return c.paint(yellow, "observing only") + ", as this host's policy file says"
	case fleetbanv1.Inert_INERT_PROXIED:
		return c.paint(yellow, "enforcing") + " by " + e.GetBackend() + ", though clients come through a proxy"
	case fleetbanv1.Inert_INERT_UNABLE:
	}
	return c.paint(red, "not enforcing") + " (" + strings.ToLower(strings.TrimPrefix(e.GetInert().String(), "INERT_")) + ")"
}

func unpacked(b []byte) string {
	p, err := prefix.Unpack(b)
	if err != nil {
		return "?"
	}
	return prefix.Format(p)
}

func (c *cli) printFindings(findings []*fleetbanv1.Finding, from fleetbanv1.Finding_Severity) {
	for _, f := range findings {
		if f.GetSeverity() < from {
			continue
		}
		mark := c.paint(yellow, "!")
		switch f.GetSeverity() {
		case fleetbanv1.Finding_SEVERITY_ERROR:
			mark = c.paint(red, "✗")
		case fleetbanv1.Finding_SEVERITY_INFO:
			mark = "i"
		default: // a warning
		}
		c.printf("%s %s\n", mark, f.GetProblem())
		if f.GetFix() != "" {
			c.printf("  → %s\n", f.GetFix())
		}
	}
}

func ago(ms int64) string {
	return time.Since(time.UnixMilli(ms)).Truncate(time.Second).String()
}

const (
	red    = "31"
	green  = "32"
	yellow = "33"
)

// paint colours on a terminal only.
func (c *cli) paint(colour, s string) string {
	if !c.colour {
		return s
	}
	return "\x1b[" + colour + "m" + s + "\x1b[0m"
}
