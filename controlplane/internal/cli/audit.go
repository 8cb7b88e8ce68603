package cli

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"

	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
)

// auditCmd is who did what.
type auditCmd struct {
	List   auditListCmd   `cmd:"" default:"withargs" help:"List entries, newest first."`
	Export auditExportCmd `cmd:"" help:"Every entry kept, oldest first, one JSON object a line."`
	Verify auditVerifyCmd `cmd:"" help:"Check that no entry was changed, removed, moved or put in."`
}

type auditSelect struct {
	Actor  string `placeholder:"NAME" help:"Only what this person, token or command did: name or id."`
	Action string `placeholder:"ACTION" help:"Only this: ban, join-token.create, or join-token for all of those."`
	Target string `placeholder:"TARGET" help:"Only what was done to this prefix, host or token."`
	Since  string `placeholder:"TIME" help:"Only from then on: 2026-01-31, 2026-01-31T15:04, or a time span ago such as 2h or 7d."`
	Until  string `placeholder:"TIME" help:"Only before that."`
}

func (s auditSelect) filter(r *run) (*operatorv1.AuditFilter, error) {
	since, err := r.instant("--since", s.Since)
	if err != nil {
		return nil, err
	}
	until, err := r.instant("--until", s.Until)
	if err != nil {
		return nil, err
	}
	return operatorv1.AuditFilter_builder{
		Actor: s.Actor, Action: s.Action, Target: s.Target, SinceUnixMs: since, UntilUnixMs: until,
	}.Build(), nil
}

// instant is a moment as people write it, in their zone: Unix milliseconds, 0 for none.
func (r *run) instant(flag, text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	now := r.out.clock.now
	if ago, err := parseDuration(text); err == nil {
		return max(now.Add(-ago).UnixMilli(), 0), nil
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02 15:04:05", "2006-01-02 15:04", time.DateOnly} {
		if t, err := time.ParseInLocation(layout, text, now.Location()); err == nil {
			return max(t.UnixMilli(), 0), nil
		}
	}
	return 0, usage(fmt.Sprintf("%s: %q is no time", flag, text), "write 2026-01-31, 2026-01-31T15:04, or a time span ago such as 2h or 7d")
}

type auditListCmd struct {
	auditSelect

	Limit int `default:"100" help:"Show at most so many in a table; 0 shows all. JSON has all."`
}

func (a *auditListCmd) run(r *run) error {
	filter, err := a.filter(r)
	if err != nil {
		return err
	}
	var shown []*operatorv1.AuditEntry
	var more bool
	for token := ""; ; {
		ctx, cancel := r.call()
		res, err := r.api.audit.ListAudit(ctx, connect.NewRequest(operatorv1.ListAuditRequest_builder{
			Filter: filter, PageSize: pageSize, PageToken: token,
		}.Build()))
		cancel()
		if err != nil {
			return err
		}
		if r.out.format == "jsonl" {
			list(r.out, nil, res.Msg.GetEntries())
		} else {
			shown = append(shown, res.Msg.GetEntries()...)
		}
		token = res.Msg.GetNextPageToken()
		if more = r.out.people() && a.Limit > 0 && (len(shown) > a.Limit || len(shown) == a.Limit && token != ""); more {
			shown = shown[:a.Limit]
		}
		if token == "" || more || r.out.err != nil {
			break
		}
	}
	switch {
	case r.out.format == "jsonl":
	case r.out.format == "json":
		r.out.json(operatorv1.ListAuditResponse_builder{Entries: shown}.Build())
	case len(shown) == 0:
		r.out.line("No such entry.")
	default:
		rows := make([][]cell, 0, len(shown))
		for _, e := range shown {
			rows = append(rows, r.auditRow(e))
		}
		r.out.table([]string{"N", "TIME", "ACTOR", "FROM", "ACTION", "TARGET", "OUTCOME", "DETAILS"}, rows)
		if more {
			r.out.line("… and more. --limit 0 shows them.")
		}
	}
	return nil
}

