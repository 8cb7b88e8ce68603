package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/acmecert"
	"github.com/fleetban/fleetban/controlplane/internal/keys"
	"github.com/fleetban/fleetban/controlplane/internal/leases"
	"github.com/fleetban/fleetban/controlplane/internal/store"
)

const (
	// schema is what this release reads and writes. Redis says the least that a reader and a writer must know.
	schema = 1
	// maxClockSkew is how far this machine's clock may be from Redis'.
	maxClockSkew = 5 * time.Second
	// oldestRedis is the first major version with sharded pub/sub and script flags; Valkey calls itself a later one.
	oldestRedis = 7
	// readyLife is how long an answer serves: balancers ask often.
	readyLife = time.Second
)

// Reason is why a replica isn't ready.
type Reason struct {
	// Code is stable, for programs.
	Code    string `json:"code"`
	Problem string `json:"problem"`
	Fix     string `json:"fix"`
}

// Report is what /readyz answers.
type Report struct {
	Ready bool `json:"ready"`
	// Summary says it in one line, for people and log files.
	Summary    string   `json:"summary"`
	Replica    string   `json:"replica,omitempty"`
	Version    string   `json:"version"`
	Redis      string   `json:"redis,omitempty"`
	Durability string   `json:"durability,omitempty"`
	Reasons    []Reason `json:"reasons,omitempty"`
	// Notes keep nobody from being served, but want a person's attention.
	Notes []Reason `json:"notes,omitempty"`
	// Jobs tells which replica does the background jobs, and which did before.
	Jobs *leases.State `json:"jobs,omitempty"`
	// ACME tells the same of who orders the certificate, where an authority makes it.
	ACME *leases.State `json:"acme,omitempty"`
}

// leases are those that it tells of.
func (r Report) leases() []leases.State {
	var out []leases.State
	for _, l := range []*leases.State{r.Jobs, r.ACME} {
		if l != nil {
			out = append(out, *l)
		}
	}
	return out
}

// readiness decides whether this replica may serve.
type readiness struct {
	store   *store.Store
	keys    *keys.Keys
	clock   *clock
	accept  []string
	replica string
	version string
	// begun reports why the first start's work isn't done, "" once it is.
	begun func() string
	// bare reports that Redis holds no organisation; nil: not asked.
	bare func() bool
	// acme: an authority makes the certificate.
	acme bool
	// logger is told when the answer changes; nil: it isn't.
	logger *slog.Logger

	draining atomic.Bool

	mu     sync.Mutex
	report Report
	at     time.Time
	// told is what the log was last told of Redis.
	told struct{ redis, durability string }
	// latest is report without the lock, which a look at Redis holds.
	latest atomic.Pointer[Report]

	// disagrees is set while this replica must not serve, however a request reached it.
	disagrees atomic.Pointer[Reason]
}

// disagreements are the reasons that make serving harmful, not only in vain.
var disagreements = []string{"secret-differs", "schema", "eviction", "durability", "clock", "redis-version"}

