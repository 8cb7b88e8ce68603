package sets

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/hosts/commandlog"
	"github.com/fleetban/fleetban/controlplane/internal/store"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/banset"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

// mutate runs one mutation and gives what its op returned.
func (s *Sets) mutate(ctx context.Context, org, what string, m *mutation) (head, *reader, error) {
	h, values, err := s.commit.do(ctx, org, m)
	if err == nil {
		var r *reader
		if r, err = verdict(values); err == nil {
			m.entry.Wrote(ctx, h.audit)
			return h, r, nil
		}
	}
	return head{}, nil, fmt.Errorf("%s: %w", what, err)
}

func checkTexts(actor, reason string) error {
	if len(actor) > maxName || len(reason) > maxText {
		return fmt.Errorf("%w: an actor of at most %d bytes and a reason of at most %d", ErrTooLarge, maxName, maxText)
	}
	return nil
}

// Ban makes one claim a prefix, of source person. All or nothing: a prefix that overlaps the fleet's own fails the
// whole with a *ProtectedError.
func (s *Sets) Ban(ctx context.Context, org string, in BanInput) (BanResult, error) {
	if KindOf(in.Set) != fleetbanv1.SetKind_SET_KIND_BAN || !validSet(in.Set, false) {
		return BanResult{}, fmt.Errorf("ban: %w: set %.40q", ErrInvalid, in.Set)
	}
	if in.Duration < time.Millisecond {
		return BanResult{}, fmt.Errorf("ban: %w: duration %s", ErrInvalid, in.Duration)
	}
	return s.claim(ctx, org, "ban", in)
}

func (s *Sets) claim(ctx context.Context, org, what string, in BanInput) (BanResult, error) {
	packed, kept, err := packPrefixes(in.Prefixes)
	if err == nil {
		err = checkTexts(in.Actor, in.Reason)
	}
	if err == nil && (len(kept) == 0 || in.Duration < 0 || in.Duration > MaxDuration) {
		err = fmt.Errorf("%w: %d prefixes for %s", ErrInvalid, len(kept), in.Duration)
	}
	if err != nil {
		return BanResult{}, fmt.Errorf("%s: %w", what, err)
	}
	h, r, err := s.mutate(ctx, org, what, newMutation(false, len(kept), "ban", strconv.FormatUint(in.PolicyVersion, 10), in.Set, in.Actor, in.Reason,
		in.Duration.Milliseconds(), packed).audited(ctx))
	if err != nil {
		return BanResult{}, err
	}
	out := BanResult{Cursor: h.set(in.Set), Expires: r.number(), Prefixes: make([]BannedPrefix, 0, len(kept))}
	for _, p := range kept {
		out.Prefixes = append(out.Prefixes, BannedPrefix{Prefix: p, Effect: operatorv1.BannedPrefix_Effect(r.number()), SuppressedBy: r.prefix()}) //nolint:gosec // an enum of few
	}
	return out, r.err
}

