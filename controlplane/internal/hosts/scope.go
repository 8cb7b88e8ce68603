package hosts

import (
	"context"
	"fmt"
	"strconv"

	"github.com/redis/go-redis/v9"

	"github.com/fleetban/fleetban/controlplane/internal/scope"
	"github.com/fleetban/fleetban/controlplane/internal/store"
)

// NamesWithin maps the ids of the hosts within a scope to their names. The map must not be changed.
func (h *Hosts) NamesWithin(ctx context.Context, org string, within scope.Tags) (map[string]string, error) {
	d, err := h.directory(ctx, org)
	if err != nil {
		return nil, err
	}
	names := make(map[string]string)
	for id, e := range d.byID {
		if within.Has(e.tags) {
			names[id] = e.name
		}
	}
	return names, nil
}

// FindWithin resolves the name or id of a host within the scope to both. ErrNotFound: also where it is outside.
func (h *Hosts) FindWithin(ctx context.Context, org, host string, within scope.Tags) (Identity, error) {
	e, err := h.find(ctx, org, host)
	if err != nil {
		return Identity{}, err
	}
	if !within.Has(e.tags) {
		return Identity{}, fmt.Errorf("host %s: %w", host, ErrNotFound)
	}
	return Identity{ID: e.id, Name: e.name}, nil
}

// CountWithin is Count of the hosts within a scope.
func (h *Hosts) CountWithin(ctx context.Context, org string, within scope.Tags) (hosts, online uint32, err error) {
	if within.Whole() {
		return h.Count(ctx, org)
	}
	names, err := h.NamesWithin(ctx, org, within)
	if err != nil {
		return 0, 0, err
	}
	c := h.store.Client()
	now, err := c.Time(ctx).Result()
	if err != nil {
		return 0, 0, fmt.Errorf("count hosts: %w", store.Classify(err))
	}
	live, err := c.ZRangeArgs(ctx, redis.ZRangeArgs{
		Key: store.Key(org, "live"), ByScore: true, Start: "(" + strconv.FormatInt(now.UnixMilli()-PresenceTTL.Milliseconds(), 10), Stop: "+inf",
	}).Result()
	if err != nil {
		return 0, 0, fmt.Errorf("count hosts: %w", store.Classify(err))
	}
	for _, id := range live {
		if _, is := names[id]; is {
			online++
		}
	}
	return uint32(len(names)), online, nil //nolint:gosec // counts
}
