package hosts

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fleetban/fleetban/controlplane/internal/scope"
	"github.com/fleetban/fleetban/controlplane/internal/store"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/banset"
)

// maxMissing is how many hosts an answer names.
const maxMissing = 100

// Standing is where one host stands with a version of a set.
type Standing struct {
	HostID, Name string
	State        operatorv1.EnforcementState
	Refusal      fleetbanv1.Refusal
	Inert        fleetbanv1.Inert
	Seen         int64 // ms
}

func (s Standing) message() *operatorv1.HostEnforcement {
	return operatorv1.HostEnforcement_builder{
		HostId: s.HostID, HostName: s.Name, State: s.State, Refusal: s.Refusal, Inert: s.Inert, SeenUnixMs: s.Seen,
	}.Build()
}

// Standings tells for each host, by name, whether it has acknowledged the cursor, and whether it refuses any of the
// packed prefixes. Hosts outside the set's scope come as OUT_OF_SCOPE. Two round trips; some tens of bytes a host.
func (h *Hosts) Standings(ctx context.Context, org string, cursor *fleetbanv1.SetCursor, packed [][]byte) ([]Standing, error) {
	return h.StandingsWithin(ctx, org, nil, cursor, packed)
}

// StandingsWithin is Standings of the hosts within a scope.
func (h *Hosts) StandingsWithin(
	ctx context.Context, org string, within scope.Tags, cursor *fleetbanv1.SetCursor, packed [][]byte,
) ([]Standing, error) {
	pipe := h.store.Client().Pipeline()
	version := pipe.Get(ctx, store.Key(org, "hostsver"))
	clock := pipe.Time(ctx)
	acks := pipe.HGetAll(ctx, store.Key(org, "acks", cursor.GetSet()))
	live := pipe.ZRangeWithScores(ctx, store.Key(org, "live"), 0, -1)
	inert := pipe.HGetAll(ctx, store.Key(org, "inert"))
	var exceptions *redis.MapStringStringCmd
	if len(packed) > 0 {
		exceptions = pipe.HGetAll(ctx, store.Key(org, "exceptions"))
	}
	if _, err := pipe.Exec(ctx); missing(err) != nil {
		return nil, fmt.Errorf("read receipts: %w", missing(err))
	}
	d, err := h.directoryAt(ctx, org, version.Val())
	if err != nil {
		return nil, err
	}
	heard := make(map[string]int64, len(live.Val()))
	for _, z := range live.Val() {
		id, _ := z.Member.(string)
		heard[id] = int64(z.Score)
	}
	now := clock.Val().UnixMilli()
	out := make([]Standing, 0, len(d.sorted))
	for _, e := range d.sorted {
		if !within.Has(e.tags) {
			continue
		}
		s := Standing{HostID: e.id, Name: e.name, Seen: heard[e.id]}
		acked := parseCursor(cursor.GetSet(), acks.Val()[e.id])
		switch {
		case !inScope(e, cursor.GetSet()):
			s.State = operatorv1.EnforcementState_ENFORCEMENT_STATE_OUT_OF_SCOPE
		case now-s.Seen >= PresenceTTL.Milliseconds():
			s.State = operatorv1.EnforcementState_ENFORCEMENT_STATE_OFFLINE
		case acked == nil || acked.GetEpoch() < cursor.GetEpoch() || acked.GetVersion() < cursor.GetVersion():
			s.State = operatorv1.EnforcementState_ENFORCEMENT_STATE_PENDING
		default:
			s.State = operatorv1.EnforcementState_ENFORCEMENT_STATE_ENFORCED
			if n, ok := inert.Val()[e.id]; ok {
				s.State, s.Inert = operatorv1.EnforcementState_ENFORCEMENT_STATE_INERT, parseInert(n)
			}
			if exceptions != nil {
				if refusal := refused(exceptions.Val()[e.id], packed); refusal != 0 {
					s.State, s.Refusal = operatorv1.EnforcementState_ENFORCEMENT_STATE_REFUSED, refusal
				}
			}
		}
		out = append(out, s)
	}
	return out, nil
}

