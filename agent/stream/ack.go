package stream

import (
	"time"

	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// heldFew is how many sets an acknowledgement of the receiver's names at most: it is short.
const heldFew = 16

// Who acknowledges: the goroutine that received, where a change came alone and nothing else is being sent. That is the usual case, and
// it costs no second goroutine. It must never wait for the other end to read, for the other end may wait for it; whatever might wait is
// the sender's, which is woken for it.

// hold takes in what is held of a set now.
func (s *session) hold(set string, c *fleetbanv1.SetCursor) {
	s.mu.Lock()
	i := 0
	for i < len(s.held) && s.held[i].set != set {
		i++
	}
	if i == len(s.held) {
		s.held = append(s.held, held{set: set})
	}
	s.held[i].cursor, s.held[i].unsent = c, true
	if !s.ackDue.Swap(true) {
		s.ackSince, s.gathered = time.Now(), false
	}
	s.mu.Unlock()
}

// acknowledge acknowledges what was applied, if that can be done without waiting, and reports whether it was. It is the receiver's.
func (s *session) acknowledge(now time.Time) bool {
	if s.exceptionsDue.Load() || len(s.held) > heldFew || !s.sending.TryLock() {
		return false
	}
	done := now.Sub(s.lastAck) >= ackGap && s.stream.free() && s.sendAck(fleetbanv1.Ack_builder{}) == nil
	s.sending.Unlock()
	return done
}

// ack acknowledges what was applied: at once where the receiver has nothing else at hand, else gathered. It is the sender's.
func (s *session) ack() (time.Duration, error) {
	exceptions := s.exceptionsDue.Load()
	if !s.ackDue.Load() && !exceptions {
		return 0, nil
	}
	if gap := time.Since(s.lastAck); gap < ackGap {
		return ackGap - gap, nil
	}
	s.mu.Lock()
	since := s.ackSince
	s.mu.Unlock()
	if busy := s.idleSince.Load() == 0; busy && !since.IsZero() && time.Since(since) < ackWait {
		return ackWait - time.Since(since), nil
	}
	a := fleetbanv1.Ack_builder{}
	if exceptions {
		s.exceptionsDue.Store(false)
		e, err := s.cfg.Sink.Exceptions(s.ctx)
		if err == nil {
			a.Exceptions, a.ExceptionsTotal, a.ExceptionsChanged = e.List, e.Total, true
			s.c.setInert(e.Inert)
		}
	}
	return 0, s.sendAck(a)
}

// sendAck sends an acknowledgement with all that is to be acknowledged. The caller holds sending.
func (s *session) sendAck(a fleetbanv1.Ack_builder) error {
	a.Inert = s.c.inert()
	s.mu.Lock()
	for i := range s.held {
		if h := &s.held[i]; h.unsent {
			h.unsent = false
			a.Cursors = append(a.Cursors, h.cursor)
		}
	}
	s.ackDue.Store(false)
	s.ackSince = time.Time{}
	s.mu.Unlock()
	s.lastAck = time.Now()
	return s.stream.send(fleetbanv1.ConnectRequest_builder{Ack: a.Build()}.Build())
}

// cursors is what is held.
func (s *session) cursors() []*fleetbanv1.SetCursor {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]*fleetbanv1.SetCursor, 0, len(s.held))
	for _, h := range s.held {
		out = append(out, h.cursor)
	}
	return out
}
