package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/audit"
	"github.com/fleetban/fleetban/controlplane/internal/hosts"
	"github.com/fleetban/fleetban/controlplane/internal/leases"
	"github.com/fleetban/fleetban/controlplane/internal/metrics"
	"github.com/fleetban/fleetban/controlplane/internal/orgs"
	"github.com/fleetban/fleetban/controlplane/internal/sets"
	"github.com/fleetban/fleetban/controlplane/internal/store"
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
	// now is Redis' time.
	now func() time.Time
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

// once does what is due for each organisation, and notes when each piece of work was done. One that fails for an organisation is
// left for the next time; the others go on.
func (j *jobs) once(ctx context.Context) error {
	held, err := j.hold(ctx)
	if err != nil || !held {
		return err
	}
	ids, err := j.orgs.IDs(ctx)
	if err != nil {
		return err
	}
	work := j.work()
	runs := make([]leases.Run, len(work))
	failed := make([]int, len(work))
	var errs []error
	for _, org := range ids {
		if held, err := j.hold(ctx); err != nil || !held {
			return errors.Join(append(errs, err)...)
		}
		for i, w := range work {
			began := time.Now()
			if runs[i].Began.IsZero() {
				runs[i].Began = j.now()
			}
			if err := w.do(ctx, org); err != nil {
				failed[i]++
				errs = append(errs, fmt.Errorf("%s of %s: %w", w.name, org, err))
				if ctx.Err() != nil || errors.Is(err, store.ErrUnavailable) {
					return errors.Join(errs...)
				}
			}
			runs[i].Took += time.Since(began)
		}
	}
	done := runs[:0]
	for i, r := range runs {
		if r.Name = work[i].name; failed[i] > 0 {
			// Which ones and why is in the log: other organisations read this.
			r.Problem = fmt.Sprintf("failed for %d of %d organisations: see the log of the replica", failed[i], len(ids))
		}
		if !r.Began.IsZero() {
			done = append(done, r)
		}
	}
	return errors.Join(append(errs, j.lease.Ran(ctx, done...))...)
}

// work is what is done for an organisation, in this order.
func (j *jobs) work() []struct {
	name string
	do   func(ctx context.Context, org string) error
} {
	return []struct {
		name string
		do   func(ctx context.Context, org string) error
	}{
		{"expiry", j.sweep},
		{"presence", j.presence},
		{"ephemeral-hosts", j.ephemeral},
		{"audit-log", j.audit.Tend},
	}
}

func (j *jobs) presence(ctx context.Context, org string) error {
	n, err := j.hosts.SweepPresence(ctx, org)
	if n > 0 {
		j.logger.InfoContext(ctx, "hosts fell silent", slog.String("organisation", org), slog.Int("hosts", n))
	}
	return err
}

func (j *jobs) ephemeral(ctx context.Context, org string) error {
	gone, err := j.hosts.SweepEphemeral(ctx, org)
	for _, h := range gone {
		if err := j.audit.Record(ctx, org, audit.Record{Actor: audit.System, Action: "host.expire", Targets: []string{h.Name, h.ID}}); err != nil {
			j.logger.WarnContext(ctx, "audit entry not written", slog.String("host", h.ID), slog.Any("error", err))
		}
	}
	return err
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
