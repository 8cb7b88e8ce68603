package stream

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"sync"
	"time"

	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// Client keeps a stream to the control plane.
type Client struct {
	cfg   Config
	clock *clock

	mu      sync.Mutex
	status  Status
	current *session
	// resyncs counts what Resync was called for.
	resyncs uint64
	orders  orders
	// rebuilding is a set that the control plane has asked for and not yet given back whole.
	rebuilding string
	// sessions of TLS that the next stream resumes, and since when the control plane is known to be behind something that makes no
	// links; zero where it isn't.
	sessions tls.ClientSessionCache
	unlinked time.Time
	// lastInert is what the sink last said.
	lastInert fleetbanv1.Inert
}

// New makes a client; Run starts it.
func New(cfg Config) *Client {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Changed == nil {
		cfg.Changed = func() {}
	}
	if cfg.Patience == 0 {
		cfg.Patience = 15 * time.Second
	}
	return &Client{cfg: cfg, clock: newClock(), sessions: tls.NewLRUClientSessionCache(1), status: Status{Since: time.Now(), Problem: "not tried yet"}}
}

// Run keeps the stream until ctx ends.
func (c *Client) Run(ctx context.Context) error {
	var pause backoff
	var old *session // one that drains: it goes on until its successor is welcome
	skewed := false
	misses, told := 0, "" // since a stream was last welcome
	defer func() {
		if old != nil {
			old.stop(errReplaced)
		}
	}()
	for {
		s := newSession(c)
		asOf := c.resynced()
		go s.run(ctx)
		drain, err := c.follow(s, asOf, &old)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if drain {
			old = s
			continue
		}
		v, problem := judge(err)
		if InfoOf(err).GetReason() == fleetbanv1.Reason_REASON_WRONG_KEY && c.cfg.Credentials != nil {
			// The key may have been changed while this was under way.
			if _, grant := c.cfg.Credentials(ctx); grant != s.grant {
				v = soon
			}
		}
		if away := isStoreAway(err); away || v != now {
			c.setStoreAway(away, away)
		}
		if info := InfoOf(err); info.GetReason() == fleetbanv1.Reason_REASON_CLOCK_SKEW && info.GetServerUnixMs() > 0 {
			c.clock.sample(info.GetServerUnixMs(), true)
			if !skewed {
				skewed = true
				c.cfg.Log.Info("the host's clock is off; going on by the control plane's", "offset_ms", c.clock.offset().Milliseconds())
				continue
			}
		} else {
			skewed = false
		}
		if s.upFor() >= 5*time.Second && !errors.Is(err, errGap) {
			pause.reset()
		}
		if s.upFor() > 0 {
			misses, told = 0, ""
		}
		misses++
		d := busyFor(err)
		if d == 0 && v == soon {
			d = askedFor(InfoOf(err))
		}
		if d > 0 {
			problem = "the control plane has too many hosts coming at once, and named the moment to come again"
		} else {
			d = pause.next(v)
		}
		// One line an outage, and one where a stream comes and goes. A stream that is back at its first retry is no news: a
		// replica was restarted. What only a person can mend is told at once.
		if v == later && problem != told || v == soon && (misses == 2 || pause.failures == 2) {
			told = problem
			c.cfg.Log.Warn("no stream to the control plane; what is known stays enforced, and it is tried again until it works",
				"url", c.cfg.URL.String(), "problem", problem, "request_id", InfoOf(err).GetRequestId())
		}
		if !c.wait(ctx, d, problem, old) {
			return ctx.Err()
		}
	}
}