func (r *run) auditRow(e *operatorv1.AuditEntry) []cell {
	target := strings.Join(e.GetTargets(), " ")
	if len(e.GetTargets()) > 3 {
		target = strings.Join(e.GetTargets()[:3], " ") + " … " + strconv.Itoa(int(e.GetTargetsTotal()))
	}
	outcome := c("-")
	switch e.GetOutcome() {
	case operatorv1.AuditOutcome_AUDIT_OUTCOME_OK:
		outcome = painted(good, "ok")
	case operatorv1.AuditOutcome_AUDIT_OUTCOME_REFUSED:
		outcome = painted(warn, "refused")
	case operatorv1.AuditOutcome_AUDIT_OUTCOME_UNKNOWN:
		outcome = painted(wrong, "outcome unknown")
	case operatorv1.AuditOutcome_AUDIT_OUTCOME_UNDER_WAY:
		outcome = c("under way")
	default:
	}
	var details []string
	if e.GetReason() != "" {
		details = append(details, e.GetReason())
	}
	for _, d := range e.GetDetails() {
		switch {
		case d.GetBefore() != "" && d.GetAfter() != "":
			details = append(details, d.GetName()+" "+d.GetBefore()+"→"+d.GetAfter())
		case d.GetBefore() != "":
			details = append(details, d.GetName()+" was "+d.GetBefore())
		default:
			details = append(details, d.GetName()+" "+d.GetAfter())
		}
	}
	return []cell{
		c(strconv.FormatUint(e.GetNumber(), 10)), c(r.out.clock.when(e.GetAtUnixMs())), c(e.GetActor().GetName()), c(e.GetAddress()),
		c(e.GetAction()), c(target), outcome, c(strings.Join(details, ", ")),
	}
}

type auditExportCmd struct{ auditSelect }

func (a *auditExportCmd) run(r *run) error {
	filter, err := a.filter(r)
	if err != nil {
		return err
	}
	r.out.format = "jsonl"
	stream, err := r.api.audit.ExportAudit(r.ctx, connect.NewRequest(operatorv1.ExportAuditRequest_builder{Filter: filter}.Build()))
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }()
	for stream.Receive() && r.out.err == nil {
		r.out.json(stream.Msg().GetEntry())
	}
	return stream.Err()
}

type auditVerifyCmd struct {
	Head string `placeholder:"N:HASH" help:"The head that an earlier verify told: the log must go on from it."`
}

func (a *auditVerifyCmd) run(r *run) error {
	req := operatorv1.VerifyAuditRequest_builder{}
	if a.Head != "" {
		number, hash, found := strings.Cut(a.Head, ":")
		n, err := strconv.ParseUint(number, 10, 64)
		if err != nil || !found || n == 0 || len(hash) != 40 {
			return usage(fmt.Sprintf("--head: %q is not N:HASH", a.Head), "copy it whole, as fleetban audit verify printed it")
		}
		req.HeadNumber, req.HeadHash = n, hash
	}
	ctx, cancel := r.call()
	defer cancel()
	res, err := r.api.audit.VerifyAudit(ctx, connect.NewRequest(req.Build()))
	if err != nil {
		return err
	}
	v := res.Msg
	if !r.out.people() {
		r.out.json(v)
	} else {
		r.auditVerdict(v)
	}
	if !v.GetIntact() {
		return &failure{
			code: exitFailed, message: "the audit log is not intact: " + plural(v.GetFindingsTotal(), "finding", "findings"),
			fix: "see \"When the audit log isn't intact\" in docs/operations.md",
		}
	}
	return nil
}

func (r *run) auditVerdict(v *operatorv1.VerifyAuditResponse) {
	if v.GetEntries() == 0 {
		r.out.line("The audit log is empty.")
	} else {
		r.out.facts(
			[2]string{"Entries", fmt.Sprintf("%d, from number %d on", v.GetEntries(), v.GetFirstNumber())},
			[2]string{"Head", fmt.Sprintf("%d:%s", v.GetHeadNumber(), safe(v.GetHeadHash()))},
			[2]string{"Written", r.out.clock.when(v.GetHeadAtUnixMs())},
			[2]string{"Not sealed yet", some(v.GetUnsealed())},
			[2]string{"Outcome unknown", some(v.GetUnknownOutcomes())},
			[2]string{"Redis restarts", some(v.GetRestarts())},
		)
	}
	if v.GetIntact() {
		r.out.line("%s Note the head, and give it to a later verify with --head: a log cut off at its end shows by nothing else.", r.out.paint(good, "Intact."))
		return
	}
	rows := make([][]cell, 0, len(v.GetFindings()))
	for _, f := range v.GetFindings() {
		kind := strings.ToLower(strings.TrimPrefix(f.GetKind().String(), "AUDIT_FINDING_KIND_"))
		rows = append(rows, []cell{c(strconv.FormatUint(f.GetNumber(), 10)), painted(wrong, kind), c(f.GetText())})
	}
	r.out.table([]string{"N", "FINDING", "WHAT"}, rows)
}

// some is a number of what there should be none of.
func some(n uint64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatUint(n, 10)
}
