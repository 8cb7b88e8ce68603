package metrics

import "time"

// Why Redis failed a call.
const (
	// RedisUnavailable: nothing was changed.
	RedisUnavailable = "unavailable"
	// RedisUnknown: the change may or may not stand.
	RedisUnknown = "unknown"
	// RedisRefused: Redis answered with an error of its own.
	RedisRefused = "refused"
)

// redis are the figures of package store.
type redis struct {
	took   histograms
	errors counters
}

func (r *redis) declare(c *catalog, operations []string) {
	c.section = "Redis"
	r.took = c.histograms("fleetban_redis_seconds", "How long calls to Redis took, also those that failed, with the wait for a connection.",
		"Over 0.05 for 1 of 100 where it fsyncs each write: a slow disk, a neighbour, or a script that is too long (SLOWLOG GET).",
		shortLatencies, Label{"operation", "the script's name; command, pipeline or other for the rest"}, operations)
	r.errors = c.counters("fleetban_redis_errors_total", "Calls to Redis that failed: unavailable changed nothing, of unknown nobody knows, refused is an answer of Redis.",
		"See /readyz. unknown under load: --redis-url leads through a slow network, or its disk stalls. refused: the log has what Redis said.",
		"kind", RedisUnavailable, RedisUnknown, RedisRefused)
}

// Redis measures a call. failed is one of the Redis constants, or "".
func (m *Metrics) Redis(operation string, took time.Duration, failed string) {
	if m == nil {
		return
	}
	m.redis.took.of(operation).Observe(took.Seconds())
	if failed != "" {
		m.redis.errors.of(failed).Inc()
	}
}
