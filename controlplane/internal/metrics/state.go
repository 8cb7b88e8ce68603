package metrics

import (
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// maxOrganisations is how many organisations' versions are told: each is a series a set.
const maxOrganisations = 20

// Sources are asked when Prometheus is. Each must answer at once, without asking Redis.
type Sources struct {
	Agents  func() AgentState
	Sets    func() []SetState
	Redis   func() RedisState
	Replica func() ReplicaState
}

// AgentState is how the agents are that are connected to this replica.
type AgentState struct {
	Streams, Organisations int
	// AcksWaiting are acknowledgements that Redis doesn't have yet.
	AcksWaiting int
	// Owing streams were sent a change more than OwingAfter ago that they have not acknowledged; Oldest is the longest.
	Owing  int
	Oldest time.Duration
	// What agents say of their spools, all together, and of the fullest.
	SpoolEvents, SpoolBytes, SpoolLost, SpoolFullest uint64
	// Fail2banDown counts hosts whose fail2ban isn't up; Inert those where nothing is enforced, by why.
	Fail2banDown int
	Inert        map[string]int
	// Repairs counts, over connected hosts, how often a host's table was found different and put back.
	Repairs uint64
}

// OwingAfter is how long a stream may owe an acknowledgement before it counts.
const OwingAfter = 5 * time.Second

// Why a host enforces nothing.
var inertValues = []string{"off", "paused", "unable", "observe", "proxied"}

// SetState is how one set is here.
type SetState struct {
	// Organisation is its id; Builtin sets are told with their name, others not.
	Organisation, Set string
	Builtin           bool
	Version           uint64
	// Lag is how many versions Redis had more when it was last looked at, Behind since when.
	Lag    uint64
	Behind time.Duration
}

// RedisState is how the way to Redis is.
type RedisState struct {
	InUse, Idle int
	// Timeouts counts waits for a connection that took too long.
	Timeouts uint64
}

// ReplicaState is how the process is.
type ReplicaState struct {
	Ready bool
	// Reasons are the codes of why not: of Reasons.
	Reasons    []string
	Durability string
	// Notes are the codes of what /readyz notes beside: of Notes.
	Notes []string
	// ClockOffset is how far Redis' clock is ahead of this machine's.
	ClockOffset time.Duration
	// JobsTerm is that of the lease on background jobs, 0 where another replica has it.
	JobsTerm int64
	// JobsTaken is how often this replica took it.
	JobsTaken int64
	// Hashes counts passwords hashed.
	Hashes int64
	// CertificateEnds is when the certificate ends that this replica serves; zero where it serves none.
	CertificateEnds time.Time
	// CertificateLife is how long that one lives, from its first moment to its last.
	CertificateLife time.Duration
}

// NotReady are the codes of why a replica isn't ready, as /readyz names them.
var NotReady = []string{
	"draining", "starting", "redis-unreachable", "redis-version", "durability", "eviction", "secret-differs", "schema", "clock",
}

// Notes are the codes of what keeps nobody from being served but wants a person's attention, as /readyz names them.
var Notes = []string{"not-set-up", "durability", "failover"}

var durabilities = []string{"always", "replicated", "everysec", "none", "unknown"}

// state collects what Sources say.
type state struct {
	sources atomic.Pointer[Sources]
	version string
	descs   []*prometheus.Desc

	build, ready, notReady, notes, durability, clock, lease, taken *prometheus.Desc
	hashes, certificate, certificateLife                           *prometheus.Desc
	streams, organisations, acksWaiting, owing, owed               *prometheus.Desc
	spoolEvents, spoolBytes, spoolLost, spoolFullest               *prometheus.Desc
	fail2banDown, inert, repairs                                   *prometheus.Desc
	setVersion, setLag, setLagSeconds, redisConnections, redisPool *prometheus.Desc
}

func declareState(c *catalog, version string) *state {
	s := &state{version: version}
	add := func(kind, name, help, bad string, labels ...Label) *prometheus.Desc {
		c.note(kind, name, help, bad, labels...)
		names := make([]string, len(labels))
		for i, l := range labels {
			names[i] = l.Name
		}
		d := prometheus.NewDesc(name, help, names, nil)
		s.descs = append(s.descs, d)
		return d
	}
	c.section = "The replica"
	s.build = add("gauge", "fleetban_build_info", "1, with this replica's version.", "", Label{"version", "one"})
	s.ready = add("gauge", "fleetban_ready", "1 when /readyz says that this replica may serve.",
		"0: fleetban_not_ready names the reason; /readyz and the log say what mends it.")
	s.notReady = add("gauge", "fleetban_not_ready", "1 for each reason that this replica isn't ready.",
		"/readyz says, for each, what mends it.", Label{"reason", list(withOther(NotReady))})
	s.notes = add("gauge", "fleetban_notes", "1 for each thing that keeps nobody from being served but wants a person's attention.",
		"/readyz says what it is and what mends it. not-set-up: Redis holds no organisation. failover: a failover of Redis may lose its tail.", Label{"note", list(withOther(Notes))})
	s.durability = add("gauge", "fleetban_redis_durability", "1 for what Redis promises about acknowledged writes.",
		"Not always: acknowledged bans may be lost when Redis crashes. Set appendfsync always, or know that you accepted it.", Label{"class", list(durabilities)})
	s.clock = add("gauge", "fleetban_clock_offset_seconds", "How far Redis' clock is ahead of this machine's.",
		"Over 5 either way the replica refuses to serve. Synchronise both machines (chrony, systemd-timesyncd).")
	s.lease = add("gauge", "fleetban_jobs_lease_term", "The term of the lease on background jobs; 0 where another replica has it.",
		"0 on all replicas for a minute: nobody sweeps what ran out or hosts that fell silent. The log of each says why it can't take the lease.")
	s.taken = add("counter", "fleetban_jobs_lease_taken_total", "Times that this replica took the lease on background jobs from nobody or another.",
		"Grows on several replicas by turns: each loses it within 15 s, for it is starved or Redis is away. /readyz names the holder and those before it.")
	s.hashes = add("counter", "fleetban_password_hashes_total", "Passwords hashed, right ones, wrong ones and of nobody: each takes 19 MiB and a good part of 0.1 s of a processor.",
		"Grows for long as fast as half of the processors can: logins are flooded. Who is told to come again shows as resource_exhausted of SessionService/SignIn.")
	s.certificate = add("gauge", "fleetban_certificate_expires_timestamp_seconds", "When the TLS certificate ends that this replica serves, in Unix time: from files, by ACME, or its own. Missing with --tls-off.",
		"Within 7 days, and in the last quarter of its life: by ACME, the log says what the authority refused; from files, whoever renews them didn't, or didn't put them where --tls-cert is.")
	s.certificateLife = add("gauge", "fleetban_certificate_lifetime_seconds", "How long that certificate lives as a whole. Missing with --tls-off.",
		"Never a trouble by itself: some authorities' live for days only, and then a week before its end says nothing.")
	c.section = "Agents that are connected"
	s.streams = add("gauge", "fleetban_streams", "Agents connected to this replica.",
		"Their sum over replicas falls: hosts are cut off. They keep what they hold and enforce it; see fleetban_streams_ended_total.")
	s.organisations = add("gauge", "fleetban_stream_organisations", "Organisations with agents connected to this replica.", "")
	s.acksWaiting = add("gauge", "fleetban_acks_waiting", "Acknowledgements of agents that Redis doesn't have yet.",
		"Grows: Redis is slow or away. At most one a stream.")
	s.owing = add("gauge", "fleetban_receipts_owing", "Agents that were sent a change over 5 s ago and have not acknowledged it.",
		"`fleetban hosts` shows which. All of one network: the network. One: its agent's log.")
	s.owed = add("gauge", "fleetban_receipts_oldest_seconds", "How long the slowest connected agent has owed an acknowledgement.", "As above.")
	s.spoolEvents = add("gauge", "fleetban_spool_events", "Events that wait on connected hosts to be sent and acknowledged, as agents say.",
		"Grows for minutes: Redis is slow or away, or events come faster than fleetban_event_store_seconds allows.")
	s.spoolFullest = add("gauge", "fleetban_spool_events_max", "The same of the host that has most.", "One host alone: its agent's log.")
	s.spoolBytes = add("gauge", "fleetban_spool_bytes", "Bytes of those events on the hosts' disks.", "")
	s.spoolLost = add("gauge", "fleetban_spool_lost_events", "Events that connected hosts could not keep, since their spools were made.",
		"Grows: a spool or a disk is full. Those bans hold on their host and were never told to the fleet.")
	s.fail2banDown = add("gauge", "fleetban_hosts_fail2ban_down", "Connected hosts whose fail2ban isn't up, as agents say.",
		"They enforce the fleet's bans and find no new ones. `fleetban hosts` shows which; on the host: fleetban-agent doctor.")
	s.inert = add("gauge", "fleetban_hosts_inert", "Connected hosts that enforce nothing of the fleet, by why.",
		"unable: nftables can't be used there, see fleetban-agent doctor. off and observe were chosen on the host, paused by a person of the fleet.", Label{"why", list(inertValues)})
	s.repairs = add("gauge", "fleetban_hosts_table_repairs", "Times that connected hosts found their nftables table changed by another program and put it back.",
		"Grows: something flushes the ruleset (nft flush ruleset, another firewall's reload). It is back within a moment.")
	c.section = "Sets as this replica has them"
	s.setVersion = add("gauge", "fleetban_set_version", "The version of a set that this replica sends to its agents.",
		"Replicas that differ for more than a moment: see fleetban_set_lag_seconds.",
		Label{"organisation", "its id, of at most 20 organisations; the control plane makes it"}, Label{"set", "all, allow, hosts"})
	s.setLag = add("gauge", "fleetban_set_lag_versions", "How many versions the set that is furthest behind lacks here, when Redis was last looked at.", "As below.")
	s.setLagSeconds = add("gauge", "fleetban_set_lag_seconds", "For how long a set has been behind Redis here, the one that has been for longest.",
		"Over 10: this replica hears the doorbell but can't read, see fleetban_sets_unreadable_total; else restart it and report it.")
	c.section = "Connections to Redis"
	s.redisConnections = add("gauge", "fleetban_redis_connections", "Connections to Redis, without those that listen to doorbells.",
		"All in use: Redis is slow.", Label{"state", "in_use, idle"})
	s.redisPool = add("counter", "fleetban_redis_pool_timeouts_total", "Waits for a connection to Redis that took too long.", "Redis is slow or away.")
	c.registry.MustRegister(s)
	return s
}

// Observe gives the sources. Before it, their metrics are missing.
func (m *Metrics) Observe(s Sources) {
	if m != nil {
		m.state.sources.Store(&s)
	}
}

// Describe implements prometheus.Collector.
func (s *state) Describe(out chan<- *prometheus.Desc) {
	for _, d := range s.descs {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (s *state) Collect(out chan<- prometheus.Metric) {
	from := s.sources.Load()
	if from == nil {
		return
	}
	put := func(d *prometheus.Desc, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	put(s.build, 1, s.version)
	if from.Replica != nil {
		r := from.Replica()
		put(s.ready, one(r.Ready))
		flags := func(d *prometheus.Desc, known, are []string) {
			for _, code := range known {
				put(d, one(slices.Contains(are, code)), code)
			}
			put(d, one(slices.ContainsFunc(are, func(code string) bool { return !slices.Contains(known, code) })), other)
		}
		flags(s.notReady, NotReady, r.Reasons)
		flags(s.notes, Notes, r.Notes)
		for _, class := range durabilities {
			put(s.durability, one(r.Durability == class), class)
		}
		put(s.clock, r.ClockOffset.Seconds())
		put(s.lease, float64(r.JobsTerm))
		out <- prometheus.MustNewConstMetric(s.taken, prometheus.CounterValue, float64(r.JobsTaken))
		out <- prometheus.MustNewConstMetric(s.hashes, prometheus.CounterValue, float64(r.Hashes))
		if !r.CertificateEnds.IsZero() {
			put(s.certificate, float64(r.CertificateEnds.UnixMilli())/1000)
			put(s.certificateLife, r.CertificateLife.Seconds())
		}
	}
	if from.Agents != nil {
		a := from.Agents()
		put(s.streams, float64(a.Streams))
		put(s.organisations, float64(a.Organisations))
		put(s.acksWaiting, float64(a.AcksWaiting))
		put(s.owing, float64(a.Owing))
		put(s.owed, a.Oldest.Seconds())
		put(s.spoolEvents, float64(a.SpoolEvents))
		put(s.spoolFullest, float64(a.SpoolFullest))
		put(s.spoolBytes, float64(a.SpoolBytes))
		put(s.spoolLost, float64(a.SpoolLost))
		put(s.fail2banDown, float64(a.Fail2banDown))
		put(s.repairs, float64(a.Repairs))
		for _, why := range inertValues {
			put(s.inert, float64(a.Inert[why]), why)
		}
	}
	if from.Sets != nil {
		s.collectSets(from.Sets(), put)
	}
	if from.Redis != nil {
		r := from.Redis()
		put(s.redisConnections, float64(r.InUse), "in_use")
		put(s.redisConnections, float64(r.Idle), "idle")
		out <- prometheus.MustNewConstMetric(s.redisPool, prometheus.CounterValue, float64(r.Timeouts))
	}
}

func (s *state) collectSets(sets []SetState, put func(*prometheus.Desc, float64, ...string)) {
	var lag uint64
	var behind time.Duration
	// In the order of their ids, so that the same organisations are told each time.
	slices.SortFunc(sets, func(a, b SetState) int { return strings.Compare(a.Organisation, b.Organisation) })
	told, last := 0, ""
	for _, set := range sets {
		lag, behind = max(lag, set.Lag), max(behind, set.Behind)
		if set.Organisation != last {
			told, last = told+1, set.Organisation
		}
		if set.Builtin && told <= maxOrganisations {
			put(s.setVersion, float64(set.Version), set.Organisation, set.Set)
		}
	}
	put(s.setLag, float64(lag))
	put(s.setLagSeconds, behind.Seconds())
}

func one(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}
