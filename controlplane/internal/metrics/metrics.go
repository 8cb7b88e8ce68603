// Package metrics holds every figure that a replica tells Prometheus, declared once each with what it means and what to do
// when it is bad: docs/metrics.md is made from these declarations.
//
// There is one registry a Metrics and no global one, so that a test has as many replicas in a process as it likes. The
// packages that do the work get a *Metrics and call its methods; on a nil one they do nothing.
//
// No label ever holds what comes from outside: no address, no name of a host, a jail or an organisation. Labels have a
// fixed list of values, kept here, and what isn't in it counts as "other"; the one exception is the organisation's id,
// which the control plane makes itself, of at most maxOrganisations organisations.
package metrics

import (
	"log/slog"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Options of New.
type Options struct {
	// Operations names what is asked of Redis: scripts, and the kinds of commands.
	Operations []string
	// Procedures are the RPCs served, as connect names them: "/fleetban.operator.v1.BanService/Ban".
	Procedures []string
	Version    string
}

// Metrics is a replica's. Its methods may be called from anywhere; on a nil Metrics they do nothing.
type Metrics struct {
	catalog

	agents agents
	feed   feed
	redis  redis
	api    api
	state  *state
}

// New declares everything.
func New(o Options) *Metrics {
	m := &Metrics{catalog: catalog{registry: prometheus.NewRegistry()}}
	m.agents.declare(&m.catalog)
	m.feed.declare(&m.catalog)
	m.redis.declare(&m.catalog, o.Operations)
	m.api.declare(&m.catalog, o.Procedures)
	m.state = declareState(&m.catalog, o.Version)
	m.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Definitions are all metrics of this package, in the order in which they are explained. Those of the Go runtime and of
// the process (go_*, process_*) are client_golang's own.
func (m *Metrics) Definitions() []Definition { return m.all }

// Handler serves /metrics and /debug/pprof. Both tell much about a replica: it belongs on a private address.
func (m *Metrics) Handler(logger *slog.Logger) *http.ServeMux {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		ErrorLog:            slog.NewLogLogger(logger.Handler(), slog.LevelWarn),
		ErrorHandling:       promhttp.ContinueOnError,
		MaxRequestsInFlight: 4, Timeout: 10 * time.Second,
	}))
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return mux
}
