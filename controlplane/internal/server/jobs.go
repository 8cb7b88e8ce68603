package server

import (
	"context"
	_ "embed"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/audit"
	"github.com/fleetban/fleetban/controlplane/internal/hosts"
	"github.com/fleetban/fleetban/controlplane/internal/metrics"
	"github.com/fleetban/fleetban/controlplane/internal/orgs"
	"github.com/fleetban/fleetban/controlplane/internal/sets"
	"github.com/fleetban/fleetban/controlplane/internal/store"
)

const (
	jobsEvery = 5 * time.Second
	leaseLife = 15 * time.Second
)

var (
	//go:embed lua/lease.lua
	leaseText   string
	leaseScript = store.NewScript("server/lease", leaseText)
)

// jobs do for the whole fleet what any replica may do and one does: the one that holds the lease. Each piece of work is a
// script that decides by itself what is due, so that two holders at once, after a pause of one of them, do no harm; the
// term in the log tells them apart.
type jobs struct {
	store  *store.Store
	sets   *sets.Sets
	hosts  *hosts.Hosts
	orgs   *orgs.Orgs
	audit  *audit.Log
	holder string
	logger *slog.Logger
	// metrics may be nil.
	metrics *metrics.Metrics

	term atomic.Int64 // 0: another replica has the lease
}

func (j *jobs) run(ctx context.Context) {
	tick := time.NewTicker(jobsEvery)
	defer tick.Stop()
	for {
		if err := j.once(ctx); err != nil && ctx.Err() == nil {
			j.logger.WarnContext(ctx, "background jobs failed, trying again", slog.Any("error", err))
		}
		select {
		case <-ctx.Done():
			j.release(context.WithoutCancel(ctx))
			return
		case <-tick.C:
		}
	}
}

func (j *jobs) once(ctx context.Context) error {
	held, err := j.hold(ctx)
	if err != nil || !held {
		return err
	}
	ids, err := j.orgs.IDs(ctx)
	if err != nil {
		return err
	}
	for _, org := range ids {
		if held, err := j.hold(ctx); err != nil || !held {
			return err
		}
		if err := j.sweep(ctx, org); err != nil {
			return fmt.Errorf("sweep expiries of %s: %w", org, err)
		}
		if n, err := j.hosts.SweepPresence(ctx, org); err != nil {
			return fmt.Errorf("sweep presence of %s: %w", org, err)
		} else if n > 0 {
			j.logger.InfoContext(ctx, "hosts fell silent", slog.String("organisation", org), slog.Int("hosts", n))
		}
		gone, err := j.hosts.SweepEphemeral(ctx, org)
		for _, h := range gone {
			if err := j.audit.Record(ctx, org, audit.Record{Actor: audit.System, Action: "host.expire", Targets: []string{h.Name, h.ID}}); err != nil {
				j.logger.WarnContext(ctx, "audit entry not written", slog.String("host", h.ID), slog.Any("error", err))
			}
		}
		if err != nil {
			return fmt.Errorf("sweep ephemeral hosts of %s: %w", org, err)
		}
		// A log that somebody damaged must not keep the others from what is due.
		if err := j.audit.Tend(ctx, org); err != nil {
			j.logger.WarnContext(ctx, "the audit log could not be tended", slog.String("organisation", org), slog.Any("error", err))
		}
	}
	return nil
}

func (j *jobs) sweep(ctx context.Context, org string) error {
	for {
		result, err := j.sets.Sweep(ctx, org)
		if err != nil {
			return err
		}
		j.metrics.Expired(result.Expired)
		if !result.More {
			return nil
		}
	}
}

// hold takes or renews the lease.
func (j *jobs) hold(ctx context.Context) (bool, error) {
	term, err := leaseScript.Run(ctx, j.store, []string{store.Global("lease", "jobs")}, j.holder, leaseLife.Milliseconds()).Int64()
	if err != nil {
		j.term.Store(0)
		return false, fmt.Errorf("take the lease of background jobs: %w", err)
	}
	if before := j.term.Swap(term); before != term && term != 0 {
		j.logger.InfoContext(ctx, "background jobs run here", slog.Int64("term", term))
	}
	return term != 0, nil
}

// release lets another replica go on at once.
func (j *jobs) release(ctx context.Context) {
	if j.term.Load() == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if err := leaseScript.Run(ctx, j.store, []string{store.Global("lease", "jobs")}, j.holder, 0).Err(); err != nil {
		j.logger.DebugContext(ctx, "lease not given back, it runs out", slog.Any("error", err))
	}
}
