package server

import (
	"fmt"
	"net/http"
	"net/http/pprof"
	"runtime"
	"strings"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/agentapi"
	"github.com/fleetban/fleetban/controlplane/internal/store"
)

var processStart = time.Now()

// metricsHandler serves what operators of the control plane look at, in Prometheus' text format, and pprof.
func metricsHandler(agents *agentapi.Service, st *store.Store, j *jobs, ready *readiness) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/metrics", func(w http.ResponseWriter, r *http.Request) {
		var b strings.Builder
		write := func(kind, name, help string, value any) {
			fmt.Fprintf(&b, "# HELP fleetban_%s %s\n# TYPE fleetban_%s %s\nfleetban_%s %v\n", name, help, name, kind, name, value)
		}
		c := agents.Counts()
		write("gauge", "streams", "Agents connected to this replica.", c.Streams)
		write("gauge", "stream_organisations", "Organisations with agents connected to this replica.", c.Organisations)
		write("counter", "streams_attached_total", "Streams begun.", c.Attached)
		write("counter", "streams_refused_total", "Streams refused.", c.Refused)
		write("counter", "streams_displaced_total", "Streams that a newer one took over.", c.Displaced)
		write("counter", "event_batches_total", "Batches of observed events stored.", c.EventBatches)
		write("counter", "events_total", "Observed events stored.", c.Events)
		write("counter", "promotions_total", "Claims that began to count.", c.Promotions)
		write("counter", "frames_total", "Frames of sets sent to agents.", c.Frames)
		write("counter", "ack_writes_total", "Batches of acknowledgements stored.", c.AckWrites)
		write("counter", "offers_denied_total", "Offered records that this fleet never issued.", c.OfferedDenied)
		write("counter", "expired_total", "Records that ran out, emitted by this replica.", j.expired.Load())
		write("gauge", "jobs_term", "Term of the lease on background jobs, 0 when another replica has it.", j.term.Load())
		isReady := 0
		if ready.check(r.Context()).Ready {
			isReady = 1
		}
		write("gauge", "ready", "1 when /readyz says so.", isReady)
		pool := st.Client().PoolStats()
		write("gauge", "redis_connections", "Connections to Redis.", pool.TotalConns)
		write("counter", "redis_pool_timeouts_total", "Waits for a connection that took too long.", pool.Timeouts)
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		write("gauge", "heap_bytes", "Bytes of live and unswept heap objects.", m.HeapAlloc)
		write("gauge", "sys_bytes", "Bytes obtained from the system.", m.Sys)
		write("gauge", "goroutines", "Goroutines.", runtime.NumGoroutine())
		write("gauge", "uptime_seconds", "Since this process started.", int64(time.Since(processStart).Seconds()))
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		_, _ = w.Write([]byte(b.String()))
	})
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return mux
}
