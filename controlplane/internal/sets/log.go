package sets

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/fleetban/fleetban/controlplane/internal/store"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/banset"
)

// States tells where the organisation stands. It begins a new epoch where Redis was restarted.
func (s *Sets) States(ctx context.Context, org string) (States, error) {
	states, _, err := s.states(ctx, org)
	return states, err
}

// states also gives each set's rewinds: "epoch:version" of its latest epochs, newest first.
func (s *Sets) states(ctx context.Context, org string) (States, map[string]string, error) {
	h, values, err := s.scripts.run(ctx, org, statesScript, nil)
	if err != nil {
		return States{}, nil, fmt.Errorf("read states: %w", err)
	}
	r := (&reader{values: values}).list()
	rewinds := make(map[string]string, len(h.sets))
	for _, set := range h.sets {
		rewinds[set.Cursor.Set] = r.text()
	}
	if r.err != nil {
		return States{}, nil, fmt.Errorf("read states: %w", r.err)
	}
	return States{Epoch: h.epoch, OldEpoch: h.oldEpoch, RebuildUntil: h.rebuildUntil, Now: h.now, PolicyVersion: h.policy, Sets: h.sets}, rewinds, nil
}

// Log reads at most limit entries of a set's log after a version, in order. ErrTrimmed when the log begins later than
// after+1.
func (s *Sets) Log(ctx context.Context, org, set string, after uint64, limit int) ([]Delta, error) {
	if !validSet(set, false) || limit <= 0 {
		return nil, fmt.Errorf("read log: %w: set %.40q, limit %d", ErrInvalid, set, limit)
	}
	var epoch *redis.StringCmd
	var entries *redis.XMessageSliceCmd
	_, err := s.store.Client().Pipelined(ctx, func(p redis.Pipeliner) error {
		epoch = p.HGet(ctx, store.Key(org, "meta"), "epoch")
		entries = p.XRangeN(ctx, store.Key(org, "log", set), strconv.FormatUint(after+1, 10), "+", int64(limit))
		return nil
	})
	if err != nil && !errors.Is(err, redis.Nil) {
		return nil, fmt.Errorf("read log of %s: %w", set, store.Classify(err))
	}
	e, _ := strconv.ParseUint(epoch.Val(), 10, 64)
	out := make([]Delta, 0, len(entries.Val()))
	for i, m := range entries.Val() {
		d, err := parseLogEntry(m)
		if err != nil {
			return nil, fmt.Errorf("read log of %s: %w", set, err)
		}
		if want := after + 1 + uint64(i); d.Version != want { //nolint:gosec // an index
			if i == 0 && d.Version > want {
				return nil, fmt.Errorf("read log of %s: %w", set, ErrTrimmed)
			}
			return nil, fmt.Errorf("%w: log of %s has version %d, want %d", errCorrupt, set, d.Version, want)
		}
		d.Set, d.Kind, d.Epoch = set, KindOf(set), e
		out = append(out, d)
	}
	return out, nil
}

func parseLogEntry(m redis.XMessage) (Delta, error) {
	number, zero, _ := strings.Cut(m.ID, "-")
	version, err := strconv.ParseUint(number, 10, 64)
	digest, _ := m.Values["d"].(string)
	packed, _ := m.Values["r"].(string)
	if err != nil || zero != "0" {
		return Delta{}, fmt.Errorf("%w: log entry %q", errCorrupt, m.ID)
	}
	d := Delta{Version: version}
	if d.Digest, err = strconv.ParseUint(digest, 16, 64); err != nil {
		return Delta{}, fmt.Errorf("%w: digest of log entry %s", errCorrupt, m.ID)
	}
	if d.Records, err = UnpackRecords([]byte(packed)); err != nil {
		return Delta{}, fmt.Errorf("log entry %s: %w", m.ID, err)
	}
	return d, nil
}

