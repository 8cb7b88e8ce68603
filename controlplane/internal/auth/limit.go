package auth

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/go-redis/redis_rate/v10"

	"github.com/fleetban/fleetban/controlplane/internal/apierr"
	"github.com/fleetban/fleetban/controlplane/internal/store"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// Limits say how much is let through.
type Limits struct {
	// Calls is per API token and second, over all replicas. Default 10,000.
	Calls int
	// Failures is per client address (an IPv6 /64 counts as one) and minute. Default 30.
	Failures int
}

// Limiter keeps rate limits in Redis (GCRA), so that one limit holds however many replicas there are. A nil Limiter
// limits nothing.
//
// With Redis away, calls are limited by each replica for itself, and credentials that failed are refused unseen: whoever
// guesses isn't to learn anything from an outage.
type Limiter struct {
	rate   *redis_rate.Limiter
	limits Limits
	logger *slog.Logger

	mu     sync.Mutex
	leases map[string]*lease
}

// lease is a share of a token's rate that was taken from Redis at once: a busy program costs a round trip for many calls.
type lease struct {
	left  int
	share int
	until time.Time
	// alone: granted while Redis was away.
	alone bool
}

const (
	leaseLife = time.Second
	// maxShare bounds what is taken at once, and so how much of a rate a replica may hold unused.
	maxShare = 256
	// maxLeases bounds memory; when it is reached the expired ones go, then all.
	maxLeases = 10_000
)

// NewLimiter makes a Limiter over st.
func NewLimiter(st *store.Store, limits Limits, logger *slog.Logger) *Limiter {
	if limits.Calls <= 0 {
		limits.Calls = 10_000
	}
	if limits.Failures <= 0 {
		limits.Failures = 30
	}
	if logger == nil {
		logger = slog.Default()
	}
	return &Limiter{rate: redis_rate.NewLimiter(st.Client()), limits: limits, logger: logger, leases: make(map[string]*lease)}
}

// call counts one call of a principal.
func (l *Limiter) call(ctx context.Context, p Principal) error {
	if l == nil {
		return nil
	}
	id := p.Org + "/" + p.ID
	share, ok := l.spend(id, time.Now())
	if ok {
		return nil
	}
	result, err := l.rate.AllowAtMost(ctx, store.Key(p.Org, "calls", p.ID), redis_rate.PerSecond(l.limits.Calls), share)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		l.logger.WarnContext(ctx, "rate limits are kept by this replica alone: Redis doesn't answer", slog.Any("error", err))
		if !l.grantAlone(id, time.Now()) {
			return limited(l.tooOften(), leaseLife)
		}
		return nil
	}
	if result.Allowed < 1 {
		return limited(l.tooOften(), result.RetryAfter)
	}
	l.grant(id, result.Allowed, share, time.Now())
	return nil
}

// spend takes one call of what was leased, or says how much to lease.
func (l *Limiter) spend(id string, now time.Time) (share int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	held := l.leases[id]
	switch {
	case held == nil:
		return 1, false
	case now.After(held.until):
		return 1, false
	case held.left > 0:
		held.left--
		return 0, true
	default:
		// Used up within its life: this is a busy one.
		return min(held.share*2, maxShare), false
	}
}

// grant records what was leased, less the call that asked.
func (l *Limiter) grant(id string, n, share int, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.leases) >= maxLeases {
		for other, held := range l.leases {
			if now.After(held.until) {
				delete(l.leases, other)
			}
		}
		if len(l.leases) >= maxLeases {
			clear(l.leases)
		}
	}
	held := l.leases[id]
	if held == nil || now.After(held.until) {
		held = &lease{}
		l.leases[id] = held
	}
	held.left += n - 1
	held.share = max(share, 1)
	held.until = now.Add(leaseLife)
}

// grantAlone gives a second's whole rate once in a second, with no one to ask.
func (l *Limiter) grantAlone(id string, now time.Time) bool {
	l.mu.Lock()
	held := l.leases[id]
	again := held != nil && held.alone && now.Before(held.until)
	l.mu.Unlock()
	if again {
		return false
	}
	l.grant(id, l.limits.Calls, 1, now)
	l.mu.Lock()
	defer l.mu.Unlock()
	if held := l.leases[id]; held != nil {
		held.alone = true
	}
	return true
}

func (l *Limiter) tooOften() string {
	return fmt.Sprintf("this token calls too often: %d calls a second are possible", l.limits.Calls)
}

// mayTry refuses an address that failed too often, before it tries again.
func (l *Limiter) mayTry(ctx context.Context, addr netip.Addr) error { return l.failures(ctx, addr, 0) }

// failed counts a failure, and returns the refusal to answer with where there were too many.
func (l *Limiter) failed(ctx context.Context, addr netip.Addr) error { return l.failures(ctx, addr, 1) }

func (l *Limiter) failures(ctx context.Context, addr netip.Addr, n int) error {
	if l == nil || !addr.IsValid() {
		return nil
	}
	limit := redis_rate.PerMinute(l.limits.Failures)
	result, err := l.rate.AllowN(ctx, store.Global("failures", group(addr)), limit, n)
	if err != nil {
		return fmt.Errorf("count failed credentials: %w", store.Classify(err))
	}
	if result.Allowed < n || n == 0 && result.Remaining < 1 {
		return limited("too many wrong credentials from "+group(addr), result.RetryAfter)
	}
	return nil
}

// group is what counts as one client: whoever has an IPv6 address usually has its /64.
func group(addr netip.Addr) string {
	if addr.Is6() && !addr.Is4In6() {
		if p, err := addr.WithZone("").Prefix(64); err == nil {
			return p.String()
		}
	}
	return addr.Unmap().String()
}

func limited(message string, wait time.Duration) error {
	fix := "wait a moment and try again"
	if wait > 0 {
		fix = "try again in " + (wait.Truncate(time.Millisecond) + time.Millisecond).String()
	}
	return apierr.New(connect.CodeResourceExhausted, fleetbanv1.Reason_REASON_RATE_LIMITED, "", message, fix)
}
