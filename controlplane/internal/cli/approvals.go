package cli

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"connectrpc.com/connect"

	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
)

type approvalsCmd struct {
	List    listApprovalsCmd `cmd:"" default:"withargs" help:"List what waits for a second person."`
	Approve approveCmd       `cmd:"" help:"Have done what somebody else asked for."`
	Reject  rejectCmd        `cmd:"" help:"End it undone; who asked may, too."`
	Require requireCmd       `cmd:"" help:"Say whether, and for which bans, a second person is needed; or show it."`
}

type listApprovalsCmd struct {
	All bool `help:"Also what was decided in the last two days."`
}

func (cmd *listApprovalsCmd) run(r *run) error {
	ctx, cancel := r.call()
	defer cancel()
	res, err := r.api.approvals.ListApprovals(ctx, connect.NewRequest(operatorv1.ListApprovalsRequest_builder{Waiting: !cmd.All}.Build()))
	if err != nil {
		return err
	}
	all := res.Msg.GetApprovals()
	switch {
	case !r.out.people():
		list(r.out, res.Msg, all)
	case len(all) == 0:
		r.out.line("Nothing waits for a second person.")
	default:
		rows := make([][]cell, 0, len(all))
		for _, a := range all {
			rows = append(rows, []cell{
				c(a.GetId()), r.approvalState(a), c(a.GetRequester()), c(approvalText(a)), c(r.out.clock.in(a.GetExpiresUnixMs())),
				c(strings.Join(nonEmpty(a.GetDecider(), a.GetReason()), ": ")),
			})
		}
		r.out.table([]string{"ID", "STATE", "ASKED BY", "WHAT", "ENDS", "DECIDED"}, rows)
	}
	return nil
}

func (r *run) approvalState(a *operatorv1.Approval) cell {
	text := enumText(a.GetState().String(), "APPROVAL_STATE_")
	switch a.GetState() {
	case operatorv1.ApprovalState_APPROVAL_STATE_WAITING:
		return painted(warn, text)
	case operatorv1.ApprovalState_APPROVAL_STATE_DONE:
		return painted(good, text)
	case operatorv1.ApprovalState_APPROVAL_STATE_FAILED:
		return painted(wrong, text)
	default:
		return c(text)
	}
}

// approvalText is what was asked for.
func approvalText(a *operatorv1.Approval) string {
	words := append([]string{a.GetAction()}, a.GetTargets()[:min(len(a.GetTargets()), 3)]...)
	if more := int(a.GetTargetsTotal()) - 3; more > 0 {
		words = append(words, fmt.Sprintf("and %d more", more))
	}
	for _, name := range slices.Sorted(maps.Keys(a.GetDetails())) {
		words = append(words, name+"="+a.GetDetails()[name])
	}
	return strings.Join(words, " ")
}

type approveCmd struct {
	ID string `arg:"" name:"id" help:"As list shows it."`
}

func (cmd *approveCmd) run(r *run) error {
	ctx, cancel := r.call()
	defer cancel()
	res, err := r.api.approvals.Approve(ctx, connect.NewRequest(operatorv1.ApproveRequest_builder{Id: cmd.ID}.Build()))
	if err != nil {
		return err
	}
	a := res.Msg.GetApproval()
	if !r.out.people() {
		r.out.json(res.Msg)
	}
	if a.GetState() != operatorv1.ApprovalState_APPROVAL_STATE_DONE {
		if !r.out.people() {
			return &failure{code: exitFailed, printed: true}
		}
		return &failure{code: exitFailed, message: "approved, and not done: " + a.GetReason(), fix: "mend that, and ask for it anew"}
	}
	if r.out.people() {
		r.out.line("Done, in the name of %s: %s.", safe(a.GetRequester()), safe(approvalText(a)))
	}
	return nil
}

type rejectCmd struct {
	ID     string `arg:"" name:"id" help:"As list shows it."`
	Reason string `help:"Why."`
}

func (cmd *rejectCmd) run(r *run) error {
	ctx, cancel := r.call()
	defer cancel()
	res, err := r.api.approvals.Reject(ctx, connect.NewRequest(operatorv1.RejectRequest_builder{Id: cmd.ID, Reason: cmd.Reason}.Build()))
	if err != nil {
		return err
	}
	return r.done(res.Msg, "Nothing is done: "+safe(approvalText(res.Msg.GetApproval()))+".")
}

type requireCmd struct {
	What string `arg:"" optional:"" enum:"on,off," default:"" help:"on or off; nothing shows what is."`

	WidestIPv4   uint32 `name:"widest-ipv4" placeholder:"BITS" help:"A ban of a prefix wider than this waits (default 24)."`
	WidestIPv6   uint32 `name:"widest-ipv6" placeholder:"BITS" help:"The same for IPv6 (default 64)."`
	MostPrefixes uint32 `placeholder:"N" help:"A ban of more prefixes than this waits (default 100)."`
}

func (cmd *requireCmd) run(r *run) error {
	ctx, cancel := r.call()
	defer cancel()
	if cmd.What == "" {
		res, err := r.api.approvals.GetApprovalPolicy(ctx, connect.NewRequest(&operatorv1.GetApprovalPolicyRequest{}))
		if err != nil {
			return err
		}
		return r.done(res.Msg, policyText(res.Msg.GetPolicy()))
	}
	res, err := r.api.approvals.SetApprovalPolicy(ctx, connect.NewRequest(operatorv1.SetApprovalPolicyRequest_builder{
		Required: cmd.What == "on", WidestIpv4Bits: cmd.WidestIPv4, WidestIpv6Bits: cmd.WidestIPv6, MostPrefixes: cmd.MostPrefixes,
	}.Build()))
	if err != nil {
		return err
	}
	return r.done(res.Msg, policyText(res.Msg.GetPolicy()))
}

func policyText(p *operatorv1.ApprovalPolicy) string {
	if !p.GetRequired() {
		return "No second person is needed for anything."
	}
	return fmt.Sprintf("A second person is needed for pause, mode, allow, disallow, for bans wider than /%d (IPv4) or /%d (IPv6) or of more than %s, and to change this.",
		p.GetWidestIpv4Bits(), p.GetWidestIpv6Bits(), plural(uint64(p.GetMostPrefixes()), "prefix", "prefixes"))
}
