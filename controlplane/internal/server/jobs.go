package server

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/audit"
	"github.com/fleetban/fleetban/controlplane/internal/hosts"
	"github.com/fleetban/fleetban/controlplane/internal/leases"
	"github.com/fleetban/fleetban/controlplane/internal/metrics"
	"github.com/fleetban/fleetban/controlplane/internal/orgs"
	"github.com/fleetban/fleetban/controlplane/internal/sets"
)

const (
	jobsEvery = 5 * time.Second
	leaseLife = 15 * time.Second
)

// jobsLease is the name of the lease that jobs are done under.
const jobsLease = "jobs"

// jobs do for the whole fleet what any replica may do and one does: the one that holds the lease. Each piece of work is a
// script that decides by itself what is due, so that two holders at once, after a pause of one of them, do no harm; the
// term in the log tells them apart.
type jobs struct {
	lease  *leases.Lease
	sets   *sets.Sets
	hosts  *hosts.Hosts
	orgs   *orgs.Orgs
	audit  *audit.Log
	logger *slog.Logger
	// metrics may be nil.
	metrics *metrics.Metrics
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
	held, fresh, err := j.lease.Hold(ctx)
	if fresh {
		j.logger.InfoContext(ctx, "background jobs run here", slog.Int64("term", j.lease.Term()))
	}
	return held, err
}

// release lets another replica go on at once.
func (j *jobs) release(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if err := j.lease.Release(ctx); err != nil {
		j.logger.DebugContext(ctx, "lease not given back, it runs out", slog.Any("error", err))
	}
}
