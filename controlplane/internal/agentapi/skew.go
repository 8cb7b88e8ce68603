package agentapi

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// skewTold is how far off a host's clock must be for people to be told. It does no harm before hostauth.ClockLeeway, and
// little beyond: agents go by the server's clock then.
const skewTold = 5 * time.Second

// clockHeard takes in a host's wall clock.
func (st *stream) clockHeard(hostMS int64) {
	if hostMS <= 0 {
		return
	}
	off := time.Duration(hostMS-st.service.Now().UnixMilli()) * time.Millisecond
	if off.Abs() < skewTold {
		off = 0
	}
	st.mu.Lock()
	// Told anew when it is another one, not for its jitter.
	changed := (st.skew - off).Abs() >= time.Second
	if changed {
		st.skew = off
	}
	st.mu.Unlock()
	if changed {
		st.tenant.healthChanged(st)
	}
}

// withSkew is health with what is to be said of the host's clock. The caller holds st.mu.
func (st *stream) withSkew() *fleetbanv1.Health {
	if st.skew == 0 || st.health == nil {
		return st.health
	}
	out, _ := proto.Clone(st.health).(*fleetbanv1.Health)
	word := "ahead of"
	if st.skew < 0 {
		word = "behind"
	}
	out.SetFindings(append(out.GetFindings(), fleetbanv1.Finding_builder{
		Severity: fleetbanv1.Finding_SEVERITY_WARNING, Code: "clock-skew",
		Problem: fmt.Sprintf("the host's clock is %s %s the control plane's", st.skew.Abs().Round(time.Second), word),
		Fix:     "Have it set: timedatectl set-ntp true. Fleetban goes by the control plane's clock meanwhile.",
	}.Build()))
	return out
}
