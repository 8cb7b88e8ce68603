package sim

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"

	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/banset"
	"github.com/fleetban/fleetban/proto/wire/prefix"
	"github.com/fleetban/fleetban/scripts/fleetsim/internal/host"
)

const (
	// sweepWithin is how soon after its end a ban must be out of every set. The kernel drops it on time by itself.
	sweepWithin = 10 * time.Second
	// shortly: bans that end so soon are waited for before a check.
	shortly = 20 * time.Second
	// mostExamples bounds what is told of one kind of violation.
	mostExamples = 5
)

// violations gathers what doesn't hold, by the invariant that it breaks.
type violations struct {
	count    map[string]int
	examples map[string][]string
}

func (v *violations) add(invariant, format string, args ...any) {
	if v.count == nil {
		v.count, v.examples = map[string]int{}, map[string][]string{}
	}
	v.count[invariant]++
	if len(v.examples[invariant]) < mostExamples {
		v.examples[invariant] = append(v.examples[invariant], fmt.Sprintf(format, args...))
	}
}

func (v *violations) lines() []string {
	var out []string
	for _, invariant := range slices.Sorted(maps.Keys(v.count)) {
		out = append(out, fmt.Sprintf("%s: %d times, such as:\n      %s", invariant, v.count[invariant], strings.Join(v.examples[invariant], "\n      ")))
	}
	return out
}

// The invariants that are checked.
const (
	invSync     = "every host comes to hold what the control plane holds"
	invDigest   = "what a host holds is what it says it holds"
	invKept     = "an acknowledged ban is on every host until its end"
	invListed   = "people see what is banned"
	invEnds     = "no ban outlives its end or its unban"
	invOnce     = "each event is recorded exactly once"
	invPromoted = "bans below the rates become the fleet's"
	invReceipts = "receipts are complete"
	invOrders   = "hosts carry out unbans they are ordered"
	invStream   = "what is sent follows what was sent"
	invScenario = "the scenario could be played"
)

// check looks whether everything is true that must be once faults are over.
func (f *fleet) check(ctx context.Context) *violations {
	v := &violations{}
	f.timers.Wait()
	if err := f.settle(ctx, f.o.SettleWithin); err != nil {
		v.add(invSync, "%v", err)
	}
	if end := f.ledger.nextEnd(time.Now().Add(shortly).UnixMilli()); end > 0 {
		f.awaitSweep(ctx, time.UnixMilli(end).Add(sweepWithin))
	}
	if err := f.settle(ctx, f.o.SettleWithin); err != nil && len(v.count) == 0 {
		v.add(invSync, "%v", err)
	}
	state, err := f.current(ctx)
	if err != nil {
		v.add(invSync, "the control plane doesn't answer: %v", err)
		return v
	}
	now := time.Now().UnixMilli()
	live, unsure := f.ledger.live(now)
	f.checkHosts(v, state, live, unsure, now)
	f.checkControlPlane(ctx, v, live, unsure, now)
	f.checkEvents(ctx, v)
	f.checkReceipts(ctx, v)
	f.ledger.lifted(func(p netip.Prefix, number int, jail string) {
		if h := f.all[number]; h.Up() && h.Banned(jail, p) {
			v.add(invOrders, "%s still has %s in its jail %s, which was unbanned", h.Name, p, jail)
		}
	})
	if n := f.world.Gaps.Load(); n > 0 {
		v.add(invStream, "%d updates didn't follow what the host held, or led to another digest than was announced", n)
	}
	return v
}

// awaitSweep waits until nothing is held that has ended, at most until a moment.
func (f *fleet) awaitSweep(ctx context.Context, until time.Time) {
	ctx, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	for ctx.Err() == nil {
		now := time.Now().UnixMilli()
		held := f.ledger.nextEnd(now+shortly.Milliseconds()) > now
		if members := f.members(); !held && len(members) > 0 {
			for _, r := range members[0].Held(banset.All).Records {
				held = held || r.Present() && r.Expires <= now
			}
		}
		if !held {
			return
		}
		sleep(ctx, 50*time.Millisecond)
	}
}

// checkHosts compares each host with the control plane's cursors and with the ledger.
func (f *fleet) checkHosts(v *violations, state *operatorv1.GetFleetResponse, live map[netip.Prefix]span, unsure map[netip.Prefix]bool, now int64) {
	cursors := map[string]*fleetbanv1.SetCursor{}
	for _, s := range state.GetSets() {
		cursors[s.GetCursor().GetSet()] = s.GetCursor()
	}
	var reference []*host.Record
	for _, h := range f.members() {
		for _, name := range []string{banset.All, banset.Allow, banset.Hosts} {
			held := h.Held(name)
			if held.Digest != held.Said {
				v.add(invDigest, "%s says that its set %s has digest %016x at version %d; what it holds has %016x", h.Name, name, held.Said, held.Version, held.Digest)
			}
			if want := cursors[name].GetDigest(); held.Digest != want {
				v.add(invSync, "%s holds a set %s with digest %016x at version %d; the control plane's has %016x at version %d",
					h.Name, name, held.Digest, held.Version, want, cursors[name].GetVersion())
			}
			if name != banset.All {
				continue
			}
			records := slices.DeleteFunc(held.Records, func(r *host.Record) bool { return !r.Present() })
			// What all hold alike is compared with the truth once.
			if reference != nil && slices.Equal(records, reference) {
				continue
			}
			reference = records
			f.compare(v, h.Name, records, live, unsure, now)
		}
	}
}

