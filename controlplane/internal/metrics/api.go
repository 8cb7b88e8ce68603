package metrics

import (
	"context"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"
)

// api are the figures of all RPCs.
type api struct {
	// names is the label of each procedure: "BanService/Ban".
	names    map[string]string
	requests *prometheus.CounterVec
	took     *prometheus.HistogramVec
	open     *prometheus.GaugeVec
}

func (a *api) declare(c *catalog, procedures []string) {
	c.section = "The API"
	a.names = make(map[string]string, len(procedures))
	for _, p := range procedures {
		a.names[p] = p[strings.LastIndexByte(p[:strings.LastIndexByte(p, '/')], '.')+1:]
	}
	procedure := Label{"procedure", "of the API: BanService/Ban"}
	const requests, took, open = "fleetban_requests_total", "fleetban_request_seconds", "fleetban_requests_open"
	requestsHelp := "RPCs answered, streams when they end, by procedure and Connect's code."
	c.note("counter", requests, requestsHelp,
		"internal: the log has the cause beside the request's id. unavailable: Redis is away or the replica drains. unauthenticated, many: someone guesses tokens, "+
			"or a program has an old one. resource_exhausted: a caller is over its rate.",
		procedure, Label{"code", "ok, or one of Connect's"})
	a.requests = prometheus.NewCounterVec(prometheus.CounterOpts{Name: requests, Help: requestsHelp}, []string{"procedure", "code"})
	tookHelp := "How long RPCs that are no streams took."
	c.note("histogram", took, tookHelp, "Compare with fleetban_redis_seconds: what isn't Redis is this process, or its machine.", procedure)
	a.took = prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: took, Help: tookHelp, Buckets: latencies}, []string{"procedure"})
	openHelp := "RPCs under way, streams of agents and of people who watch among them."
	c.note("gauge", open, openHelp, "", procedure)
	a.open = prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: open, Help: openHelp}, []string{"procedure"})
	c.registry.MustRegister(a.requests, a.took, a.open)
	// One that fails for the first time must be seen: a rate needs the zero before it.
	for _, name := range a.names {
		a.requests.WithLabelValues(name, "ok")
		a.requests.WithLabelValues(name, connect.CodeInternal.String())
		a.open.WithLabelValues(name)
	}
}

func (a *api) name(procedure string) string {
	if name, ok := a.names[procedure]; ok {
		return name
	}
	return other
}

func code(err error) string {
	if err == nil {
		return "ok"
	}
	return connect.CodeOf(err).String()
}

// Interceptor counts and measures RPCs. It stands before all others, where errors are what callers see.
type Interceptor struct{ Metrics *Metrics }

var _ connect.Interceptor = Interceptor{}

// WrapUnary implements connect.Interceptor.
func (i Interceptor) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		if i.Metrics == nil {
			return next(ctx, req)
		}
		a := &i.Metrics.api
		name, began := a.name(req.Spec().Procedure), time.Now()
		open := a.open.WithLabelValues(name)
		open.Inc()
		defer open.Dec()
		res, err := next(ctx, req)
		a.took.WithLabelValues(name).Observe(time.Since(began).Seconds())
		a.requests.WithLabelValues(name, code(err)).Inc()
		return res, err
	}
}

// WrapStreamingHandler implements connect.Interceptor.
func (i Interceptor) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		if i.Metrics == nil {
			return next(ctx, conn)
		}
		a := &i.Metrics.api
		name := a.name(conn.Spec().Procedure)
		open := a.open.WithLabelValues(name)
		open.Inc()
		defer open.Dec()
		err := next(ctx, conn)
		a.requests.WithLabelValues(name, code(err)).Inc()
		return err
	}
}

// WrapStreamingClient implements connect.Interceptor: it measures servers.
func (Interceptor) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}
