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

// Limits say how much is let through, over all replicas. An IPv6 /64 counts as one address.
type Limits struct {
	// Calls is per API token or account and second. Default 10,000.
	Calls int
	// Organisation is per organisation and second, whoever calls. Default 20,000.
	Organisation int
	// Failures is how many wrong credentials an address may show in a minute. Default 30.
	Failures int
	// Tries is how often an address may call what needs no credential (sign-in, refresh, enrolment) in a minute. Default 60,000:
	// a whole fleet may enrol from behind one address.
	Tries int
	// Connects is how often a host may connect in a minute. Default 240.
	Connects int
}

// Limiter keeps rate limits in Redis (GCRA), so that one limit holds however many replicas there are. A nil Limiter
// limits nothing.
//
// With Redis away, calls are limited by each replica for itself, and credentials that failed are refused unseen: whoever
// guesses isn't to learn anything from an outage.
type Limiter struct {
	rate   *store.Limiter
	limits Limits
	logger *slog.Logger

	mu     sync.Mutex
	leases map[string]*lease
}

// lease is a share of a rate that was taken from Redis at once: a busy program costs a round trip for many calls.
type lease struct {
	left  int
	share int
	until time.Time
	// alone: granted while Redis was away.
	alone bool
	// remaining is what Redis had left after this share, and full when all of the rate is there again.
	remaining int
	full      time.Time
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
	if limits.Organisation <= 0 {
		limits.Organisation = max(20_000, limits.Calls)
	}
	if limits.Tries <= 0 {
		limits.Tries = 60_000
	}
	if limits.Connects <= 0 {
		limits.Connects = 240
	}
	if logger == nil {
		logger = slog.Default()
	}
	return &Limiter{rate: store.NewLimiter(st), limits: limits, logger: logger, leases: make(map[string]*lease)}
}

// budget is what a share is taken of.
type budget struct {
	id, key string
	rate    int // a second
	// first is the share that is taken to begin with.
	first int
	who   string
}

// call counts one call of a principal, for itself and for its organisation.
func (l *Limiter) call(ctx context.Context, p Principal) error {
	if l == nil {
		return nil
	}
	now := time.Now()
	budgets := [2]budget{
		{p.Org + "/" + p.ID, store.Key(p.Org, "calls", p.ID), l.limits.Calls, 1, "this token or account"},
		// Taken in larger shares, so that it costs few round trips beside the other.
		{p.Org, store.Key(p.Org, "calls"), l.limits.Organisation, 16, "this organisation"},
	}
	var shares [2]int
	var states [2]Allowance
	var errs [2]error
	for i, b := range budgets {
		shares[i], states[i] = l.spend(b, now)
	}
	var both sync.WaitGroup // at once: two round trips take as long as one
	if shares[1] > 0 {
		both.Go(func() { states[1], errs[1] = l.lease(ctx, budgets[1], shares[1]) })
	}
	if shares[0] > 0 {
		states[0], errs[0] = l.lease(ctx, budgets[0], shares[0])
	}
	both.Wait()
	for i, err := range errs {
		if err != nil {
			states[i].Tell(ctx)
			return err
		}
	}
	states[0].Tell(ctx)
	return nil
}

// lease takes a share from Redis, one call of which is the caller's.
func (l *Limiter) lease(ctx context.Context, b budget, share int) (Allowance, error) {
	result, err := l.rate.AllowAtMost(ctx, b.key, redis_rate.PerSecond(b.rate), share)
	now := time.Now()
	if err != nil {
		if ctx.Err() != nil {
			return Allowance{}, ctx.Err()
		}
		l.logger.WarnContext(ctx, "rate limits are kept by this replica alone: Redis doesn't answer", slog.Any("error", err))
		if !l.grantAlone(b, now) {
			refused := Allowance{Limit: b.rate, Reset: leaseLife, RetryAfter: leaseLife}
			return refused, limited(b.tooOften(), leaseLife)
		}
		return Allowance{Limit: b.rate, Remaining: b.rate - 1, Reset: leaseLife}, nil
	}
	state := Allowance{Limit: b.rate, Remaining: result.Remaining + max(result.Allowed-1, 0), Reset: result.ResetAfter}
	if result.Allowed < 1 {
		state.RetryAfter = max(result.RetryAfter, time.Millisecond)
		return state, limited(b.tooOften(), result.RetryAfter)
	}
	l.grant(b.id, lease{left: result.Allowed - 1, share: share, remaining: result.Remaining, full: now.Add(result.ResetAfter), until: now.Add(leaseLife)}, now)
	return state, nil
}