// follow watches a session until it ends or is to be replaced. *old, if any, is ended when s is welcome and else left
// alone. asOf is what resynced said before s began.
func (c *Client) follow(s *session, asOf uint64, old **session) (drain bool, err error) {
	welcomed := s.welcomed
	for {
		var oldDone <-chan struct{}
		if *old != nil {
			oldDone = (*old).done
		}
		select {
		case <-welcomed:
			welcomed = nil
			c.setUp(s)
			if c.resynced() != asOf {
				s.end(errResync) // its Hello was made while the Sink was away, or of what it held before
			}
			if *old != nil {
				(*old).stop(errReplaced)
				*old = nil
			}
			if standing(c.cfg.Health()) != s.standing {
				s.healthDue.Store(true) // it changed since the Hello
			}
			s.poke(nil) // what was signalled to the old one
		case <-oldDone:
			*old = nil
			if welcomed != nil {
				c.setDown("the replica that drained is gone and no other one has answered yet", time.Time{})
			}
		case <-s.drain:
			return true, nil
		case <-s.done:
			return false, s.err
		}
	}
}

// wait pauses; the status says why.
func (c *Client) wait(ctx context.Context, d time.Duration, problem string, old *session) bool {
	if old == nil {
		c.setDown(problem, time.Now().Add(d))
	}
	if d == 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

func (c *Client) setUp(s *session) {
	c.mu.Lock()
	was := c.status
	c.status.Connected, c.status.Problem, c.status.Retry = true, "", time.Time{}
	c.status.Replica, c.status.HostName, c.status.Organisation = s.welcome.GetReplica(), s.welcome.GetHostName(), s.welcome.GetOrganisationName()
	if !was.Connected {
		c.status.Since = time.Now()
	}
	if c.current != nil {
		c.status.Reconnects++
	}
	c.current = s
	replica := c.status.Replica
	c.mu.Unlock()
	if was.Replica != replica || !was.Connected {
		c.cfg.Log.Info("stream to the control plane is up", "replica", s.welcome.GetReplica(), "organisation", s.welcome.GetOrganisationName(),
			"request_id", s.requestID)
	}
	c.cfg.Changed()
}

func (c *Client) setDown(problem string, retry time.Time) {
	c.mu.Lock()
	if c.status.Connected {
		c.status.Since = time.Now()
	}
	c.status.Connected, c.status.Problem, c.status.Retry = false, problem, retry
	c.mu.Unlock()
	c.cfg.Changed()
}

// Status is how the stream is.
func (c *Client) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.status
	if c.current != nil {
		s.Cursors = c.current.cursors()
	}
	s.Offset = c.clock.offset()
	return s
}

// ServerNow is the server's clock as this host knows it.
func (c *Client) ServerNow() time.Time { return c.clock.now() }

// HealthChanged sends Config.Health's new answer, at most four times a second.
func (c *Client) HealthChanged() {
	if s := c.session(); s != nil {
		s.poke(&s.healthDue)
	}
}

// CountsChanged is HealthChanged for who knows that it is only counts: those are told later, and nothing is looked at before.
func (c *Client) CountsChanged() {
	if s := c.session(); s != nil && !s.countsDue.Load() {
		s.poke(&s.countsDue)
	}
}

// ExceptionsChanged sends the Sink's new exceptions.
func (c *Client) ExceptionsChanged() {
	if s := c.session(); s != nil {
		s.poke(&s.exceptionsDue)
	}
}

// Resync begins a new stream, with a Hello of what the Sink holds now: the Sink was away, or was replaced.
func (c *Client) Resync() {
	c.mu.Lock()
	c.resyncs++ // for a stream that isn't welcome yet: see follow
	s := c.current
	c.mu.Unlock()
	if s != nil {
		s.end(errResync)
	}
}

func (c *Client) resynced() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.resyncs
}

func (c *Client) session() *session {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.current
}

// mayLink reports whether it is worth a handshake to find out what is at the other end.
func (c *Client) mayLink() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Since(c.unlinked) >= unlinkedFor
}

func (c *Client) noLink() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unlinked = time.Now()
}

func (c *Client) setRoundTrip(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status.RoundTrip = d
}

func (c *Client) setInert(i fleetbanv1.Inert) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lastInert = i
}

func (c *Client) inert() fleetbanv1.Inert {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lastInert
}
