package agentapi

import (
	"context"
	"log/slog"
	"time"
)

// storeEvery is how often Redis is asked whether it is there, and storeWithin how long it may take to answer: one that
// can't write to its disk answers nobody.
const storeEvery, storeWithin = time.Second, 2 * time.Second

// watchStore keeps the hosts told whether what they send is stored, and at once of a clock that was set. Two failures in a row
// count: a restart is over in less.
func (s *Service) watchStore() {
	tick := time.NewTicker(storeEvery)
	defer tick.Stop()
	failed := 0
	_, steps := s.Told()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-tick.C:
		}
		ctx, cancel := context.WithTimeout(s.ctx, storeWithin)
		err := s.Store.Ping(ctx)
		cancel()
		if s.ctx.Err() != nil {
			return
		}
		if _, now := s.Told(); now != steps {
			steps = now
			s.beatAll()
		}
		failed++
		if err == nil {
			failed = 0
		}
		if failed == 1 {
			continue
		}
		away := failed > 0
		if s.storeAway.Swap(away) == away {
			continue
		}
		if away {
			s.Logger.Warn("Redis is away: hosts are told, and keep what they have to say until it is back", slog.Any("error", err))
		} else {
			s.Logger.Info("Redis is back: hosts are told")
		}
		s.beatAll()
	}
}

// beatAll sends every host a heartbeat.
func (s *Service) beatAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for st := range s.streams {
		st.note(func(m *mailbox) { m.heartbeat = true })
	}
}