// Unban retracts every claim on each prefix in every BAN set, counted or not, leaves a tombstone that refuses claims
// begun earlier and lives as long as the longest claim it cancelled, and orders the hosts whose jails claimed to unban
// there too, one command a host: all of it one change. Works when Redis is full.
func (s *Sets) Unban(ctx context.Context, org string, in UnbanInput) (UnbanResult, error) {
	packed, kept, err := packPrefixes(in.Prefixes)
	if err == nil {
		err = checkTexts(in.Actor, in.Reason)
	}
	if err == nil && len(kept) == 0 {
		err = fmt.Errorf("%w: no prefixes", ErrInvalid)
	}
	if err != nil {
		return UnbanResult{}, fmt.Errorf("unban: %w", err)
	}
	id, head, parts, err := s.unbanOrders(ctx, org, in.Actor, kept)
	if err != nil {
		return UnbanResult{}, fmt.Errorf("unban: %w", err)
	}
	within, err := s.packWithin(ctx, org, kept, in.Within)
	if err != nil {
		return UnbanResult{}, fmt.Errorf("unban: %w", err)
	}
	h, r, err := s.mutate(ctx, org, "unban", newMutation(true, len(kept), "unban", in.Actor, in.Reason, packed, id, head, parts, within).audited(ctx))
	if err != nil {
		return UnbanResult{}, err
	}
	var out UnbanResult
	ordered := r.list()
	for ordered.more() {
		out.Ordered = append(out.Ordered, ordered.text())
	}
	slices.Sort(out.Ordered)
	r.err = ordered.err
	for _, set := range h.sets {
		if set.Kind == fleetbanv1.SetKind_SET_KIND_BAN {
			out.Cursors = append(out.Cursors, set.Cursor)
		}
	}
	for _, p := range kept {
		u := UnbannedPrefix{Prefix: p}
		claims, covers := r.list(), r.list()
		for claims.more() {
			c := claims.list()
			u.Retracted = append(u.Retracted, c.claim())
			claims.err = c.err
		}
		for covers.more() {
			c := covers.list()
			u.StillCoveredBy = append(u.StillCoveredBy, Cover{Prefix: c.prefix(), Set: c.text(), Expires: c.number()})
			covers.err = c.err
		}
		for _, inner := range []*reader{claims, covers} {
			if r.err == nil {
				r.err = inner.err
			}
		}
		out.Prefixes = append(out.Prefixes, u)
	}
	return out, r.err
}

// unbanOrders makes what the script makes orders of, the parts as it takes prefixes: each after a byte of length.
func (s *Sets) unbanOrders(ctx context.Context, org, actor string, prefixes []netip.Prefix) (id string, head, parts []byte, err error) {
	now, err := s.store.Time(ctx, org)
	if err != nil {
		return "", nil, nil, fmt.Errorf("date orders: %w", err)
	}
	packed := make([][]byte, len(prefixes))
	for i, p := range prefixes {
		packed[i] = prefix.Pack(p)
	}
	orders, err := commandlog.Unban(packed, actor, now)
	if err != nil {
		return "", nil, nil, err
	}
	for _, part := range orders.Parts {
		parts = append(append(parts, byte(len(part))), part...) //nolint:gosec // shorter than 256
	}
	return orders.ID, orders.Head, parts, nil
}

// Allow exempts prefixes: bans they cover are suppressed, not deleted.
func (s *Sets) Allow(ctx context.Context, org string, in AllowInput) (AllowResult, error) {
	done, err := s.claim(ctx, org, "allow", BanInput{Prefixes: in.Prefixes, Set: banset.Allow, Duration: in.Duration, Actor: in.Actor, Reason: in.Reason})
	if err != nil {
		return AllowResult{}, err
	}
	// The exemption stands whether or not what it suppresses can be read.
	within, _ := s.bannedWithin(ctx, org, in.Prefixes)
	return AllowResult{Cursor: done.Cursor, Expires: done.Expires, Suppresses: within}, nil
}

// Disallow takes prefixes off the allowlist. Works when Redis is full.
func (s *Sets) Disallow(ctx context.Context, org string, in DisallowInput) (DisallowResult, error) {
	packed, kept, err := packPrefixes(in.Prefixes)
	if err == nil {
		err = checkTexts(in.Actor, "")
	}
	if err == nil && len(kept) == 0 {
		err = fmt.Errorf("%w: no prefixes", ErrInvalid)
	}
	if err != nil {
		return DisallowResult{}, fmt.Errorf("disallow: %w", err)
	}
	h, r, err := s.mutate(ctx, org, "disallow", newMutation(true, len(kept), "disallow", in.Actor, packed).audited(ctx))
	if err != nil {
		return DisallowResult{}, err
	}
	var gone []netip.Prefix
	for _, p := range kept {
		if r.number() == 1 {
			gone = append(gone, p)
		}
	}
	if r.err != nil {
		return DisallowResult{}, fmt.Errorf("disallow: %w", r.err)
	}
	out := DisallowResult{Cursor: h.set(banset.Allow)}
	// It is off the list whether or not what that reinstates can be read.
	within, err := s.bannedWithin(ctx, org, gone)
	if err != nil {
		return out, nil //nolint:nilerr // see above
	}
	allowed, err := s.allowed(ctx, org)
	if err != nil {
		return out, nil //nolint:nilerr // see above
	}
	for _, p := range within {
		if !allowed.covering(p).IsValid() {
			out.Reinstates = append(out.Reinstates, p)
		}
	}
	return out, nil
}

