package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"

	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// outcome is how far a change has come. Receipts are nil when nobody waited.
type outcome struct {
	receipts *operatorv1.WatchReceiptsResponse
	elapsed  time.Duration
	err      error
}

// follow waits until every connected host has answered to each cursor, or for as long as was asked. The sets' receipts
// are joined: of the set with the widest scope the counts, of all of them who is missing.
func (r *run) follow(w waiting, began time.Time, cursors []*fleetbanv1.SetCursor, prefixes []string) outcome {
	if w.NoWait {
		return outcome{}
	}
	ctx, cancel := context.WithTimeout(r.ctx, time.Duration(w.Wait))
	defer cancel()
	var out outcome
	for _, cursor := range cursors {
		receipts, err := r.receipts(ctx, cursor, prefixes)
		if err != nil {
			out.err = err
			break
		}
		out.receipts = joined(out.receipts, receipts)
	}
	out.elapsed = r.env.Now().Sub(began)
	return out
}

func (r *run) receipts(ctx context.Context, cursor *fleetbanv1.SetCursor, prefixes []string) (*operatorv1.WatchReceiptsResponse, error) {
	if len(prefixes) > 100 {
		prefixes = prefixes[:100]
	}
	last := &operatorv1.WatchReceiptsResponse{}
	stream, err := r.api.bans.WatchReceipts(ctx, connect.NewRequest(operatorv1.WatchReceiptsRequest_builder{Cursor: cursor, Prefixes: prefixes}.Build()))
	if err == nil {
		for stream.Receive() {
			last = stream.Msg()
		}
		err = errors.Join(stream.Err(), ignore(stream.Close()))
	}
	// The time is over, by this clock or the server's, which may be first to say so: what is known is the answer.
	if err != nil && (ctx.Err() != nil || connect.CodeOf(err) == connect.CodeDeadlineExceeded) && r.ctx.Err() == nil {
		err = nil
	}
	return last, err
}

// ignore drops the error of closing a stream whose own error is known.
func ignore(error) error { return nil }

func joined(a, b *operatorv1.WatchReceiptsResponse) *operatorv1.WatchReceiptsResponse {
	if a == nil {
		return b
	}
	wide, narrow := a, b
	if b.GetInScope()+b.GetOffline() > a.GetInScope()+a.GetOffline() {
		wide, narrow = b, a
	}
	wide.SetComplete(wide.GetComplete() && narrow.GetComplete())
	known := map[string]bool{}
	for _, m := range wide.GetMissing() {
		known[m.GetHostId()] = true
	}
	for _, m := range narrow.GetMissing() {
		if known[m.GetHostId()] {
			continue
		}
		wide.SetMissing(append(wide.GetMissing(), m))
		// Counted as done by the wider set, and isn't.
		if wide.GetEnforced() > 0 && m.GetState() != operatorv1.EnforcementState_ENFORCEMENT_STATE_OFFLINE {
			wide.SetEnforced(wide.GetEnforced() - 1)
		}
	}
	return wide
}

// everywhere: on every host in scope, connected or not, and there is one.
func everywhere(m *operatorv1.WatchReceiptsResponse) bool {
	return m.GetComplete() && m.GetInScope() > 0 && m.GetEnforced() == m.GetInScope() && m.GetOffline() == 0
}

func (r *run) showReceipts(o outcome, done string) {
	m := o.receipts
	if m == nil {
		if o.err == nil {
			r.out.line("The hosts are being told.")
		}
		return
	}
	all := m.GetInScope() + m.GetOffline()
	if all == 0 {
		r.out.line("%s no host that it is for is enrolled", r.out.paint(warn, "· "+done+" nowhere:"))
		return
	}
	col := good
	if !everywhere(m) {
		col = warn
	}
	r.out.line("· %s, %s", r.out.paint(col, fmt.Sprintf("%s %d/%d", done, m.GetEnforced(), all)), elapsed(o.elapsed))
	if len(m.GetMissing()) == 0 {
		return
	}
	rows := make([][]cell, 0, len(m.GetMissing()))
	for _, h := range m.GetMissing() {
		state, why := r.state(h)
		rows = append(rows, []cell{c("  " + h.GetHostName()), state, c(why)})
	}
	r.out.table([]string{"  MISSING", "STATE", "WHY"}, rows)
	if missing := int(all - m.GetEnforced()); missing > len(m.GetMissing()) {
		r.out.line("  … and %d more", missing-len(m.GetMissing()))
	}
}

