package agentapi

import (
	"sync"
	"sync/atomic"
	"time"
)

// What a message to a host costs, here and there, hardly depends on how many changes are in it. So where changes come faster than
// all hosts can be told of each, a host that hasn't answered for one is sent the next when it has, with whatever came meanwhile; or
// after patience, for who answers slowly is not to be late. Each host sets its own pace, nobody waits for the others, and there is never more
// under way than one message a host.
//
// Patience is what a replica takes that has no time: some times as long as it took, lately, from hearing of a change to sending
// it. A replica that is quick has none, and sends at once, however far away its hosts are.
const (
	patienceFactor = 4
	leastPatience  = 20 * time.Millisecond // less is none
	mostPatience   = time.Second
)

// lagFades is in how many messages a lag fades to about a third: longer than a round of a large fleet.
const lagFades = 4096

// pace is how far the streams of a tenant are to go ahead of their answers.
type pace struct {
	lag  atomic.Int64 // ns
	most atomic.Int64 // ns: mostPatience, and another in tests

	mu    sync.Mutex
	held  []heldBack // about in the order of until
	timer *time.Timer
}

// heldBack is a stream whose next message waits.
type heldBack struct {
	st    *stream
	until int64 // ms, see monotonic
}

// wrote takes how long after it was heard of a change was sent: the longest counts, and fades.
func (p *pace) wrote(took time.Duration) {
	lag := p.lag.Load()
	if took.Nanoseconds() > lag {
		p.lag.Store(took.Nanoseconds())
		return
	}
	// Two that do this at once may lose one step.
	p.lag.Store(lag - (lag-took.Nanoseconds())/lagFades)
}

// patience is how long a message waits for the answer to the one before, at most.
func (p *pace) patience() time.Duration {
	wait := time.Duration(p.lag.Load()) * patienceFactor
	if wait < leastPatience {
		return 0
	}
	return min(wait, time.Duration(p.most.Load()))
}

// hold has the stream looked after when its answer hasn't come until then.
func (p *pace) hold(st *stream, until int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held = append(p.held, heldBack{st, until})
	if len(p.held) == 1 {
		wait := time.Duration(max(1, until-monotonic())) * time.Millisecond
		if p.timer == nil {
			p.timer = time.AfterFunc(wait, p.expire)
		} else {
			p.timer.Reset(wait)
		}
	}
}

// expire has those written to that have waited long enough.
func (p *pace) expire() {
	now := monotonic()
	p.mu.Lock()
	n := 0
	for n < len(p.held) && p.held[n].until <= now {
		n++
	}
	over := p.held[:n:n]
	if p.held = p.held[n:]; len(p.held) > 0 {
		p.timer.Reset(time.Duration(max(1, p.held[0].until-now)) * time.Millisecond)
	} else {
		p.held = nil
	}
	p.mu.Unlock()
	for _, h := range over {
		h.st.mu.Lock()
		waits := h.st.held
		h.st.held = false
		h.st.mu.Unlock()
		if waits {
			h.st.rouse()
		}
	}
}

// waits reports whether what is new is to wait for an answer. Not where the host is far behind, or it would be told of so many
// changes with each answer and no more. The writer calls it, with st.mu; when the wait is over the stream is roused.
func (st *stream) waits() bool {
	if st.held || st.more || st.owed.heard == 0 {
		return st.held
	}
	p := &st.tenant.pace
	until := st.owed.sent + p.patience().Milliseconds()
	if monotonic() >= until {
		return false
	}
	st.held = true
	p.hold(st, until)
	return true
}

// rouse has the writer look for what there is to send.
func (st *stream) rouse() {
	if st.pushed != nil {
		st.pushed.schedule(st)
		return
	}
	poke(st.wake)
}
