package sets

import (
	"context"
	"net/netip"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/store"
)

// Options of New.
type Options struct {
	// RebuildWindow is how long after a restart or loss of Redis hosts may offer back what they hold. Default 60 s.
	RebuildWindow time.Duration
	// Timeout bounds one script's round trip. Default 3 s.
	Timeout time.Duration
}

// Sets keeps the sets of all organisations. Safe for concurrent use. Mutations of one organisation that come while a
// script is in flight go together with the next (group commit).
type Sets struct{}

// New makes a Sets on a store.
func New(st *store.Store, o Options) *Sets { return &Sets{} }

// Close refuses further mutations and waits for those in flight.
func (s *Sets) Close() {}

// Ban makes one claim a prefix, of source person. All or nothing: a prefix that overlaps the fleet's own fails the
// whole with a *ProtectedError.
func (s *Sets) Ban(ctx context.Context, org string, in BanInput) (BanResult, error) {
	return BanResult{}, ErrClosed
}

// Unban retracts every claim on each prefix in every BAN set, counted or not, and leaves a tombstone that refuses
// claims begun earlier and lives as long as the longest claim it cancelled. Works when Redis is full.
func (s *Sets) Unban(ctx context.Context, org string, in UnbanInput) (UnbanResult, error) {
	return UnbanResult{}, ErrClosed
}

// Allow exempts prefixes: bans they cover are suppressed, not deleted.
func (s *Sets) Allow(ctx context.Context, org string, in AllowInput) (AllowResult, error) {
	return AllowResult{}, ErrClosed
}

// Disallow takes prefixes off the allowlist. Works when Redis is full.
func (s *Sets) Disallow(ctx context.Context, org string, in DisallowInput) (DisallowResult, error) {
	return DisallowResult{}, ErrClosed
}

// PutHostAddresses says what a host's own addresses are, in the set "hosts", in place of what was said before. None
// removes them (a host that is deleted). At most 64.
func (s *Sets) PutHostAddresses(ctx context.Context, org, hostID string, addresses []netip.Prefix) error {
	return ErrClosed
}

// RecordEvents stores a host's events, each once, and makes, corrects or retracts its claims.
func (s *Sets) RecordEvents(ctx context.Context, org string, in EventsInput) (EventsResult, error) {
	return EventsResult{}, ErrClosed
}

// EventsThrough is the last event of a host's spool that is stored; 0 for a spool that isn't known.
func (s *Sets) EventsThrough(ctx context.Context, org, hostID, spool string) (uint64, error) {
	return 0, ErrClosed
}

// Sweep emits the EXPIRED records of claims that ran out and drops them, a bounded piece of work a call. Any replica
// may call it at any time; one that holds a lease should, when something is due. Works when Redis is full.
func (s *Sets) Sweep(ctx context.Context, org string) (SweepResult, error) {
	return SweepResult{}, ErrClosed
}

// Offer takes records of a set that a host held when Redis lost them, as claims of source recovered. The caller has
// verified their MACs. Tombstones beat claims begun before them; a claim's expiry is never later than its record's.
// ErrNotRebuilding when no rebuild is open.
func (s *Sets) Offer(ctx context.Context, org, set string, records []Record) (OfferResult, error) {
	return OfferResult{}, ErrClosed
}

// CloseRebuild ends the rebuild before its time.
func (s *Sets) CloseRebuild(ctx context.Context, org string) error { return ErrClosed }

// States tells where the organisation stands. It begins a new epoch where Redis was restarted.
func (s *Sets) States(ctx context.Context, org string) (States, error) { return States{}, ErrClosed }

// Log reads at most limit entries of a set's log after a version, in order. ErrTrimmed when the log begins later than after+1.
func (s *Sets) Log(ctx context.Context, org, set string, after uint64, limit int) ([]Delta, error) {
	return nil, ErrClosed
}

// Snapshot reads a whole set at exactly one version, verified by its digest.
func (s *Sets) Snapshot(ctx context.Context, org, set string) (*Snapshot, error) {
	return nil, ErrClosed
}

// Resume decides what the holder of a cursor needs.
func (s *Sets) Resume(ctx context.Context, org string, cursor Cursor) (Resume, error) {
	return Resume{}, ErrClosed
}

// List lists what is kept, in pages: every entry that stands all the while is listed once.
func (s *Sets) List(ctx context.Context, org string, in ListInput) (ListResult, error) {
	return ListResult{}, ErrClosed
}

// Explain tells everything kept about one address or prefix.
func (s *Sets) Explain(ctx context.Context, org string, p netip.Prefix) (Explanation, error) {
	return Explanation{}, ErrClosed
}

// Events reads at most limit events for people after an id ("": from the oldest kept), in order. gap: events between
// the id and the first returned were trimmed.
func (s *Sets) Events(ctx context.Context, org, after string, limit int) (events []FleetEvent, gap bool, err error) {
	return nil, false, ErrClosed
}

// LatestEvents reads the newest limit events, newest first; valid p selects those of that prefix among the newest kept.
func (s *Sets) LatestEvents(ctx context.Context, org string, p netip.Prefix, limit int) ([]FleetEvent, error) {
	return nil, ErrClosed
}

// LastEventID is the id of the newest event, to watch from now on.
func (s *Sets) LastEventID(ctx context.Context, org string) (string, error) { return "", ErrClosed }

// AppendEvent adds an event for people that isn't of a set: a host came online, a pause. Its ID and At are given here.
func (s *Sets) AppendEvent(ctx context.Context, org string, e FleetEvent) error { return ErrClosed }