// Receipts sums Standings up.
func (h *Hosts) Receipts(ctx context.Context, org string, cursor *fleetbanv1.SetCursor, packed [][]byte) (*operatorv1.WatchReceiptsResponse, error) {
	return h.receipts(ctx, org, nil, cursor, packed)
}

func (h *Hosts) receipts(
	ctx context.Context, org string, within scope.Tags, cursor *fleetbanv1.SetCursor, packed [][]byte,
) (*operatorv1.WatchReceiptsResponse, error) {
	standings, err := h.StandingsWithin(ctx, org, within, cursor, packed)
	if err != nil {
		return nil, err
	}
	b := operatorv1.WatchReceiptsResponse_builder{Complete: true}
	for _, s := range standings {
		switch s.State {
		case operatorv1.EnforcementState_ENFORCEMENT_STATE_OUT_OF_SCOPE:
			continue
		case operatorv1.EnforcementState_ENFORCEMENT_STATE_ENFORCED:
			b.InScope++
			b.Enforced++
			continue
		case operatorv1.EnforcementState_ENFORCEMENT_STATE_INERT:
			b.InScope++
			b.Inert++
		case operatorv1.EnforcementState_ENFORCEMENT_STATE_REFUSED:
			b.InScope++
			b.Refused++
		case operatorv1.EnforcementState_ENFORCEMENT_STATE_OFFLINE:
			b.Offline++
		default:
			b.InScope++
			b.Complete = false
		}
		if len(b.Missing) < maxMissing {
			b.Missing = append(b.Missing, s.message())
		}
	}
	return b.Build(), nil
}

// Bell tells when something of the organisation may have changed: a *feed.Feed.
type Bell interface {
	Listen(callback func(store.Bell)) (stop func())
}

// receiptRecheck is how often receipts are read without a bell: hosts also go offline silently.
const receiptRecheck = 2 * time.Second

// WatchReceipts sends receipts whenever they change, until every connected host has answered (the last one says so), ctx
// ends, or send fails. Reads are at most one in 5 ms and take at most half of the time.
func (h *Hosts) WatchReceipts(ctx context.Context, org string, cursor *fleetbanv1.SetCursor, packed [][]byte, bell Bell,
	send func(*operatorv1.WatchReceiptsResponse) error,
) error {
	return h.WatchReceiptsWithin(ctx, org, nil, cursor, packed, bell, send)
}

// WatchReceiptsWithin is WatchReceipts of the hosts within a scope.
func (h *Hosts) WatchReceiptsWithin(ctx context.Context, org string, within scope.Tags, cursor *fleetbanv1.SetCursor, packed [][]byte, bell Bell,
	send func(*operatorv1.WatchReceiptsResponse) error,
) error {
	rung := make(chan struct{}, 1)
	defer bell.Listen(func(b store.Bell) {
		switch b.Kind {
		case store.BellAcks, store.BellKick, store.BellEpoch:
			select {
			case rung <- struct{}{}:
			default:
			}
		default:
		}
	})()
	timer := time.NewTimer(0)
	defer timer.Stop()
	last := ""
	for first := true; ; first = false {
		if !first {
			timer.Reset(receiptRecheck)
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-rung:
			case <-timer.C:
			}
		}
		began := time.Now()
		receipts, err := h.receipts(ctx, org, within, cursor, packed)
		if err != nil {
			return err
		}
		if now := summary(receipts); now != last {
			last = now
			if err := send(receipts); err != nil {
				return fmt.Errorf("send receipts: %w", err)
			}
		}
		if receipts.GetComplete() {
			return nil
		}
		timer.Reset(max(5*time.Millisecond, time.Since(began)))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		}
	}
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

func inScope(e *entry, set string) bool {
	tag, ok := strings.CutPrefix(set, banset.TagPrefix)
	if !ok {
		return true
	}
	k, v, _ := strings.Cut(tag, "=")
	value, has := e.tags[k]
	return has && value == v
}

// refused finds a refusal of any of the prefixes.
func refused(raw string, packed [][]byte) fleetbanv1.Refusal {
	for _, x := range parseExceptions(raw).GetExceptions() {
		for _, p := range packed {
			if bytes.Equal(x.GetPrefix(), p) {
				return x.GetRefusal()
			}
		}
	}
	return 0
}
