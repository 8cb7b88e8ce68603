package observe

import (
	"context"
	"errors"
	"sort"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/fleetban/fleetban/agent/internal/fail2ban"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

const (
	stateUp       = fleetbanv1.Fail2BanHealth_STATE_UP
	stateDown     = fleetbanv1.Fail2BanHealth_STATE_DOWN
	stateBroken   = fleetbanv1.Fail2BanHealth_STATE_BROKEN
	stateStarting = fleetbanv1.Fail2BanHealth_STATE_STARTING
	stateStopping = fleetbanv1.Fail2BanHealth_STATE_STOPPING

	sourceLog  = fleetbanv1.EventSource_EVENT_SOURCE_LOG
	sourcePoll = fleetbanv1.EventSource_EVENT_SOURCE_POLL

	// Counters alone are news this often.
	countsEvery = 10 * time.Second
)

// Health returns how fail2ban is. The caller owns it.
func (o *Observer) Health() *fleetbanv1.Fail2BanHealth {
	o.mu.Lock()
	defer o.mu.Unlock()
	return proto.CloneOf(o.health)
}

// HealthChanged returns a channel that closes when Health has changed. Take it before Health, so as to miss nothing. Changes
// of counters alone are told at most once in 10 s.
func (o *Observer) HealthChanged() <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.healthChanged
}

// explain makes one sentence of why fail2ban can't be asked, with what would mend it.
func explain(err error, socket string) (fleetbanv1.Fail2BanHealth_State, string) {
	switch {
	case errors.Is(err, fail2ban.ErrNoSocket):
		return stateDown, "fail2ban's socket " + socket + " is missing: start fail2ban (systemctl start fail2ban), " +
			"or name its socket with --fail2ban-socket."
	case errors.Is(err, fail2ban.ErrRefused):
		return stateDown, "nothing listens on fail2ban's socket " + socket + ", so fail2ban was killed: " +
			"start it again (systemctl start fail2ban)."
	case errors.Is(err, fail2ban.ErrDenied):
		return stateDown, "fail2ban's socket " + socket + " may not be used: run the helper as root."
	case errors.Is(err, fail2ban.ErrStopping):
		return stateStopping, "fail2ban is shutting down."
	case errors.Is(err, fail2ban.ErrGarbage):
		return stateBroken, "what answers on " + socket + " isn't fail2ban: find out which program holds it " +
			"(ss -xlp), or name fail2ban's socket with --fail2ban-socket."
	case errors.Is(err, context.DeadlineExceeded):
		return stateDown, "fail2ban accepts connections on " + socket + " and doesn't answer: one of its actions probably hangs; " +
			"look into its log, and restart it."
	case errors.Is(err, fail2ban.ErrLost):
		return stateDown, "the connection to fail2ban at " + socket + " broke: it stops or restarts; see systemctl status fail2ban."
	}
	return stateDown, "fail2ban can't be asked: " + cutText(err.Error(), 800)
}

func cutText(s string, n int) string {
	if len(s) > n {
		return s[:n] + "…"
	}
	return s
}

// tellHealth makes what is known public.
func (o *Observer) tellHealth() {
	h := fleetbanv1.Fail2BanHealth_builder{State: o.state, Version: o.version, Problem: o.problem}.Build()
	if o.state == stateUp || o.state == stateStarting {
		h.SetSource(o.source)
		var cost time.Duration
		for _, j := range o.jails {
			cost = max(cost, j.readCost*readsPoll)
		}
		h.SetDelayMs(sourceDelay(o.source, o.cfg.PollInterval, cost))
	}
	switch {
	case o.state == stateStarting:
		h.SetProblem("fail2ban has just started and reads its bans back.")
	case o.state == stateUp && len(o.jails) == 0:
		h.SetProblem("fail2ban has no jail up: enable one in jail.local, or look for ERROR in its log if one should be up " +
			"(fail2ban-client -t checks the configuration).")
	}
	jails := make([]*fleetbanv1.JailHealth, 0, len(o.jails))
	for name, j := range o.jails {
		jails = append(jails, fleetbanv1.JailHealth_builder{
			Name: name, Banned: j.counts.Banned, BannedTotal: j.counts.TotalBanned, Failed: j.counts.Failed,
			FailedTotal: j.counts.TotalFailed, BantimeS: wholeSeconds(j.banTime), FindtimeS: wholeSeconds(j.findTime), Maxretry: j.maxRetry,
		}.Build())
	}
	sort.Slice(jails, func(i, j int) bool { return jails[i].GetName() < jails[j].GetName() })
	h.SetJails(jails[:min(len(jails), maxJails)])

	now := o.now()
	o.mu.Lock()
	defer o.mu.Unlock()
	o.health = h
	if proto.Equal(h, o.healthTold) {
		return
	}
	if o.healthTold != nil && now.Sub(o.countsToldAt) < countsEvery && proto.Equal(withoutCounts(h), withoutCounts(o.healthTold)) {
		return
	}
	o.countsToldAt, o.healthTold = now, h
	close(o.healthChanged)
	o.healthChanged = make(chan struct{})
}

// noteLog takes down what was done to the log.
func (o *Observer) noteLog() {
	if o.tail.rotated {
		o.tail.rotated = false
		o.cfg.Lately.Note("fail2ban-log-rotated", "fail2ban's log was rotated; the new file is followed", "path", o.tail.path)
	}
	if o.tail.truncated {
		o.tail.truncated = false
		o.cfg.Lately.Note("fail2ban-log-truncated", "fail2ban's log was truncated; fail2ban is asked for what its lines told", "path", o.tail.path)
	}
}

func withoutCounts(h *fleetbanv1.Fail2BanHealth) *fleetbanv1.Fail2BanHealth {
	h = proto.CloneOf(h)
	for _, j := range h.GetJails() {
		j.SetBanned(0)
		j.SetBannedTotal(0)
		j.SetFailed(0)
		j.SetFailedTotal(0)
	}
	return h
}

func wholeSeconds(d time.Duration) int64 {
	if d < 0 {
		return -1
	}
	return int64(d / time.Second)
}
