package hosts

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fleetban/fleetban/controlplane/internal/scope"
	"github.com/fleetban/fleetban/controlplane/internal/store"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// Bell tells when something of the organisation may have changed: a *feed.Feed.
type Bell interface {
	Listen(callback func(store.Bell)) (stop func())
}

const (
	// receiptRecheck is how often receipts are read without a bell, and all of them anew: hosts also go offline silently.
	receiptRecheck = 2 * time.Second
	// receiptProgress is how often, at most, those that haven't answered are all asked after.
	receiptProgress = 500 * time.Millisecond
	// receiptPause is how long a watch does nothing after it has looked.
	receiptPause = 5 * time.Millisecond
	// receiptProbe is of how many of them Redis is asked in between: as long as one of these is missing, it isn't the end.
	receiptProbe = 16
	// receiptAnswers is how many answers wait at most for a watch whose caller takes nothing; what is more, Redis tells.
	receiptAnswers = 1 << 16
	// receiptPatience is for how long Redis may be slow or away before a watch ends with its error.
	receiptPatience = 15 * time.Second
)

// WatchReceipts sends receipts whenever they change, until every connected host has answered (the last one says so), ctx
// ends, send fails, or Redis doesn't answer for receiptPatience.
//
// All hosts are looked at when it begins and every two seconds. In between, those whose streams are this replica's are known to have
// answered when StoreAcks has stored it, without Redis being asked; and of the others only those that hadn't answered are looked at, at
// most twice a second, or when the few that are probed more often have all answered. So ten thousand hosts that answer one after the
// other cost as much as they are, and not as much again with each of them.
func (h *Hosts) WatchReceipts(ctx context.Context, org string, cursor *fleetbanv1.SetCursor, packed [][]byte, bell Bell,
	send func(*operatorv1.WatchReceiptsResponse) error,
) error {
	return h.WatchReceiptsWithin(ctx, org, nil, cursor, packed, bell, send)
}

// WatchReceiptsWithin is WatchReceipts of the hosts within a scope.
func (h *Hosts) WatchReceiptsWithin(ctx context.Context, org string, within scope.Tags, cursor *fleetbanv1.SetCursor, packed [][]byte, bell Bell,
	send func(*operatorv1.WatchReceiptsResponse) error,
) error {
	w := &receiptWatch{hosts: h, org: org, within: within, cursor: cursor, packed: packed, rung: make(chan struct{}, 1)}
	defer bell.Listen(func(b store.Bell) {
		switch b.Kind {
		case store.BellAcks, store.BellKick, store.BellEpoch:
			w.ring()
		default:
		}
	})()
	defer w.follow()()
	timer := time.NewTimer(0)
	defer timer.Stop()
	last, good := "", time.Now()
	for {
		began, before := time.Now(), w.all
		changed, err := w.look(ctx)
		switch {
		case err == nil:
			good = time.Now()
		case ctx.Err() != nil || !away(err) || time.Since(good) > h.patience:
			return err
		default:
			// Which of the standings were read isn't known: all of them are, the next time.
			w.all, w.next, changed = time.Time{}, time.Now().Add(receiptProgress), false
		}
		if changed {
			receipts := sum(w.standings)
			if now := summary(receipts); now != last {
				last = now
				if err := send(receipts); err != nil {
					return fmt.Errorf("send receipts: %w", err)
				}
			}
			if receipts.GetComplete() {
				return nil
			}
		}
		// To read all again and again, as hosts that come and go demand it, takes at most half of the time. The first time doesn't count: all
		// answer meanwhile, which keeps everything busy, and what they answered isn't to wait for as long again.
		pause := receiptPause
		if err != nil || !before.IsZero() && !w.all.Equal(before) {
			pause = max(pause, time.Since(began))
		}
		timer.Reset(pause)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		}
		timer.Reset(time.Until(w.next))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-w.rung:
		case <-timer.C:
		}
	}
}

// away reports that Redis didn't answer, which it may the next time.
func away(err error) bool {
	return errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrOutcomeUnknown)
}

// receiptWatch is what a watch knows.
type receiptWatch struct {
	hosts  *Hosts
	org    string
	within scope.Tags
	cursor *fleetbanv1.SetCursor
	packed [][]byte
	rung   chan struct{} // one element

	looked
	at        []int     // for each of the directory, its place in standings, or -1
	open      []int     // of standings: those that are pending or offline
	told      int       // how many were open when they were last all looked at
	all, each time.Time // when all, and all open ones, were looked at last
	next      time.Time // when to look again without a bell

	mu      sync.Mutex
	answers []answer // at most receiptAnswers
	missed  bool     // there were more
}

