package agentapi

import (
	"errors"
	"io"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/controlplane/internal/apierr"
	"github.com/fleetban/fleetban/controlplane/internal/feed"
	"github.com/fleetban/fleetban/controlplane/internal/metrics"
	"github.com/fleetban/fleetban/controlplane/internal/sets"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// owed is one change that was sent and isn't acknowledged yet: one is measured at a time, all of them would cost memory for
// each stream. The zero owed is none.
type owed struct {
	set            string
	epoch, version uint64
	heard          feed.Moment
	sent           int64 // ms, see monotonic
}

// owe notes what the host will owe an answer for, before it is sent: the answer may be there before who sends goes on.
func (st *stream) owe(frames []*feed.Frame) {
	st.more = len(frames) >= framesAtOnce
	heard, last := st.sub.Heard(), frames[len(frames)-1].Cursor
	if heard == 0 || last.Set == "" {
		return
	}
	st.mu.Lock()
	if st.owed.heard == 0 {
		st.owed = owed{set: last.Set, epoch: last.Epoch, version: last.Version, heard: heard, sent: monotonic()}
	}
	st.mu.Unlock()
}

// framesSent counts what was just sent.
func (st *stream) framesSent(frames []*feed.Frame) {
	bytes := 0
	for _, f := range frames {
		bytes += len(f.Bytes)
	}
	heard := st.sub.Heard()
	took := heard.Ago()
	st.service.Metrics.FramesSent(len(frames), bytes, took)
	if heard != 0 {
		st.tenant.pace.wrote(took)
	}
}

// receive looks whether cursors that the host acknowledges are what it owes. waited: something waits for that to be sent. The caller
// holds st.mu.
func (st *stream) receive(cursors []sets.Cursor) (waited bool) {
	if st.owed.heard == 0 {
		return false
	}
	for _, c := range cursors {
		if c.Set != st.owed.set {
			continue
		}
		switch {
		case c.Epoch != st.owed.epoch: // it was made up for since
		case c.Version >= st.owed.version:
			st.service.Metrics.Receipt(st.owed.heard.Ago())
		default:
			return false
		}
		waited = st.held
		st.owed, st.held = owed{}, false
		return waited
	}
	return false
}

// endOf is why a stream ended, as metrics name it.
func endOf(err error) string {
	switch {
	case err == nil, errors.Is(err, io.EOF):
		return metrics.EndClosed
	case errors.Is(err, errDraining):
		return metrics.EndDrained
	case errors.Is(err, errDisplaced):
		return metrics.EndDisplaced
	case errors.Is(err, errHostDeleted):
		return metrics.EndDeleted
	case errors.Is(err, errSilent):
		return metrics.EndSilent
	case errors.Is(err, errSlow):
		return metrics.EndSlow
	case apierr.ReasonOf(err) == fleetbanv1.Reason_REASON_HOST_CLONED:
		return metrics.EndQuarantined
	case connect.CodeOf(err) == connect.CodeInvalidArgument, connect.CodeOf(err) == connect.CodeResourceExhausted,
		apierr.ReasonOf(err) == fleetbanv1.Reason_REASON_INVALID_FIELD:
		return metrics.EndRefused
	default:
		return metrics.EndBroken
	}
}

// State tells how the agents are that are connected here.
func (s *Service) State() metrics.AgentState {
	out := metrics.AgentState{Inert: map[string]int{}}
	s.mu.Lock()
	streams := make([]*stream, 0, len(s.streams))
	for st := range s.streams {
		streams = append(streams, st)
	}
	tenants := make([]*tenant, 0, len(s.tenants))
	for _, t := range s.tenants {
		tenants = append(tenants, t)
	}
	s.mu.Unlock()
	out.Streams, out.Organisations = len(streams), len(tenants)
	for _, t := range tenants {
		t.mu.Lock()
		out.AcksWaiting += len(t.acked)
		t.mu.Unlock()
	}
	for _, st := range streams {
		st.mu.Lock()
		health, inert, owes := st.health, st.inert, st.owed.heard.Ago()
		st.mu.Unlock()
		if owes > metrics.OwingAfter {
			out.Owing++
		}
		out.Oldest = max(out.Oldest, owes)
		if why, ok := inertNames[inert]; ok {
			out.Inert[why]++
		}
		spool := health.GetSpool()
		out.SpoolEvents += spool.GetWaiting()
		out.SpoolBytes += spool.GetBytes()
		out.SpoolLost += spool.GetLost()
		out.SpoolFullest = max(out.SpoolFullest, spool.GetWaiting())
		out.Repairs += health.GetEnforcer().GetRepairs()
		switch health.GetFail2Ban().GetState() {
		case fleetbanv1.Fail2BanHealth_STATE_DOWN, fleetbanv1.Fail2BanHealth_STATE_BROKEN:
			out.Fail2banDown++
		default:
		}
	}
	return out
}

var inertNames = map[fleetbanv1.Inert]string{
	fleetbanv1.Inert_INERT_OFF: "off", fleetbanv1.Inert_INERT_PAUSED: "paused", fleetbanv1.Inert_INERT_UNABLE: "unable",
	fleetbanv1.Inert_INERT_OBSERVE: "observe", fleetbanv1.Inert_INERT_PROXIED: "proxied",
}
