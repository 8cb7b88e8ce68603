package agentapi

import (
	"testing"
	"time"
)

// TestPatience: the longest of late counts, a replica that is quick has none, and none has more than a second.
func TestPatience(t *testing.T) {
	t.Parallel()
	var p pace
	p.most.Store(mostPatience.Nanoseconds())
	want := func(what string, least, most time.Duration) {
		t.Helper()
		if got := p.patience(); got < least || got > most {
			t.Errorf("%s: %s, want %s to %s", what, got, least, most)
		}
	}
	want("at first", 0, 0)
	p.wrote(leastPatience/patienceFactor - 1)
	want("when it was quick", 0, 0)
	p.wrote(50 * time.Millisecond)
	want("after 50 ms", 4*50*time.Millisecond, 4*50*time.Millisecond)
	for range 100 {
		p.wrote(time.Millisecond)
	}
	want("after a few that were quicker", 190*time.Millisecond, 200*time.Millisecond)
	for range 10 * lagFades {
		p.wrote(time.Millisecond)
	}
	want("after a round that was", 0, 0)
	p.wrote(time.Minute)
	want("after a minute", mostPatience, mostPatience)
}

// Slow has the streams of an organisation wait for answers up to this long, as where the replica has no time.
func (s *Service) Slow(org string, patience time.Duration) {
	s.mu.Lock()
	t := s.tenants[org]
	s.mu.Unlock()
	t.pace.most.Store(patience.Nanoseconds())
	t.pace.lag.Store(patience.Nanoseconds())
}

// HoldsBack reports whether something waits for the host's answer.
func (s *Service) HoldsBack(org, host string) bool {
	s.mu.Lock()
	t := s.tenants[org]
	s.mu.Unlock()
	st := t.stream(host)
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.held
}