// digestAt is the digest that the log has for a version. ok is false where it has none.
func (s *Sets) digestAt(ctx context.Context, org, set string, version uint64) (digest uint64, ok bool, err error) {
	id := strconv.FormatUint(version, 10) + "-0"
	entries, err := s.store.Client().XRange(ctx, store.Key(org, "log", set), id, id).Result()
	if err != nil {
		return 0, false, fmt.Errorf("read log of %s: %w", set, store.Classify(err))
	}
	if len(entries) == 0 {
		return 0, false, nil
	}
	d, err := parseLogEntry(entries[0])
	return d.Digest, err == nil, err
}

// Resume decides what the holder of a cursor needs.
//
//	same epoch                    version and digest known ─▶ current or deltas; else ─▶ snapshot
//	older epoch, at most rewound  likewise: a clean restart of Redis costs no snapshot
//	older epoch, beyond           the log knows that digest ─▶ current or deltas; else, while a rebuild is open ─▶ offer
func (s *Sets) Resume(ctx context.Context, org string, cursor Cursor) (Resume, error) {
	if !validSet(cursor.Set, false) {
		return Resume{}, fmt.Errorf("resume: %w: set %.40q", ErrInvalid, cursor.Set)
	}
	states, rewinds, err := s.states(ctx, org)
	if err != nil {
		return Resume{}, err
	}
	state := states.Set(cursor.Set)
	out := Resume{Action: ResumeSnapshot, State: state, Partial: states.RebuildUntil > states.Now}
	at := state.Cursor
	if cursor.Epoch == 0 {
		return out, nil
	}
	if cursor.Version == at.Version && cursor.Digest == at.Digest {
		out.Action = ResumeCurrent
		return out, nil
	}
	if cursor.Version < at.Version {
		digest, ok := uint64(0), cursor.Version == 0
		if !ok {
			if digest, ok, err = s.digestAt(ctx, org, cursor.Set, cursor.Version); err != nil {
				return Resume{}, err
			}
		}
		if ok && digest == cursor.Digest {
			if _, err := s.Log(ctx, org, cursor.Set, cursor.Version, 1); err == nil {
				out.Action, out.After = ResumeDeltas, cursor.Version
				return out, nil
			} else if !errors.Is(err, ErrTrimmed) {
				return Resume{}, err
			}
		}
	}
	if kept := keptThrough(rewinds[cursor.Set], cursor.Epoch); cursor.Epoch != at.Epoch && cursor.Version > kept && out.Partial {
		out.Action, out.After = ResumeOffer, kept
	}
	return out, nil
}

// keptThrough is the last version of a set's epoch that every later epoch still had when it began: 0 for an epoch that the
// set doesn't know. That one was lost whole, or was another server's, which went its own way from a version before: the same
// number is another version there.
func keptThrough(rewinds string, epoch uint64) uint64 {
	if rewinds == "" {
		return 0
	}
	kept := ^uint64(0)
	for pair := range strings.SplitSeq(rewinds, ",") {
		e, v, _ := strings.Cut(pair, ":")
		began, err1 := strconv.ParseUint(e, 10, 64)
		version, err2 := strconv.ParseUint(v, 10, 64)
		if err1 != nil || err2 != nil || began < epoch {
			return 0
		}
		if began == epoch {
			return kept
		}
		kept = min(kept, version)
	}
	// Older than all that are named. The list is cut at eight; a shorter one that doesn't end with the set's beginning was
	// begun by a release that didn't note that.
	if strings.Count(rewinds, ",") < 7 {
		return kept
	}
	return 0
}

// errUnsettled: a snapshot's digest didn't match. It is taken again.
var errUnsettled = errors.New("the set changed in a way its log doesn't tell")

// Snapshot reads a whole set at exactly one version, verified by its digest. It reads the buckets while they change, and
// then rolls what it read forward by the log.
func (s *Sets) Snapshot(ctx context.Context, org, set string) (*Snapshot, error) {
	const tries = 4
	var err error
	for range tries {
		var snap *Snapshot
		if snap, err = s.trySnapshot(ctx, org, set); err == nil {
			return snap, nil
		}
		if !errors.Is(err, errUnsettled) && !errors.Is(err, ErrTrimmed) {
			break
		}
	}
	return nil, fmt.Errorf("snapshot of %s: %w", set, err)
}