func elapsed(d time.Duration) string {
	if d < 10*time.Second {
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return span(d)
}

// state is where one host stands, and why.
func (r *run) state(h *operatorv1.HostEnforcement) (cell, string) {
	switch h.GetState() {
	case operatorv1.EnforcementState_ENFORCEMENT_STATE_ENFORCED:
		return painted(good, "enforced"), ""
	case operatorv1.EnforcementState_ENFORCEMENT_STATE_PENDING:
		return painted(warn, "pending"), "it has not answered yet"
	case operatorv1.EnforcementState_ENFORCEMENT_STATE_OFFLINE:
		if h.GetSeenUnixMs() == 0 {
			return painted(wrong, "offline"), "not heard lately; it will hear when it is back"
		}
		return painted(wrong, "offline"), "last heard " + r.out.clock.when(h.GetSeenUnixMs()) + "; it will hear when it is back"
	case operatorv1.EnforcementState_ENFORCEMENT_STATE_REFUSED:
		return painted(warn, "refused"), refusalText(h.GetRefusal())
	case operatorv1.EnforcementState_ENFORCEMENT_STATE_INERT:
		return painted(warn, "inert"), inertText(h.GetInert())
	case operatorv1.EnforcementState_ENFORCEMENT_STATE_OUT_OF_SCOPE:
		return painted(dim, "out of scope"), ""
	default:
		return painted(dim, "local only"), "no fleet ban covers it there"
	}
}

func (r *run) enforcementRows(hosts []*operatorv1.HostEnforcement) [][]cell {
	rows := make([][]cell, 0, len(hosts))
	for _, h := range hosts {
		state, why := r.state(h)
		rows = append(rows, []cell{c(h.GetHostName()), state, c(why), c(strings.Join(h.GetJails(), " ")), c(r.out.clock.ago(h.GetSeenUnixMs()))})
	}
	return rows
}

func refusalText(refusal fleetbanv1.Refusal) string {
	switch refusal {
	case fleetbanv1.Refusal_REFUSAL_OWN_ADDRESS:
		return "it is the host's own address"
	case fleetbanv1.Refusal_REFUSAL_GATEWAY:
		return "it covers the host's gateway"
	case fleetbanv1.Refusal_REFUSAL_RESOLVER:
		return "it covers the host's resolver"
	case fleetbanv1.Refusal_REFUSAL_CONTROL_PLANE:
		return "it covers the control plane"
	case fleetbanv1.Refusal_REFUSAL_FLEET_HOST:
		return "it covers another host of the fleet"
	case fleetbanv1.Refusal_REFUSAL_SSH_PEER:
		return "someone is logged in by SSH from there"
	case fleetbanv1.Refusal_REFUSAL_RESERVED_RANGE:
		return "it is a private or special range"
	case fleetbanv1.Refusal_REFUSAL_HOST_POLICY:
		return "the host's policy file protects it"
	case fleetbanv1.Refusal_REFUSAL_TOO_WIDE:
		return "it is wider than the host's policy allows"
	case fleetbanv1.Refusal_REFUSAL_COVERAGE:
		return "all bans together would cover more than the host's policy allows"
	case fleetbanv1.Refusal_REFUSAL_LOCAL_ALLOW:
		return "someone on the host allowed it"
	case fleetbanv1.Refusal_REFUSAL_KERNEL:
		return "its kernel refused it"
	default:
		return "refused"
	}
}
