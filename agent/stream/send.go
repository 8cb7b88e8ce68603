package stream

import (
	"log/slog"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

// sender is what the sending goroutine remembers.
type sender struct {
	s          *session
	eventsSent uint64
	lastHealth time.Time
	// standing is what the last Health said but for its counts; drift, if not zero, is when new counts are due, and pace what they
	// wait for.
	standing string
	drift    time.Time
	pace     time.Duration
}

// send sends what is due until the stream ends. Its error is not the reason of the end: the receiver has that.
func (s *session) send(beat time.Duration) error {
	w := sender{s: s, eventsSent: s.welcome.GetEventsThrough(), lastHealth: time.Now(), standing: s.standing}
	ticker := time.NewTicker(beat)
	defer ticker.Stop()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var m *fleetbanv1.ConnectRequest
	var beats bool
	for {
		s.sending.Lock()
		pause, err := w.round(m, beats)
		s.sending.Unlock()
		if err != nil {
			return err
		}
		var later <-chan time.Time
		if pause > 0 {
			timer.Reset(pause)
			later = timer.C
		}
		m, beats = nil, false
		select {
		case <-s.ctx.Done():
			return nil
		case m = <-s.out:
		case <-s.wake:
		case <-s.cfg.Source.Appended():
		case <-later:
		case <-ticker.C:
			beats = true
		}
	}
}

// round sends m, if it isn't nil, a heartbeat if that is to be, and what is due. It returns how long until something else is due; 0:
// nothing is. The caller holds the session's sending.
func (w *sender) round(m *fleetbanv1.ConnectRequest, beats bool) (time.Duration, error) {
	if beats {
		m = fleetbanv1.ConnectRequest_builder{Heartbeat: fleetbanv1.AgentHeartbeat_builder{
			Cursors: w.s.cursors(), HostUnixMs: time.Now().UnixMilli(),
		}.Build()}.Build()
	}
	if m != nil {
		if err := w.s.stream.send(m); err != nil {
			return 0, err
		}
	}
	return w.due()
}

// due sends what is due now, and returns how long until something else is; 0: nothing is.
func (w *sender) due() (time.Duration, error) {
	if err := w.events(); err != nil {
		return 0, err
	}
	s := w.s
	for _, r := range s.c.takeResults() {
		if err := s.stream.send(fleetbanv1.ConnectRequest_builder{CommandResult: r}.Build()); err != nil {
			return 0, err
		}
	}
	pause, err := s.ack()
	if err != nil {
		return 0, err
	}
	wait, err := w.health()
	return least(pause, wait), err
}

// health tells how the host is, where that has changed: at once what a person should know, and later what any ban changes.
func (w *sender) health() (time.Duration, error) {
	s := w.s
	due, counts := s.healthDue.Load(), s.countsDue.Load()
	if !due && !counts {
		return 0, nil
	}
	if counts && w.drift.IsZero() {
		w.wait()
	}
	if left := healthGap - time.Since(w.lastHealth); left > 0 {
		return left, nil
	}
	left := time.Until(w.drift)
	if !due && left > 0 {
		return left, nil // what is known to have changed waits
	}
	s.healthDue.Store(false)
	s.countsDue.Store(false)
	h := s.cfg.Health()
	if is := standing(h); is != w.standing {
		w.standing = is
	} else if w.drift.IsZero() || left > 0 {
		s.countsDue.Store(true)
		if w.drift.IsZero() {
			w.wait()
		}
		return max(time.Until(w.drift), time.Millisecond), nil
	}
	w.lastHealth, w.drift = time.Now(), time.Time{}
	return 0, s.stream.send(fleetbanv1.ConnectRequest_builder{Health: h}.Build())
}

// wait has counts wait for more of their kind. Every ban changes those of every host: they must not delay its acknowledgements, nor come
// from all at once.
func (w *sender) wait() {
	if w.pace *= 2; w.pace == 0 || time.Since(w.lastHealth) > 2*w.pace {
		w.pace = driftLeast
	}
	w.pace = min(w.pace, driftMost)
	w.drift = time.Now().Add(w.pace + time.Duration(rand.Int64N(int64(w.pace)))) //nolint:gosec // no secret
}

// standing is a Health without what any ban changes.
func standing(h *fleetbanv1.Health) string {
	f, e := h.GetFail2Ban(), h.GetEnforcer()
	parts := []string{f.GetProblem(), e.GetBackend(), e.GetProblem(), h.GetSpool().GetProblem(), h.GetPolicyLevel()}
	for _, n := range []int64{
		int64(f.GetState()), int64(f.GetSource()), int64(len(f.GetJails())), int64(e.GetInert()), int64(e.GetRepairs()), e.GetOffUntilUnixMs(), //nolint:gosec // to be told apart
		int64(h.GetSpool().GetLost()), //nolint:gosec // as above
	} {
		parts = append(parts, strconv.FormatInt(n, 10))
	}
	for _, finding := range h.GetFindings() {
		parts = append(parts, finding.GetCode(), finding.GetProblem())
	}
	return strings.Join(parts, "\x00")
}

// least is the lesser of two pauses, of which 0 is none.
func least(a, b time.Duration) time.Duration {
	if a == 0 || b == 0 {
		return max(a, b)
	}
	return min(a, b)
}

func (w *sender) events() error {
	s := w.s
	for {
		s.mu.Lock()
		stored := s.eventAck
		s.mu.Unlock()
		room := int64(stored+maxUnacked) - int64(w.eventsSent) //nolint:gosec // sequences stay far below
		if room <= 0 {
			return nil
		}
		events, err := s.cfg.Source.Next(w.eventsSent, int(min(room, maxBatch)))
		if err != nil {
			return err
		}
		if len(events) == 0 {
			return nil
		}
		w.eventsSent = events[len(events)-1].GetSeq()
		s.mu.Lock()
		if s.probe == 0 {
			s.probe, s.probedAt = w.eventsSent, time.Now()
		}
		s.mu.Unlock()
		batch := fleetbanv1.EventBatch_builder{Spool: s.cfg.Source.ID(), Events: events}.Build()
		begun := time.Now()
		if err := s.stream.send(fleetbanv1.ConnectRequest_builder{Events: batch}.Build()); err != nil {
			return err
		}
		s.tellSent(events, begun)
	}
}

// tellSent tells, to who debugs how long a ban takes, when it left: microseconds of Unix time.
func (s *session) tellSent(events []*fleetbanv1.Event, begun time.Time) {
	if !s.cfg.Log.Enabled(s.ctx, slog.LevelDebug) {
		return
	}
	sent := time.Now().UnixMicro()
	for _, e := range events {
		if p, err := prefix.Unpack(e.GetPrefix()); err == nil && e.HasBan() {
			s.cfg.Log.Debug("ban sent", "prefix", p.String(), "sending_us", begun.UnixMicro(), "sent_us", sent)
		}
	}
}

// tellApplied tells when a change of one prefix came and when it was in force.
func (s *session) tellApplied(d *fleetbanv1.Delta, received time.Time) {
	if !s.cfg.Log.Enabled(s.ctx, slog.LevelDebug) || len(d.GetRecords()) != 1 {
		return
	}
	if p, err := prefix.Unpack(d.GetRecords()[0].GetPrefix()); err == nil {
		s.cfg.Log.Debug("change applied", "prefix", p.String(), "set", d.GetSet(), "version", d.GetVersion(),
			"received_us", received.UnixMicro(), "applied_us", time.Now().UnixMicro())
	}
}
