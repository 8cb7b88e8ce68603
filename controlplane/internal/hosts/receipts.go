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
	all, err := h.look(ctx, org, within, cursor, packed)
	return all.standings, err
}

// looked is what was read of all hosts within a scope.
type looked struct {
	directory *directory
	standings []Standing
	// refuse says of each whether it refuses anything; nil where that wasn't asked.
	refuse []bool
}

// look reads where the hosts within a scope stand.
func (h *Hosts) look(ctx context.Context, org string, within scope.Tags, cursor *fleetbanv1.SetCursor, packed [][]byte) (looked, error) {
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
		return looked{}, fmt.Errorf("read receipts: %w", missing(err))
	}
	d, err := h.directoryAt(ctx, org, version.Val())
	if err != nil {
		return looked{}, err
	}
	heard := make(map[string]int64, len(live.Val()))
	for _, z := range live.Val() {
		id, _ := z.Member.(string)
		heard[id] = int64(z.Score)
	}
	all := looked{directory: d, standings: make([]Standing, 0, len(d.sorted))}
	for _, e := range d.sorted {
		if !within.Has(e.tags) {
			continue
		}
		said := reported{seen: heard[e.id], acked: acks.Val()[e.id], inert: inert.Val()[e.id]}
		if exceptions != nil {
			said.exceptions = exceptions.Val()[e.id]
			all.refuse = append(all.refuse, said.exceptions != "")
		}
		all.standings = append(all.standings, said.standing(e, cursor, packed, clock.Val()))
	}
	return all, nil
}

// reported is what Redis has of one host, as it is stored; empty where there is nothing.
type reported struct {
	seen                     int64 // ms
	acked, inert, exceptions string
}

// standing is where the host stands by what is stored of it.
func (w reported) standing(e *entry, cursor *fleetbanv1.SetCursor, packed [][]byte, now time.Time) Standing {
	s := Standing{HostID: e.id, Name: e.name, Seen: w.seen}
	if !inScope(e, cursor.GetSet()) {
		s.State = operatorv1.EnforcementState_ENFORCEMENT_STATE_OUT_OF_SCOPE
		return s
	}
	if now.UnixMilli()-w.seen >= PresenceTTL.Milliseconds() {
		s.State = operatorv1.EnforcementState_ENFORCEMENT_STATE_OFFLINE
		return s
	}
	if epoch, version, ok := parseAcked(w.acked); !ok || !answers(epoch, version, cursor) {
		s.State = operatorv1.EnforcementState_ENFORCEMENT_STATE_PENDING
		return s
	}
	s.State = operatorv1.EnforcementState_ENFORCEMENT_STATE_ENFORCED
	if w.inert != "" {
		s.State, s.Inert = operatorv1.EnforcementState_ENFORCEMENT_STATE_INERT, parseInert(w.inert)
	}
	if refusal := refused(w.exceptions, packed); refusal != 0 {
		s.State, s.Refusal = operatorv1.EnforcementState_ENFORCEMENT_STATE_REFUSED, refusal
	}
	return s
}

// answers reports whether an acknowledgement at an epoch and version is one of a cursor.
func answers(epoch, version uint64, cursor *fleetbanv1.SetCursor) bool {
	return epoch >= cursor.GetEpoch() && version >= cursor.GetVersion()
}

// parseAcked is what a stored cursor says but its digest, of ten thousand hosts at a time.
func parseAcked(s string) (epoch, version uint64, ok bool) {
	first, rest, _ := strings.Cut(s, " ")
	second, _, digest := strings.Cut(rest, " ")
	epoch, err1 := strconv.ParseUint(first, 10, 64)
	version, err2 := strconv.ParseUint(second, 10, 64)
	return epoch, version, digest && err1 == nil && err2 == nil
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
	return sum(standings), nil
}

func sum(standings []Standing) *operatorv1.WatchReceiptsResponse {
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
	return b.Build()
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
