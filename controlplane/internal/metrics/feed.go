package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// How a stream goes on from what its host holds.
const (
	ResumeLine     = "memory"
	ResumeLog      = "log"
	ResumeSnapshot = "snapshot"
	ResumeOffer    = "offer"
)

// feed are the figures of package feed.
type feed struct {
	rings          counters
	gaps, lost     prometheus.Counter
	failures       prometheus.Counter
	resumes        counters
	snapshot       prometheus.Histogram
	epochs, sweeps prometheus.Counter
}

func (f *feed) declare(c *catalog) {
	c.section = "Sets and the doorbell"
	f.rings = c.counters("fleetban_doorbell_rings_total", "Rings of the doorbell (Redis' pub/sub) heard, by kind.", "",
		"kind", "delta", "epoch", "command", "result", "kick", "settings", "acks", "events", "probe")
	f.gaps = c.counter("fleetban_doorbell_gaps_total", "Times that a change was found in Redis that the doorbell had not told of in order, and was read there.",
		"A few at a failover are nothing. If they go on, Redis drops this replica's pub/sub: raise its client-output-buffer-limit pubsub, or mend the network.")
	f.lost = c.counter("fleetban_doorbell_lost_total", "Times that the doorbell's subscription was lost, or went silent, and was made anew.",
		"Once or twice at a restart of Redis is right. If it goes on: the network to Redis.")
	f.failures = c.counter("fleetban_sets_unreadable_total", "Times that sets could not be read from Redis; it is tried again until it works.",
		"Redis is away: hosts keep what they hold, new bans wait. See /readyz.")
	f.resumes = c.counters("fleetban_resumes_total", "How streams went on from what their hosts held, a set each; of log, each piece read.",
		"snapshot on each reconnect: hosts were away for longer than the log keeps, or lose their state. offer is the rebuild after a loss of Redis.",
		"way", ResumeLine, ResumeLog, ResumeSnapshot, ResumeOffer)
	f.snapshot = c.histogram("fleetban_snapshot_seconds", "How long reading and encoding a snapshot took; streams that want one at the same time share it.",
		"Seconds: the set is large or Redis slow. Streams wait, nothing else does.", latencies)
	f.epochs = c.counter("fleetban_epochs_total", "Times that this replica saw an organisation's epoch change: Redis was restarted, failed over or lost.",
		"More than you restarted Redis: something else does, and may have lost its tail. Hosts offer back what they hold.")
	f.sweeps = c.counter("fleetban_expired_total", "Bans that ran out and were taken from their sets by this replica.", "")
}

// Rang counts a ring of the doorbell.
func (m *Metrics) Rang(kind string) {
	if m != nil {
		m.feed.rings.of(kind).Inc()
	}
}

// DoorbellGap counts a change that the doorbell left out.
func (m *Metrics) DoorbellGap() {
	if m != nil {
		m.feed.gaps.Inc()
	}
}

// DoorbellLost counts a subscription that is made anew.
func (m *Metrics) DoorbellLost() {
	if m != nil {
		m.feed.lost.Inc()
	}
}

// SetsUnreadable counts a failed read of sets.
func (m *Metrics) SetsUnreadable() {
	if m != nil {
		m.feed.failures.Inc()
	}
}

// Resumed counts how a stream goes on in a set: one of the Resume constants.
func (m *Metrics) Resumed(way string) {
	if m != nil {
		m.feed.resumes.of(way).Inc()
	}
}

// SnapshotTaken measures a snapshot that was read and encoded.
func (m *Metrics) SnapshotTaken(took time.Duration) {
	if m != nil {
		m.feed.snapshot.Observe(took.Seconds())
	}
}

// EpochChanged counts a new epoch.
func (m *Metrics) EpochChanged() {
	if m != nil {
		m.feed.epochs.Inc()
	}
}

// Expired counts records that ran out.
func (m *Metrics) Expired(n int) {
	if m != nil {
		m.feed.sweeps.Add(float64(n))
	}
}