// compare compares what a host bans with the truth.
func (f *fleet) compare(v *violations, who string, records []*host.Record, live map[netip.Prefix]span, unsure map[netip.Prefix]bool, now int64) {
	found := make(map[netip.Prefix]bool, len(records))
	for _, r := range records {
		found[r.Prefix] = true
		want, ok := live[r.Prefix]
		switch {
		case r.Expires <= now-sweepWithin.Milliseconds():
			v.add(invEnds, "%s holds %s, which ended %s ago", who, r.Prefix, time.Duration(now-r.Expires)*time.Millisecond)
		case !ok && (unsure[r.Prefix] || r.Expires <= now+slack):
		case !ok:
			v.add(invEnds, "%s bans %s until %s; nobody wants that any more", who, r.Prefix, at(r.Expires))
		case r.Expires > want.hi && !unsure[r.Prefix]:
			v.add(invEnds, "%s bans %s until %s; it should end by %s", who, r.Prefix, at(r.Expires), at(want.hi))
		case r.Expires < want.lo:
			v.add(invKept, "%s bans %s until %s only; it should last until %s", who, r.Prefix, at(r.Expires), at(want.lo))
		}
	}
	for p, want := range live {
		if !found[p] && !unsure[p] && want.lo > now+slack {
			v.add(invKept, "%s doesn't ban %s, which was acknowledged and lasts until %s", who, p, at(want.lo))
		}
	}
}

func at(ms int64) string { return time.UnixMilli(ms).UTC().Format("15:04:05.000") }

// checkControlPlane compares what people see with the truth.
func (f *fleet) checkControlPlane(ctx context.Context, v *violations, live map[netip.Prefix]span, unsure map[netip.Prefix]bool, now int64) {
	listed, token := map[netip.Prefix]int64{}, ""
	for {
		var page *operatorv1.ListBansResponse
		err := f.retry(ctx, "list bans", func() error {
			answer, err := f.api.Bans.ListBans(ctx, connect.NewRequest(operatorv1.ListBansRequest_builder{PageSize: 5000, PageToken: token}.Build()))
			if err == nil {
				page = answer.Msg
			}
			return err
		})
		if err != nil {
			v.add(invListed, "%v", err)
			return
		}
		for _, b := range page.GetBans() {
			if p, err := prefix.Parse(b.GetPrefix()); err == nil {
				listed[p] = b.GetExpiresUnixMs()
			}
		}
		if token = page.GetNextPageToken(); token == "" {
			break
		}
	}
	for p, expires := range listed {
		if _, ok := live[p]; !ok && !unsure[p] && expires > now+slack {
			v.add(invListed, "the control plane lists %s until %s; nobody wants that any more", p, at(expires))
		}
	}
	for p, want := range live {
		if _, ok := listed[p]; !ok && !unsure[p] && want.lo > now+shortly.Milliseconds() {
			v.add(invListed, "the control plane doesn't list %s", p)
		}
	}
}

// checkEvents compares the history with what happened.
func (f *fleet) checkEvents(ctx context.Context, v *violations) {
	want := f.ledger.expected()
	w := f.watcher
	missing := func() (n int) {
		w.mu.Lock()
		defer w.mu.Unlock()
		for k, count := range want {
			if w.seen[k] < count && !f.gone[k.host] {
				n++
			}
		}
		return n
	}
	// The history is told behind what it tells of.
	for deadline := time.Now().Add(f.o.SettleWithin); missing() > 0 && time.Now().Before(deadline) && w.gaps == 0; {
		sleep(ctx, 20*time.Millisecond)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	f.o.report.Events, f.o.report.WatchGaps = w.read, w.gaps
	for k, count := range want {
		switch seen := w.seen[k]; {
		case seen > count:
			v.add(invOnce, "%s of %s in %s by %s happened %d times and is recorded %d times", k.kind, k.prefix, k.jail, k.host, count, seen)
		case seen < count && w.gaps == 0 && !f.gone[k.host]: // what a host didn't get to say before it left is nobody's promise
			v.add(invOnce, "%s of %s in %s by %s happened %d times and is recorded %d times", k.kind, k.prefix, k.jail, k.host, count, seen)
		}
	}
	for k, seen := range w.seen {
		if want[k] == 0 {
			v.add(invOnce, "%s of %s in %s by %s never happened and is recorded %d times", k.kind, k.prefix, k.jail, k.host, seen)
		}
	}
	for why, n := range w.odd {
		if why != operatorv1.Unpromoted_UNPROMOTED_LOCAL_JAIL && why != operatorv1.Unpromoted_UNPROMOTED_AWAITS_SECOND_HOST {
			v.add(invPromoted, "%d bans stayed on their hosts: %s", n, why)
		}
	}
}

// checkReceipts has the control plane say where the present state is enforced.
func (f *fleet) checkReceipts(ctx context.Context, v *violations) {
	ctx, cancel := context.WithTimeout(ctx, f.o.SettleWithin)
	defer cancel()
	state, err := f.current(ctx)
	if err != nil {
		v.add(invReceipts, "%v", err)
		return
	}
	for _, s := range state.GetSets() {
		if s.GetCursor().GetSet() != banset.All {
			continue
		}
		last, err := f.receipts(ctx, s.GetCursor())
		n := uint32(len(f.members()))
		switch {
		case err != nil:
			v.add(invReceipts, "of %d hosts in scope %d enforce version %d: %v", last.GetInScope(), last.GetEnforced(), s.GetCursor().GetVersion(), err)
		case last.GetEnforced() != n || last.GetInScope() != n:
			v.add(invReceipts, "of %d hosts, %d are in scope and %d enforce version %d; %d refused, %d inert, %d offline", n, last.GetInScope(), last.GetEnforced(),
				s.GetCursor().GetVersion(), last.GetRefused(), last.GetInert(), last.GetOffline())
		}
	}
	if n := len(f.members()); int(state.GetHostsOnline()) != n {
		v.add(invReceipts, "%d hosts have a stream and the control plane counts %d online", n, state.GetHostsOnline())
	}
}
