package metrics

import (
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// Why a stream ended.
const (
	EndClosed      = "closed"
	EndBroken      = "broken"
	EndSilent      = "silent"
	EndSlow        = "slow"
	EndDisplaced   = "displaced"
	EndDrained     = "drained"
	EndDeleted     = "deleted"
	EndQuarantined = "quarantined"
	EndRefused     = "refused"
)

// agents are the figures of package agentapi.
type agents struct {
	attached        prometheus.Counter
	refused, ended  counters
	frames, bytes   prometheus.Counter
	fanout, receipt prometheus.Histogram
	acks            prometheus.Counter
	ackStore        prometheus.Histogram
	batches, events prometheus.Counter
	eventStore      prometheus.Histogram
	promotions      prometheus.Counter
	withheld        counters
	digests, denied prometheus.Counter
}

func (a *agents) declare(c *catalog) {
	c.section = "Agents and their streams"
	a.attached = c.counter("fleetban_streams_attached_total", "Streams of agents that began.",
		"Much faster than hosts are added: streams come and go. See fleetban_streams_ended_total for why.")
	a.refused = c.counters("fleetban_streams_refused_total", "Streams of agents that were refused, by the reason that the agent was told.",
		"host_cloned: two machines use one identity; `fleetban hosts` shows which. bad_credential or wrong_key: hosts of another control plane, or the "+
			"secret was changed. clock_skew: an agent corrects itself once; if it lasts, set the host's clock.",
		"reason", reasons()...)
	a.ended = c.counters("fleetban_streams_ended_total", "Streams of agents that ended, by the cause.",
		"silent, slow or broken: the network between hosts and replica, or a balancer that cuts idle connections (it must allow 60 s of silence). displaced, "+
			"again and again: two machines use one identity. drained is a replica's shutdown.",
		"cause", EndClosed, EndBroken, EndSilent, EndSlow, EndDisplaced, EndDrained, EndDeleted, EndQuarantined, EndRefused)
	a.frames = c.counter("fleetban_frames_sent_total", "Frames of sets (changes and pages of snapshots) sent to agents.", "")
	a.bytes = c.counter("fleetban_frames_sent_bytes_total", "Bytes of those frames, before TLS.",
		"Far above the number of streams times the size of a change: agents take snapshots. See fleetban_resumes_total.")
	a.fanout = c.histogram("fleetban_fanout_seconds",
		"From a change heard or read by this replica until it was handed to an agent's connection; of changes that are sent together, the oldest.",
		"Over 0.25 for 1 of 100: this replica is short of CPU (see process_cpu_seconds_total), or has too many streams: add a replica.", latencies)
	a.receipt = c.histogram("fleetban_receipt_seconds",
		"From a change heard or read by this replica until an agent acknowledged that its kernel has it; one change in flight a stream is measured.",
		"High while fleetban_fanout_seconds is low: hosts or the network to them are slow. `fleetban hosts` shows which hosts owe acknowledgements.", latencies)
	a.acks = c.counter("fleetban_acks_stored_total", "Acknowledgements of agents stored in Redis, merged ones once.", "")
	a.ackStore = c.histogram("fleetban_ack_store_seconds",
		"How long the oldest acknowledgement of a batch waited until Redis had it: by so much receipts lag behind what hosts do.",
		"Over a second: Redis is slow (fleetban_redis_seconds) or away. Bans hold; only what people are shown is late.", latencies)
	a.batches = c.counter("fleetban_event_batches_total", "Batches of what fail2ban did on hosts, stored.", "")
	a.events = c.counter("fleetban_events_total", "Events of fail2ban on hosts, stored.", "")
	a.eventStore = c.histogram("fleetban_event_store_seconds", "From a batch of events received until it was durable and could be acknowledged.",
		"Over a second: Redis is slow or away, see fleetban_redis_seconds. Hosts keep what isn't acknowledged and send it again.", latencies)
	a.promotions = c.counter("fleetban_promotions_total", "Bans of hosts that became bans of the fleet.", "")
	a.withheld = c.counters("fleetban_promotions_withheld_total", "Bans of hosts that stayed local because there were too many in a minute, by whose rate it was.",
		"An attack of many addresses, or a jail that bans the wrong ones: `fleetban watch` shows which host it is.", "rate", "host", "organisation")
	a.digests = c.counter("fleetban_digests_repaired_total", "Times that a host held something else than it was sent, and its set was sent again.",
		"It mends itself, and should not happen: each is logged with its host. On one host again and again: its memory or disk; on many: report it.")
	a.denied = c.counter("fleetban_offers_denied_total", "Records that hosts offered back after a loss of Redis and that this fleet never issued.",
		"A host that was tampered with, or one of another fleet: the log names it.")
}

// reasons are those of fleetban.v1.Reason as label values: "host_cloned".
func reasons() []string {
	values := fleetbanv1.Reason_REASON_UNSPECIFIED.Descriptor().Values()
	out := make([]string, 0, values.Len())
	for i := range values.Len() {
		if v := values.Get(i); v.Number() != 0 {
			out = append(out, reason(fleetbanv1.Reason(v.Number())))
		}
	}
	return out
}

func reason(r fleetbanv1.Reason) string {
	return strings.ToLower(strings.TrimPrefix(r.String(), "REASON_"))
}

// StreamAttached counts a stream that began.
func (m *Metrics) StreamAttached() {
	if m != nil {
		m.agents.attached.Inc()
	}
}

// StreamRefused counts a stream that didn't begin.
func (m *Metrics) StreamRefused(why fleetbanv1.Reason) {
	if m != nil {
		m.agents.refused.of(reason(why)).Inc()
	}
}

// StreamEnded counts the end of a stream that had begun; cause is one of the End constants.
func (m *Metrics) StreamEnded(cause string) {
	if m != nil {
		m.agents.ended.of(cause).Inc()
	}
}

// FramesSent counts frames that went to one agent together. age is that of the oldest change among them since this replica
// heard of it; 0 where none was new.
func (m *Metrics) FramesSent(frames, bytes int, age time.Duration) {
	if m == nil {
		return
	}
	m.agents.frames.Add(float64(frames))
	m.agents.bytes.Add(float64(bytes))
	if age > 0 {
		m.agents.fanout.Observe(age.Seconds())
	}
}

// Receipt measures a change from when it was heard until it was acknowledged.
func (m *Metrics) Receipt(took time.Duration) {
	if m != nil {
		m.agents.receipt.Observe(took.Seconds())
	}
}

// AcksStored counts acknowledgements; the oldest waited so long.
func (m *Metrics) AcksStored(n int, waited time.Duration) {
	if m != nil {
		m.agents.acks.Add(float64(n))
		m.agents.ackStore.Observe(waited.Seconds())
	}
}

// EventsStored counts a batch: how many of its events became bans of the fleet, and how many stayed local for a rate.
func (m *Metrics) EventsStored(events, promoted, overHost, overOrganisation int, took time.Duration) {
	if m == nil {
		return
	}
	m.agents.batches.Inc()
	m.agents.events.Add(float64(events))
	m.agents.promotions.Add(float64(promoted))
	m.agents.withheld.of("host").Add(float64(overHost))
	m.agents.withheld.of("organisation").Add(float64(overOrganisation))
	m.agents.eventStore.Observe(took.Seconds())
}

// DigestRepaired counts a set that is sent again because its host holds something else.
func (m *Metrics) DigestRepaired() {
	if m != nil {
		m.agents.digests.Inc()
	}
}

// OffersDenied counts offered records that aren't the fleet's.
func (m *Metrics) OffersDenied(n int) {
	if m != nil {
		m.agents.denied.Add(float64(n))
	}
}
