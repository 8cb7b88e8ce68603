package store

import (
	"context"
	"time"

	"github.com/go-redis/redis_rate/v10"
)

// Limiter is redis_rate's (GCRA) for a server whose clock may be set back: what it keeps is when all that was granted is given
// back, by that clock, and a time that no grants could have led to would refuse everybody until the clock is there.
type Limiter struct{ rate *redis_rate.Limiter }

// NewLimiter returns the limiter of a store.
func NewLimiter(st *Store) *Limiter { return &Limiter{redis_rate.NewLimiter(st.Client())} }

// Allow is AllowN of one.
func (l *Limiter) Allow(ctx context.Context, key string, limit redis_rate.Limit) (*redis_rate.Result, error) {
	return l.AllowN(ctx, key, limit, 1)
}

// AllowN grants n, or none.
func (l *Limiter) AllowN(ctx context.Context, key string, limit redis_rate.Limit, n int) (*redis_rate.Result, error) {
	return l.ask(ctx, key, limit, n, l.rate.AllowN)
}

// AllowAtMost grants as many of n as there are.
func (l *Limiter) AllowAtMost(ctx context.Context, key string, limit redis_rate.Limit, n int) (*redis_rate.Result, error) {
	return l.ask(ctx, key, limit, n, l.rate.AllowAtMost)
}

func (l *Limiter) ask(ctx context.Context, key string, limit redis_rate.Limit, n int,
	ask func(context.Context, string, redis_rate.Limit, int) (*redis_rate.Result, error),
) (*redis_rate.Result, error) {
	result, err := ask(ctx, key, limit, n)
	if err != nil || limit.Rate <= 0 {
		return result, err
	}
	whole := limit.Period * time.Duration(limit.Burst) / time.Duration(limit.Rate)
	if result.ResetAfter <= whole+time.Second {
		return result, nil
	}
	if err := l.rate.Reset(ctx, key); err != nil {
		return nil, err
	}
	return ask(ctx, key, limit, n)
}

// Reset forgets what was granted.
func (l *Limiter) Reset(ctx context.Context, key string) error { return l.rate.Reset(ctx, key) }
