package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/keys"
	"github.com/fleetban/fleetban/controlplane/internal/store"
)

const (
	// schema is what this release reads and writes. Redis says the least that a reader and a writer must know.
	schema = 1
	// maxClockSkew is how far this machine's clock may be from Redis'.
	maxClockSkew = 5 * time.Second
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
	Ready      bool     `json:"ready"`
	Replica    string   `json:"replica,omitempty"`
	Version    string   `json:"version"`
	Durability string   `json:"durability,omitempty"`
	Reasons    []Reason `json:"reasons,omitempty"`
	// Notes keep nobody from being served, but want a person's attention.
	Notes []Reason `json:"notes,omitempty"`
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

	mu       sync.Mutex
	draining bool
	report   Report
	at       time.Time

	// disagrees is set while this replica must not serve, however a request reached it.
	disagrees atomic.Pointer[Reason]
}

// disagreements are the reasons that make serving harmful, not only in vain.
var disagreements = []string{"secret-differs", "schema", "eviction", "durability", "clock"}

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

func (r *readiness) drain() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.draining, r.at = true, time.Time{}
}

// check returns the current report.
func (r *readiness) check(ctx context.Context) Report {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.at.IsZero() && time.Since(r.at) < readyLife {
		return r.report
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	report := Report{Replica: r.replica, Version: r.version}
	add := func(code, problem, fix string) {
		report.Reasons = append(report.Reasons, Reason{Code: code, Problem: problem, Fix: fix})
	}
	if r.draining {
		add("draining", "this replica is being shut down", "send requests to another one")
	}
	r.checkRedis(ctx, &report, add)
	if problem := r.begun(); problem != "" && len(report.Reasons) == 0 {
		add("starting", problem, "wait; if it lasts, see the log")
	}
	report.Ready = len(report.Reasons) == 0
	if r.bare != nil && r.bare() {
		report.Notes = append(report.Notes, Reason{
			"no-organisation", "Redis holds no organisation: either it lost everything, or none was made yet",
			"wait for hosts to bring theirs back, or run fleetban-controlplane setup",
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
	r.report, r.at = report, time.Now()
	return report
}

func (r *readiness) checkRedis(ctx context.Context, report *Report, add func(code, problem, fix string)) {
	if err := r.store.Ping(ctx); err != nil {
		add("redis-unreachable", "Redis does not answer: "+short(err), "start Redis, or correct --redis-url")
		return
	}
	facts, err := inspect(ctx, r.store)
	if err != nil {
		add("redis-unreachable", "Redis does not tell its state: "+short(err), "allow INFO to the control plane's user")
		return
	}
	report.Durability = facts.durability
	if facts.durability != "always" && !slices.Contains(r.accept, facts.durability) {
		add("durability", "Redis' durability is "+facts.durability+": acknowledged bans may be lost when it crashes",
			"set appendonly yes and appendfsync always, or accept it by name: --accept-durability "+facts.durability)
	}
	if facts.evicts {
		add("eviction", "Redis evicts keys when memory is full (maxmemory-policy "+facts.policy+"): bans would vanish",
			"set maxmemory-policy noeviction")
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
	if skew, err := r.clock.sample(ctx, r.store); err == nil && skew.Abs() > maxClockSkew {
		add("clock", fmt.Sprintf("this machine's clock is %s off Redis'", skew.Round(time.Millisecond)), "synchronise both (chrony or systemd-timesyncd)")
	}
}

// facts are what Redis promises.
type facts struct {
	durability string
	evicts     bool
	policy     string
}

// inspect reads what Redis promises. CONFIG may be forbidden, as it is in managed services: INFO tells some of it.
func inspect(ctx context.Context, st *store.Store) (facts, error) {
	raw, err := st.Client().Info(ctx).Result()
	if err != nil {
		return facts{}, fmt.Errorf("redis INFO: %w", store.Classify(err))
	}
	info := map[string]string{}
	for line := range strings.Lines(raw) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			info[k] = v
		}
	}
	f := facts{durability: "unknown", policy: info["maxmemory_policy"]}
	f.evicts = info["maxmemory"] != "0" && f.policy != "noeviction"
	aof := info["aof_enabled"] == "1"
	config := func(key string) string {
		v, err := st.Client().ConfigGet(ctx, key).Result()
		if err != nil {
			return ""
		}
		return v[key]
	}
	fsync := config("appendfsync")
	replicas, _ := strconv.Atoi(config("min-replicas-to-write"))
	switch {
	case aof && fsync == "always":
		f.durability = "always"
	case replicas > 0:
		f.durability = "replicated"
	case aof && fsync == "everysec":
		f.durability = "everysec"
	case !aof || fsync == "no":
		f.durability = "none"
	}
	return f, nil
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
