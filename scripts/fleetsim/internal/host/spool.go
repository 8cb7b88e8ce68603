package host

import (
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/fleetban/fleetban/agent/stream"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

// spool is a host's events that wait for an acknowledgement, as the agent's spool keeps them.
type spool struct {
	id       string
	appended chan struct{}

	mu      sync.Mutex
	last    uint64
	acked   uint64
	waiting []*event // acked+1 … last
}

// event is one change of what the host's fail2ban has banned.
type event struct {
	seq    uint64
	jail   string
	prefix netip.Prefix
	made   time.Time
	ban    *fleetbanv1.ObservedBan
	unban  *fleetbanv1.ObservedUnban
	stored func(at time.Time) // called once it is acknowledged; may be nil
}

func newSpool(id string) *spool { return &spool{id: id, appended: make(chan struct{}, 1)} }

var _ stream.Source = (*spool)(nil)

func (s *spool) append(e *event) {
	s.mu.Lock()
	s.last++
	e.seq = s.last
	s.waiting = append(s.waiting, e)
	s.mu.Unlock()
	select {
	case s.appended <- struct{}{}:
	default:
	}
}

// ID implements stream.Source.
func (s *spool) ID() string { return s.id }

// Begin implements stream.Source.
func (s *spool) Begin(through uint64) error {
	s.mu.Lock()
	last := s.last
	s.mu.Unlock()
	if through > last {
		return fmt.Errorf("the control plane has stored event %d of a spool that ends with %d", through, last)
	}
	s.Ack(s.id, through)
	return nil
}

// Next implements stream.Source.
func (s *spool) Next(after uint64, limit int) ([]*fleetbanv1.Event, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*fleetbanv1.Event
	for _, e := range s.waiting {
		if e.seq <= after {
			continue
		}
		if len(out) == limit {
			break
		}
		out = append(out, fleetbanv1.Event_builder{
			Seq: e.seq, Jail: e.jail, Prefix: prefix.Pack(e.prefix), AgeMs: time.Since(e.made).Milliseconds(), Ban: e.ban, Unban: e.unban,
		}.Build())
	}
	return out, nil
}

// Ack implements stream.Source.
func (s *spool) Ack(id string, through uint64) {
	if id != s.id {
		return
	}
	now := time.Now()
	s.mu.Lock()
	n := 0
	for n < len(s.waiting) && s.waiting[n].seq <= through {
		n++
	}
	done := s.waiting[:n]
	s.waiting = s.waiting[n:]
	s.acked = max(s.acked, through)
	s.mu.Unlock()
	for _, e := range done {
		if e.stored != nil {
			e.stored(now)
		}
	}
}

// Appended implements stream.Source.
func (s *spool) Appended() <-chan struct{} { return s.appended }

// left is how many events wait.
func (s *spool) left() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.waiting)
}
