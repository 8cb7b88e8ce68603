package server

import (
	"errors"
	"net/http"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/agentapi"
	"github.com/fleetban/fleetban/controlplane/internal/metrics"
	"github.com/fleetban/fleetban/controlplane/internal/operatorapi"
	"github.com/fleetban/fleetban/controlplane/internal/store"
	"github.com/fleetban/fleetban/controlplane/internal/version"
)

// NewMetrics declares a replica's figures.
func NewMetrics() *metrics.Metrics {
	var procedures []string
	for _, service := range append(operatorapi.Services(), agentapi.Descriptor()) {
		for i := range service.Methods().Len() {
			procedures = append(procedures, "/"+string(service.FullName())+"/"+string(service.Methods().Get(i).Name()))
		}
	}
	return metrics.New(metrics.Options{Operations: store.Operations(), Procedures: procedures, Version: version.Version})
}

// observeRedis tells metrics of calls to Redis.
func observeRedis(m *metrics.Metrics) func(string, time.Duration, error) {
	return func(operation string, took time.Duration, err error) {
		failed := ""
		switch {
		case errors.Is(err, store.ErrUnavailable):
			failed = metrics.RedisUnavailable
		case errors.Is(err, store.ErrOutcomeUnknown):
			failed = metrics.RedisUnknown
		case err != nil:
			failed = metrics.RedisRefused
		}
		m.Redis(operation, took, failed)
	}
}

// observe gives metrics what is asked when Prometheus asks.
func (s *Server) observe() {
	s.figures.Observe(metrics.Sources{
		Agents: s.agents.State, Sets: s.feeds.State,
		Redis: func() metrics.RedisState {
			p := s.base.store.Client().PoolStats()
			return metrics.RedisState{InUse: int(p.TotalConns) - int(p.IdleConns), Idle: int(p.IdleConns), Timeouts: uint64(p.Timeouts)}
		},
		Replica: func() metrics.ReplicaState {
			report := s.ready.last()
			ends, life := s.certificateEnds()
			out := metrics.ReplicaState{
				Ready: report.Ready, Durability: report.Durability, ClockOffset: s.ready.clock.ahead(), JobsTerm: s.jobs.lease.Term(), JobsTaken: s.jobs.lease.Taken(),
				Hashes: s.base.people.Hashed(), CertificateEnds: ends, CertificateLife: life,
			}
			for _, r := range report.Reasons {
				out.Reasons = append(out.Reasons, r.Code)
			}
			for _, n := range report.Notes {
				out.Notes = append(out.Notes, n.Code)
			}
			return out
		},
	})
}

// private serves what operators of the control plane look at.
func (s *Server) private() http.Handler {
	mux := s.figures.Handler(s.logger)
	s.health(mux)
	return mux
}

// health serves whether the process lives and whether it may serve.
func (s *Server) health(mux *http.ServeMux) {
	alive := func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) }
	mux.HandleFunc("GET /livez", alive)
	mux.HandleFunc("GET /healthz", alive)
	mux.Handle("GET /readyz", s.ready)
}