// answer is what was stored of a host while the watch stood.
type answer struct {
	host  string
	inert fleetbanv1.Inert
	// refusals: it told anew what it refuses. holds: it has what is waited for.
	refusals, holds bool
}

// follow has the watch told of what this replica stores, until stop.
func (w *receiptWatch) follow() (stop func()) {
	h := w.hosts
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.watches[w.org] == nil {
		h.watches[w.org] = map[*receiptWatch]struct{}{}
	}
	h.watches[w.org][w] = struct{}{}
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if delete(h.watches[w.org], w); len(h.watches[w.org]) == 0 {
			delete(h.watches, w.org)
		}
	}
}

// answered tells the watches of an organisation what was stored: all of acks but those of the hosts that are stale.
func (h *Hosts) answered(org string, acks []AckWrite, stale []string) {
	h.mu.Lock()
	watches := make([]*receiptWatch, 0, len(h.watches[org]))
	for w := range h.watches[org] {
		watches = append(watches, w)
	}
	h.mu.Unlock()
	for _, w := range watches {
		w.hear(acks, stale)
	}
}

func (w *receiptWatch) hear(acks []AckWrite, stale []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.answers) > receiptAnswers-len(acks) {
		w.answers, w.missed = nil, true
	}
	if w.missed {
		w.ring()
		return
	}
	for i := range acks {
		a := &acks[i]
		said := answer{host: a.Fence.Host, inert: a.Inert, refusals: a.Exceptions != nil}
		for _, c := range a.Cursors {
			said.holds = said.holds || c.Set == w.cursor.GetSet() && answers(c.Epoch, c.Version, w.cursor)
		}
		if (said.holds || said.refusals) && !slices.Contains(stale, a.Fence.Host) {
			w.answers = append(w.answers, said)
		}
	}
	w.ring()
}

func (w *receiptWatch) ring() {
	select {
	case w.rung <- struct{}{}:
	default:
	}
}

// take takes the answers that this replica stored. Those of hosts that refuse anything, or that this directory doesn't have, are for Redis
// to tell. same is as read has it.
func (w *receiptWatch) take(ctx context.Context) (same bool, err error) {
	w.mu.Lock()
	answers := w.answers
	w.answers = nil
	w.mu.Unlock()
	var ask []int
	for _, a := range answers {
		e := w.directory.byID[a.host]
		if e == nil || w.at[e.at] < 0 {
			continue
		}
		i := w.at[e.at]
		s := &w.standings[i]
		if a.refusals && w.refuse != nil {
			w.refuse[i] = true // for all that is known here, also of what it answers later
		}
		switch {
		case !a.holds, s.State != operatorv1.EnforcementState_ENFORCEMENT_STATE_PENDING:
		case w.refuse != nil && w.refuse[i]:
			ask = append(ask, i)
		case a.inert != fleetbanv1.Inert_INERT_UNSPECIFIED:
			s.State, s.Inert = operatorv1.EnforcementState_ENFORCEMENT_STATE_INERT, a.inert
		default:
			s.State = operatorv1.EnforcementState_ENFORCEMENT_STATE_ENFORCED
		}
	}
	return w.read(ctx, ask)
}

// look reads what may have changed. changed: standings are another.
func (w *receiptWatch) look(ctx context.Context) (changed bool, err error) {
	w.mu.Lock()
	missed := w.missed
	w.mu.Unlock()
	if missed || time.Since(w.all) >= receiptRecheck {
		return true, w.readAll(ctx)
	}
	if same, err := w.take(ctx); err != nil || !same {
		return true, err
	}
	if time.Since(w.each) < receiptProgress {
		probe := w.pending(receiptProbe)
		if same, err := w.read(ctx, probe); err != nil || !same {
			return true, err
		}
		for _, i := range probe {
			if w.standings[i].State == operatorv1.EnforcementState_ENFORCEMENT_STATE_PENDING {
				w.next = w.each.Add(receiptProgress)
				return false, nil
			}
		}
	}
	w.each = time.Now()
	w.next = w.all.Add(receiptRecheck)
	if w.settle(); len(w.open) == 0 {
		// The last has answered: of those that the fleet had a moment ago.
		version, err := w.hosts.version(ctx, w.org)
		if err != nil {
			return true, err
		}
		if version != w.directory.version {
			return true, w.readAll(ctx)
		}
	}
	for open := w.open; len(open) > 0; {
		n := min(len(open), 1000)
		if same, err := w.read(ctx, open[:n]); err != nil || !same {
			return true, err
		}
		open = open[n:]
	}
	w.settle()
	changed = len(w.open) != w.told
	w.told = len(w.open)
	return changed, nil
}

