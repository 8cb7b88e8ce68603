package helper

import (
	"context"
	"log/slog"
	"sync"

	"github.com/fleetban/fleetban/agent/internal/lately"
)

// presence knows whether the unprivileged half is there: it keeps a stream of health for as long as it lives.
type presence struct {
	// ending is done when the helper itself ends, which takes the streams along.
	ending context.Context //nolint:containedctx // the helper's

	mu      sync.Mutex
	streams int
	missed  bool // its absence was logged
}

// attend notes that a stream is there until the returned function is called.
func (p *presence) attend(log *slog.Logger, l *lately.Log) (leave func()) {
	p.mu.Lock()
	p.streams++
	back := p.missed
	p.missed = false
	p.mu.Unlock()
	if back {
		log.Info("the unprivileged half is back")
	}
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.streams--; p.streams == 0 && p.ending.Err() == nil {
			p.missed = l.Note("agent-left", "the unprivileged half left: until it is back nothing new comes from the fleet or goes to it; what is enforced stays")
		}
	}
}