// PutHostAddresses says what a host's own addresses are, in the set "hosts", in place of what was said before. None
// removes them (a host that is deleted). At most 64.
func (s *Sets) PutHostAddresses(ctx context.Context, org, hostID string, addresses []netip.Prefix) error {
	_, err := s.Arrive(ctx, org, hostID, addresses)
	return err
}

// Arrive is PutHostAddresses of a host whose stream begins; it also gives the epoch.
func (s *Sets) Arrive(ctx context.Context, org, hostID string, addresses []netip.Prefix) (epoch uint64, err error) {
	const most = 64
	_, kept, err := packPrefixes(addresses)
	if err == nil && (hostID == "" || len(hostID) > maxName || len(kept) > most) {
		err = fmt.Errorf("%w: host %.40q with %d addresses, at most %d", ErrInvalid, hostID, len(kept), most)
	}
	if err != nil {
		return 0, fmt.Errorf("put host addresses: %w", err)
	}
	slices.SortFunc(kept, func(a, b netip.Prefix) int { return bytes.Compare(prefix.Pack(a), prefix.Pack(b)) })
	packed, _, _ := packPrefixes(kept)
	h, _, err := s.mutate(ctx, org, "put host addresses", newMutation(len(kept) == 0, len(kept)+1, "addresses", hostID, packed))
	return h.epoch, err
}

// RecordEvents stores a host's events, each once, and makes, corrects or retracts its claims. Batches of more than 256
// go in pieces: after an error a part may be stored, which EventsThroughAll tells and a repetition skips.
func (s *Sets) RecordEvents(ctx context.Context, org string, in EventsInput) (EventsResult, error) {
	if len(in.Events) > MaxEvents {
		return EventsResult{}, fmt.Errorf("record events: %w: %d, at most %d", ErrTooLarge, len(in.Events), MaxEvents)
	}
	if in.HostID == "" || len(in.HostID) > maxName || !validSet(in.Spool, false) || len(in.Events) == 0 || in.Fence >= 1<<53 || in.After >= 1<<53 {
		return EventsResult{}, fmt.Errorf("record events: %w: host %.40q, spool %.40q, %d events", ErrInvalid, in.HostID, in.Spool, len(in.Events))
	}
	var out EventsResult
	packed := make([][]byte, 0, 4)
	for piece := range slices.Chunk(in.Events, batchPrefixes) {
		p, err := packEvents(piece)
		if err != nil {
			return EventsResult{}, fmt.Errorf("record events: %w", err)
		}
		packed = append(packed, p)
	}
	for i, piece := range packed {
		n := min(batchPrefixes, len(in.Events)-i*batchPrefixes)
		_, r, err := s.mutate(ctx, org, "record events", newMutation(false, n, "events", strconv.FormatUint(in.PolicyVersion, 10), in.HostID,
			strconv.FormatUint(in.Fence, 10), in.Spool, strconv.FormatUint(in.After, 10), strconv.Itoa(max(in.HostRate, 0)), strconv.Itoa(max(in.OrganisationRate, 0)), piece))
		if err != nil {
			return out, err
		}
		out.Through = r.count()
		out.Promoted += int(r.number())
		out.Skipped += int(r.number())
		out.Refused += int(r.number())
		out.OverHostRate += int(r.number())
		out.OverOrganisationRate += int(r.number())
		if r.err != nil {
			return out, fmt.Errorf("record events: %w", r.err)
		}
	}
	return out, nil
}