// pending is up to n of those that are connected and haven't answered, from all over the fleet: replicas tell their hosts in some order,
// and those that are told first say nothing of when the last will answer.
func (w *receiptWatch) pending(n int) []int {
	waits := func(i int) bool { return w.standings[i].State == operatorv1.EnforcementState_ENFORCEMENT_STATE_PENDING }
	count := 0
	for _, i := range w.open {
		if waits(i) {
			count++
		}
	}
	out := make([]int, 0, n)
	every, seen := (count+n-1)/n, 0
	for _, i := range w.open {
		if !waits(i) {
			continue
		}
		if seen%every == 0 {
			out = append(out, i)
		}
		seen++
	}
	return out
}

// settle forgets those that answered.
func (w *receiptWatch) settle() {
	still := w.open[:0]
	for _, i := range w.open {
		switch w.standings[i].State {
		case operatorv1.EnforcementState_ENFORCEMENT_STATE_PENDING, operatorv1.EnforcementState_ENFORCEMENT_STATE_OFFLINE:
			still = append(still, i)
		default:
		}
	}
	w.open = still
}

func (w *receiptWatch) readAll(ctx context.Context) error {
	w.mu.Lock()
	w.answers, w.missed = w.answers[:0], false // Redis has them
	w.mu.Unlock()
	all, err := w.hosts.look(ctx, w.org, w.within, w.cursor, w.packed)
	if err != nil {
		return err
	}
	w.looked, w.all, w.each, w.next = all, time.Now(), time.Now(), time.Now().Add(receiptRecheck)
	w.at, w.open = w.at[:0], w.open[:0]
	for _, e := range all.directory.sorted {
		at := -1
		if n := len(w.open); n < len(all.standings) && all.standings[n].HostID == e.id {
			at = n
			w.open = append(w.open, n)
		}
		w.at = append(w.at, at)
	}
	w.settle()
	w.told = len(w.open)
	return nil
}

// read looks at some of the standings again. same is false where the hosts aren't those of before, and all was read anew.
func (w *receiptWatch) read(ctx context.Context, some []int) (same bool, err error) {
	if len(some) == 0 {
		return true, nil
	}
	ids := make([]string, len(some))
	for n, i := range some {
		ids[n] = w.standings[i].HostID
	}
	h := w.hosts
	pipe := h.store.Client().Pipeline()
	version := pipe.Get(ctx, store.Key(w.org, "hostsver"))
	clock := pipe.Time(ctx)
	acks := pipe.HMGet(ctx, store.Key(w.org, "acks", w.cursor.GetSet()), ids...)
	live := pipe.ZMScore(ctx, store.Key(w.org, "live"), ids...)
	inert := pipe.HMGet(ctx, store.Key(w.org, "inert"), ids...)
	var exceptions *redis.SliceCmd
	if len(w.packed) > 0 {
		exceptions = pipe.HMGet(ctx, store.Key(w.org, "exceptions"), ids...)
	}
	if _, err := pipe.Exec(ctx); missing(err) != nil {
		return false, fmt.Errorf("read receipts: %w", missing(err))
	}
	if version.Val() != w.directory.version {
		return false, w.readAll(ctx)
	}
	for n, i := range some {
		said := reported{seen: int64(live.Val()[n]), acked: stored(acks, n), inert: stored(inert, n)}
		if exceptions != nil {
			said.exceptions = stored(exceptions, n)
			w.refuse[i] = said.exceptions != ""
		}
		w.standings[i] = said.standing(w.directory.byID[ids[n]], w.cursor, w.packed, clock.Val())
	}
	return true, nil
}

// stored is a value of an HMGET; empty where there is none.
func stored(c *redis.SliceCmd, n int) string {
	text, _ := c.Val()[n].(string)
	return text
}

func summary(r *operatorv1.WatchReceiptsResponse) string {
	var b strings.Builder
	for _, n := range []uint32{r.GetInScope(), r.GetEnforced(), r.GetInert(), r.GetRefused(), r.GetOffline()} {
		b.WriteString(strconv.FormatUint(uint64(n), 10))
		b.WriteByte(' ')
	}
	b.WriteString(strconv.FormatBool(r.GetComplete()))
	return b.String()
}