// connect counts one connection of a host. With Redis away nobody is authenticated, and it says so itself.
func (l *Limiter) connect(ctx context.Context, org, host string) error {
	if l == nil {
		return nil
	}
	result, err := l.rate.Allow(ctx, store.Key(org, "connects", host), redis_rate.PerMinute(l.limits.Connects))
	if err != nil || result.Allowed > 0 {
		return nil //nolint:nilerr // see above
	}
	Allowance{Limit: l.limits.Connects, Reset: result.ResetAfter, RetryAfter: result.RetryAfter}.Tell(ctx)
	return limited("this host connects too often", result.RetryAfter)
}

// spend takes one call of what was leased, or says how much to lease.
func (l *Limiter) spend(b budget, now time.Time) (share int, state Allowance) {
	l.mu.Lock()
	defer l.mu.Unlock()
	held := l.leases[b.id]
	switch {
	case held == nil, now.After(held.until):
		return b.first, state
	case held.left > 0:
		held.left--
		return 0, Allowance{Limit: b.rate, Remaining: held.left + held.remaining, Reset: held.full.Sub(now)}
	default:
		// Used up within its life: this is a busy one.
		return min(held.share*2, maxShare), state
	}
}

// grant records what was leased.
func (l *Limiter) grant(id string, got lease, now time.Time) {
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
	if held := l.leases[id]; held != nil && !now.After(held.until) {
		got.left += held.left
	}
	l.leases[id] = &got
}

// grantAlone gives a second's whole rate once in a second, with no one to ask.
func (l *Limiter) grantAlone(b budget, now time.Time) bool {
	l.mu.Lock()
	held := l.leases[b.id]
	again := held != nil && held.alone && now.Before(held.until)
	l.mu.Unlock()
	if again {
		return false
	}
	l.grant(b.id, lease{left: b.rate - 1, share: 1, alone: true, full: now.Add(leaseLife), until: now.Add(leaseLife)}, now)
	return true
}

func (b budget) tooOften() string {
	return fmt.Sprintf("%s calls too often: %d calls a second are possible", b.who, b.rate)
}

// mayTry counts a call that needs no credential, and refuses an address that made too many or failed too often. With Redis
// away nobody may: who guesses isn't to gain by an outage.
func (l *Limiter) mayTry(ctx context.Context, addr netip.Addr) error {
	if l == nil || !addr.IsValid() {
		return nil
	}
	result, err := l.rate.Allow(ctx, store.Global("tries", group(addr)), redis_rate.PerMinute(l.limits.Tries))
	if err != nil {
		return fmt.Errorf("count attempts: %w", store.Classify(err))
	}
	state := Allowance{Limit: l.limits.Tries, Remaining: result.Remaining, Reset: result.ResetAfter}
	if result.Allowed < 1 {
		state.RetryAfter = result.RetryAfter
		state.Tell(ctx)
		return limited("too many attempts from "+group(addr), result.RetryAfter)
	}
	state.Tell(ctx)
	return l.failures(ctx, addr, 0)
}

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
		Allowance{Limit: l.limits.Failures, Reset: result.ResetAfter, RetryAfter: max(result.RetryAfter, time.Second)}.Tell(ctx)
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
	err := apierr.New(connect.CodeResourceExhausted, fleetbanv1.Reason_REASON_RATE_LIMITED, "", message, fix)
	err.RetryAfter = max(wait, 0)
	return err
}