// Offer takes records of a set that a host held when Redis lost them, as claims of source recovered. The caller has
// verified their MACs. Tombstones beat claims begun before them; a claim's expiry is never later than its record's.
// ErrNotRebuilding when no rebuild is open.
func (s *Sets) Offer(ctx context.Context, org, set string, records []Record) (OfferResult, error) {
	if len(records) > MaxOffer || !validSet(set, false) {
		return OfferResult{}, fmt.Errorf("offer: %w: %d records of set %.40q, at most %d", ErrTooLarge, len(records), set, MaxOffer)
	}
	var out OfferResult
	if len(records) == 0 {
		return out, nil
	}
	// Tombstones first: a piece with a claim must not be decided before the piece with what refuses it.
	sorted := slices.Clone(records)
	slices.SortStableFunc(sorted, func(a, b Record) int { return int(b.Kind) - int(a.Kind) })
	for piece := range slices.Chunk(sorted, batchPrefixes) {
		var packed []byte
		for _, r := range piece {
			if !r.Prefix.IsValid() || r.Since < 0 || r.Expires < 0 || r.Since > banset.Never || r.Expires > banset.Never {
				return out, fmt.Errorf("offer: %w: record of %s", ErrInvalid, r.Prefix)
			}
			packed = AppendRecord(packed, r)
		}
		_, r, err := s.mutate(ctx, org, "offer", newMutation(false, len(piece), "offer", set, packed))
		if err != nil {
			return out, err
		}
		out.Recovered += int(r.number())
		if r.err != nil {
			return out, fmt.Errorf("offer: %w", r.err)
		}
	}
	return out, nil
}

// CloseRebuild ends the rebuild before its time.
func (s *Sets) CloseRebuild(ctx context.Context, org string) error {
	_, _, err := s.mutate(ctx, org, "close rebuild", newMutation(true, 1, "close"))
	return err
}

// Sweep emits the EXPIRED records of claims that ran out and drops them, a bounded piece of work a call. Any replica
// may call it at any time; one that holds a lease should, when something is due. Works when Redis is full.
func (s *Sets) Sweep(ctx context.Context, org string) (SweepResult, error) {
	const change, look = 400, 3000 // some 10 ms
	_, values, err := s.scripts.run(ctx, org, sweepScript, []any{change, look})
	if err != nil {
		return SweepResult{}, fmt.Errorf("sweep: %w", err)
	}
	r := &reader{values: values}
	out := SweepResult{Expired: int(r.number()), More: r.number() == 1, Next: r.number()}
	if r.err != nil {
		return SweepResult{}, fmt.Errorf("sweep: %w", r.err)
	}
	return out, nil
}

// Spool names the spool of a host.
type Spool struct{ HostID, ID string }

// EventsThroughAll is the last event that is stored of each spool, at least one, in their order; 0 for a spool that isn't known.
func (s *Sets) EventsThroughAll(ctx context.Context, org string, spools []Spool) ([]uint64, error) {
	fields := make([]string, len(spools))
	for i, spool := range spools {
		fields[i] = spool.HostID
	}
	marks, err := s.store.Client().HMGet(ctx, store.Key(org, "hw"), fields...).Result()
	if err != nil {
		return nil, fmt.Errorf("read stored events: %w", store.Classify(err))
	}
	if len(marks) != len(spools) {
		return nil, fmt.Errorf("read stored events: %d answers to %d questions", len(marks), len(spools))
	}
	out := make([]uint64, len(spools))
	for i, spool := range spools {
		mark, _ := marks[i].(string)
		if out[i], err = ThroughOf(mark, spool); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// ThroughOf is the last event that is stored of a spool, by the host's mark, its field of the hash "hw"; "" is none.
func ThroughOf(mark string, spool Spool) (uint64, error) {
	kept, seq, _ := strings.Cut(mark, " ")
	if kept != spool.ID || mark == "" {
		return 0, nil
	}
	through, err := strconv.ParseUint(seq, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%w: high-water mark of host %s", errCorrupt, spool.HostID)
	}
	return through, nil
}