// loop looks every other second, also when no balancer asks: the clock is kept by it.
func (r *readiness) loop(ctx context.Context) {
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	for {
		r.check(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// drain makes it unready from now on. It doesn't wait for a look at Redis that is under way.
func (r *readiness) drain() {
	r.draining.Store(true)
	report := r.last()
	report.Ready, report.Reasons = false, append([]Reason{drainingReason}, report.Reasons...)
	report.Summary = report.summary()
	r.latest.Store(&report)
}

var drainingReason = Reason{"draining", "this replica is being shut down", "send requests to another one"}

// check returns the current report.
func (r *readiness) check(ctx context.Context) Report {
	r.mu.Lock()
	defer r.mu.Unlock()
	draining := r.draining.Load()
	if !r.at.IsZero() && time.Since(r.at) < readyLife && draining == r.report.has(drainingReason.Code) {
		return r.report
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	report := Report{Replica: r.replica, Version: r.version}
	add := func(code, problem, fix string) {
		report.Reasons = append(report.Reasons, Reason{Code: code, Problem: problem, Fix: fix})
	}
	if draining {
		report.Reasons = append(report.Reasons, drainingReason)
	}
	r.checkRedis(ctx, &report, add)
	if problem := r.begun(); problem != "" && len(report.Reasons) == 0 {
		add("starting", problem, "wait; if it lasts, see the log")
	}
	report.Ready = len(report.Reasons) == 0
	if r.bare != nil && r.bare() {
		report.Notes = append(report.Notes, Reason{
			"not-set-up", "Redis holds no organisation: nobody has set this control plane up yet, or Redis lost everything",
			"open the set-up link in a replica's output, or print another with fleetban-controlplane setup-link; after a loss, wait for hosts to bring theirs back",
		})
	}
	var disagrees *Reason
	for i, reason := range report.Reasons {
		if slices.Contains(disagreements, reason.Code) {
			disagrees = &report.Reasons[i]
		}
		if reason.Code == "redis-unreachable" {
			disagrees = r.disagrees.Load() // nothing new is known
		}
	}
	r.disagrees.Store(disagrees)
	report.Summary = report.summary()
	r.tell(ctx, report)
	r.report, r.at = report, time.Now()
	r.latest.Store(&report)
	return report
}

// tell logs what changed. The caller holds r.mu.
func (r *readiness) tell(ctx context.Context, now Report) {
	if r.logger != nil && now.Durability != "" && (r.told.redis != now.Redis || r.told.durability != now.Durability) {
		r.told.redis, r.told.durability = now.Redis, now.Durability
		r.logger.InfoContext(ctx, "Redis was looked at", slog.String("redis", now.Redis), slog.String("durability", now.Durability))
		for _, note := range now.Notes {
			if note.Code != "durability" && note.Code != "failover" {
				continue
			}
			r.logger.WarnContext(ctx, "Redis may lose what it acknowledged", slog.String("problem", note.Problem), slog.String("fix", note.Fix))
		}
	}
	if r.logger == nil || !r.at.IsZero() && r.report.Summary == now.Summary {
		return
	}
	switch {
	case now.Ready && !r.at.IsZero():
		r.logger.InfoContext(ctx, "ready to serve")
	case !now.Ready && !now.has("starting") && !now.has(drainingReason.Code):
		r.logger.WarnContext(ctx, "not ready to serve", slog.String("problem", now.Summary), slog.String("fix", now.Reasons[0].Fix))
	}
}

func (r *Report) has(code string) bool {
	return slices.ContainsFunc(r.Reasons, func(reason Reason) bool { return reason.Code == code })
}

// summary is the report in one line.
func (r *Report) summary() string {
	if len(r.Reasons) == 0 {
		return "ready"
	}
	problems := make([]string, len(r.Reasons))
	for i, reason := range r.Reasons {
		problems[i] = reason.Problem
	}
	return "not ready: " + strings.Join(strings.Fields(strings.Join(problems, "; ")), " ")
}

// last returns the latest report without a look at Redis.
func (r *readiness) last() Report {
	if report := r.latest.Load(); report != nil {
		return *report
	}
	return Report{}
}

func (r *readiness) checkRedis(ctx context.Context, report *Report, add func(code, problem, fix string)) {
	if err := r.store.Ping(ctx); err != nil {
		add("redis-unreachable", "Redis does not answer: "+short(err), "start Redis, or correct --redis-url")
		return
	}
	facts, err := r.store.Inspect(ctx)
	if err != nil {
		add("redis-unreachable", "Redis does not tell its state: "+short(err), "start all of it, and allow INFO to the control plane's user")
		return
	}
	r.checkMasters(facts, report, add)
	if jobs, err := leases.Read(ctx, r.store, jobsLease); err == nil { // what Redis doesn't answer is told by the others
		report.Jobs = &jobs
	}
	if r.acme {
		if order, err := leases.Read(ctx, r.store, acmecert.LeaseName); err == nil {
			report.ACME = &order
		}
	}
	if err := r.keys.Agree(ctx, r.store); errors.Is(err, keys.ErrDisagree) {
		add("secret-differs", "this replica's secret is not its peers'", "give every replica the same --secret-file")
	} else if err != nil {
		add("redis-unreachable", "Redis does not answer: "+short(err), "start Redis, or correct --redis-url")
	}
	if problem, err := checkSchema(ctx, r.store); err != nil {
		add("redis-unreachable", "Redis does not answer: "+short(err), "start Redis, or correct --redis-url")
	} else if problem != "" {
		add("schema", problem, "upgrade this replica to the release of its peers")
	}
	if err := r.clock.sample(ctx, r.store); err != nil {
		add("redis-unreachable", "Redis does not answer: "+short(err), "start Redis, or correct --redis-url")
	}
}

// checkMasters judges what Redis' masters are and promise. One that differs from the others counts: some organisation is there.
func (r *readiness) checkMasters(facts store.Facts, report *Report, add func(code, problem, fix string)) {
	durability := string(facts.Durability())
	report.Redis, report.Durability = facts.String(), durability
	one := func(code string, ok func(store.Master) (problem, fix string)) {
		for _, m := range facts.Masters {
			if problem, fix := ok(m); problem != "" {
				if len(facts.Masters) > 1 {
					problem += " (" + m.Address + ")"
				}
				add(code, problem, fix)
				return
			}
		}
	}
	one("redis-version", func(m store.Master) (string, string) {
		if m.Version == "" || m.Major >= oldestRedis { // a proxy that hides it: what it can't do shows by itself
			return "", ""
		}
		return "this is Redis " + m.Version, fmt.Sprintf("upgrade it to Redis %d or later, or to Valkey", oldestRedis)
	})
	if durability != string(store.Always) && !slices.Contains(r.accept, durability) {
		add("durability", "Redis' durability is "+durability+": acknowledged bans may be lost when it crashes",
			"set appendonly yes and appendfsync always, or accept it by name: --accept-durability "+durability)
	}
	one("eviction", func(m store.Master) (string, string) {
		if !m.Evicts {
			return "", ""
		}
		return "Redis evicts keys when memory is full (maxmemory-policy " + m.Policy + "): bans would vanish", "set maxmemory-policy noeviction"
	})
	one("clock", func(m store.Master) (string, string) {
		if m.Ahead.Abs()-m.Trip/2 <= maxClockSkew {
			return "", ""
		}
		return fmt.Sprintf("this machine's clock is %s off Redis'", (-m.Ahead).Round(time.Millisecond)), "synchronise both (chrony or systemd-timesyncd)"
	})
	if durability != string(store.Always) && len(report.Reasons) == 0 {
		report.Notes = append(report.Notes, Reason{
			"durability", "Redis' durability is " + durability + ", as accepted: what was just acknowledged may be lost when it crashes",
			"set appendonly yes and appendfsync always",
		})
	}
	if facts.LosesTail() {
		report.Notes = append(report.Notes, Reason{
			"failover", "a replica of Redis may take over without the last acknowledged bans; hosts bring them back",
			"set min-replicas-to-write 1 on every server: acknowledgements then wait for a replica",
		})
	}
}

// checkSchema records this release's schema where none is, and says whether Redis asks for a newer one.
func checkSchema(ctx context.Context, st *store.Store) (problem string, err error) {
	key := store.Global("schema")
	pipe := st.Client().Pipeline()
	pipe.HSetNX(ctx, key, "min_reader", schema)
	pipe.HSetNX(ctx, key, "min_writer", schema)
	values := pipe.HMGet(ctx, key, "min_reader", "min_writer")
	if _, err := pipe.Exec(ctx); err != nil {
		return "", fmt.Errorf("read schema: %w", store.Classify(err))
	}
	for i, what := range []string{"read", "write"} {
		text, _ := values.Val()[i].(string)
		if least, bad := strconv.Atoi(text); bad != nil || least > schema {
			return fmt.Sprintf("who wants to %s needs schema %s, this release knows %d", what, text, schema), nil //nolint:nilerr // what is not a number is a newer schema
		}
	}
	return "", nil
}

// short is an error without where it came from twice over.
func short(err error) string {
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return "no answer in time"
	default:
		text := err.Error()
		return strings.TrimSpace(text[strings.LastIndex(text, ": ")+1:])
	}
}

// ServeHTTP answers /readyz.
func (r *readiness) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	report := r.check(req.Context())
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	if !report.Ready {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	_ = encoder.Encode(report)
}
