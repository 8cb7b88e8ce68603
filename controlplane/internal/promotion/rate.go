package promotion

import (
	"context"
	"fmt"

	"github.com/go-redis/redis_rate/v10"
	"github.com/redis/go-redis/v9"

	"github.com/fleetban/fleetban/controlplane/internal/store"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
)

// Promotions a minute. What exceeds them stays local.
const (
	HostPerMinute         = 30
	OrganisationPerMinute = 300
)

// Rates limits promotions: one limit for a host and one for an organisation, however many replicas serve them.
type Rates struct {
	limiter *redis_rate.Limiter
}

// NewRates makes a limiter in Redis.
func NewRates(client *redis.Client) *Rates { return &Rates{limiter: redis_rate.NewLimiter(client)} }

// Grant says how many of a batch may be promoted.
type Grant struct {
	// Allowed is 0 to the number asked for. The rest stays local, because of Why.
	Allowed int
	Why     operatorv1.Unpromoted
}

// Take asks for n promotions of a host. With an error (Redis is away) nothing is granted, and the caller should not
// record the events either: the agent sends them again.
func (r *Rates) Take(ctx context.Context, org, host string, n int) (Grant, error) {
	if n <= 0 {
		return Grant{}, nil
	}
	byHost, err := r.limiter.AllowAtMost(ctx, "{"+org+"}:promote:"+host, redis_rate.PerMinute(HostPerMinute), n)
	if err != nil {
		return Grant{}, fmt.Errorf("limit promotions of host %s: %w", host, store.Classify(err))
	}
	grant := Grant{Allowed: byHost.Allowed, Why: operatorv1.Unpromoted_UNPROMOTED_HOST_RATE}
	if grant.Allowed == 0 {
		return grant, nil
	}
	byOrg, err := r.limiter.AllowAtMost(ctx, "{"+org+"}:promote", redis_rate.PerMinute(OrganisationPerMinute), grant.Allowed)
	if err != nil {
		return Grant{}, fmt.Errorf("limit promotions of the organisation: %w", store.Classify(err))
	}
	if byOrg.Allowed < grant.Allowed {
		grant = Grant{Allowed: byOrg.Allowed, Why: operatorv1.Unpromoted_UNPROMOTED_ORGANISATION_RATE}
	}
	return grant, nil
}