func (s *Sets) trySnapshot(ctx context.Context, org, set string) (*Snapshot, error) {
	if !validSet(set, false) {
		return nil, fmt.Errorf("%w: set %.40q", ErrInvalid, set)
	}
	before, err := s.States(ctx, org)
	if err != nil {
		return nil, err
	}
	number, err := s.setNumber(ctx, org, set)
	if err != nil {
		return nil, err
	}
	rebuilding := before.RebuildUntil > before.Now
	held := map[netip.Prefix]Record{}
	keep := func(e rawEntry) {
		if since, expires, ok := viewOf(e.claims, number, -1); ok {
			held[e.prefix] = Record{Prefix: e.prefix, Kind: fleetbanv1.RecordKind_RECORD_KIND_PRESENT, Since: since, Expires: expires}
			return
		}
		if since, expires, ok := retractionOf(e.claims, number, rebuilding, before.Now); ok {
			held[e.prefix] = Record{Prefix: e.prefix, Kind: fleetbanv1.RecordKind_RECORD_KIND_RETRACTED, Since: since, Expires: expires}
		}
	}
	switch {
	case before.Set(set).Cursor.Version == 0:
	case KindOf(set) != fleetbanv1.SetKind_SET_KIND_BAN && !rebuilding: // the index has no tombstones: hosts need them in a rebuild alone
		raw, err := s.readIndexed(ctx, org, set)
		if err != nil {
			return nil, err
		}
		for _, e := range raw {
			keep(e)
		}
	default:
		for first := 0; first < buckets; first += pipelined {
			read, err := s.readBuckets(ctx, org, first, first+pipelined)
			if err != nil {
				return nil, err
			}
			for _, e := range slices.Concat(read...) {
				keep(e)
			}
		}
	}
	after, err := s.States(ctx, org)
	if err != nil {
		return nil, err
	}
	state := after.Set(set)
	if after.Epoch != before.Epoch || state.Cursor.Version < before.Set(set).Cursor.Version {
		return nil, errUnsettled
	}
	for at := before.Set(set).Cursor.Version; at < state.Cursor.Version; {
		deltas, err := s.Log(ctx, org, set, at, 1000)
		if err != nil {
			return nil, err
		}
		if len(deltas) == 0 {
			return nil, errUnsettled
		}
		for _, d := range deltas {
			if d.Version <= state.Cursor.Version {
				at = d.Version
				rollForward(held, d)
			}
		}
	}
	snap := &Snapshot{State: state, Partial: after.RebuildUntil > after.Now, Records: slices.AppendSeq(make([]Record, 0, len(held)), maps.Values(held))}
	if DigestOf(snap.Records) != state.Cursor.Digest {
		return nil, errUnsettled
	}
	return snap, nil
}

func rollForward(held map[netip.Prefix]Record, d Delta) {
	for _, r := range d.Records {
		if r.Kind == fleetbanv1.RecordKind_RECORD_KIND_EXPIRED {
			delete(held, r.Prefix)
		} else {
			held[r.Prefix] = r
		}
	}
}

// setNumber is a set's number inside claims; 0 for one that has none yet.
func (s *Sets) setNumber(ctx context.Context, org, set string) (uint16, error) {
	switch set {
	case banset.All:
		return numberAll, nil
	case banset.Allow:
		return numberAllow, nil
	case banset.Hosts:
		return numberHosts, nil
	}
	text, err := s.store.Client().HGet(ctx, store.Key(org, "names"), "s"+set).Result()
	if errors.Is(err, redis.Nil) {
		return ^uint16(0), nil // no claim has it
	}
	if err != nil {
		return 0, fmt.Errorf("read number of set %s: %w", set, store.Classify(err))
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("%w: number of set %s", errCorrupt, set)
	}
	return uint16(n), nil
}
