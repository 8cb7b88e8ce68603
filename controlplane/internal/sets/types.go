package sets

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/banset"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

// Errors that callers decide on. Those of package store (ErrUnavailable, ErrOutcomeUnknown) pass through as well.
var (
	// ErrPolicyChanged: meta's policy version isn't the one the caller evaluated. Nothing was changed; evaluate again.
	ErrPolicyChanged = errors.New("the policy changed meanwhile")
	// ErrStaleFence: a newer stream of the host took over. Nothing was changed; end the stream.
	ErrStaleFence = errors.New("a newer stream of this host took over")
	// ErrRewound: Redis lost events of the host that it had stored. Nothing was changed; have the host send them again first.
	ErrRewound = errors.New("events of this host that were stored are lost")
	// ErrFull: Redis is at maxmemory and refuses what needs more. Nothing was changed. Unban, Disallow and Sweep work still.
	ErrFull = errors.New("redis is out of memory: raise maxmemory, or unban to free some")
	// ErrNotRebuilding: the rebuild is over, nothing was taken.
	ErrNotRebuilding = errors.New("no rebuild is open")
	// ErrTooLarge: more prefixes, events or records than one mutation may have, or a text too long.
	ErrTooLarge = errors.New("too much for one mutation")
	// ErrInvalid: a value that is out of range. Nothing was changed.
	ErrInvalid = errors.New("invalid")
	// ErrClosed: the Sets is closed.
	ErrClosed = errors.New("sets are closed")
	// ErrTrimmed: the log doesn't reach back that far; take a snapshot.
	ErrTrimmed = errors.New("the log doesn't reach back that far")
	// ErrPageToken: not one that List gave.
	ErrPageToken = errors.New("malformed page token")
)

// ProtectedError refuses a ban that would hit one of the fleet's own. Nothing of the mutation was applied.
type ProtectedError struct {
	Prefix netip.Prefix
	// By is the protected prefix that it overlaps.
	By netip.Prefix
}

func (e *ProtectedError) Error() string {
	return fmt.Sprintf("%s covers %s, which is the fleet's own", prefix.Format(e.Prefix), prefix.Format(e.By))
}

// Bounds of one mutation.
const (
	MaxPrefixes = 1000
	MaxEvents   = 1000
	MaxOffer    = 1000
	maxText     = 500
	maxName     = 253
	// MaxSetName bounds a set's name: "tag:" and a tag of 120.
	MaxSetName = 128
)

// MaxDuration is the longest ban or exemption: 366 days.
const MaxDuration = 366 * 24 * time.Hour

// Cursor is a position in a set.
type Cursor struct {
	Set     string
	Epoch   uint64
	Version uint64
	Digest  uint64
}

// Proto converts for the wire.
func (c Cursor) Proto() *fleetbanv1.SetCursor {
	return fleetbanv1.SetCursor_builder{Set: c.Set, Epoch: c.Epoch, Version: c.Version, Digest: c.Digest}.Build()
}

// CursorFrom converts from the wire.
func CursorFrom(c *fleetbanv1.SetCursor) Cursor {
	return Cursor{Set: c.GetSet(), Epoch: c.GetEpoch(), Version: c.GetVersion(), Digest: c.GetDigest()}
}

// KindOf is the kind of the set of this name.
func KindOf(set string) fleetbanv1.SetKind {
	switch set {
	case banset.Allow:
		return fleetbanv1.SetKind_SET_KIND_ALLOW
	case banset.Hosts:
		return fleetbanv1.SetKind_SET_KIND_PROTECT
	default:
		return fleetbanv1.SetKind_SET_KIND_BAN
	}
}

// Record is the state of one prefix in a set, as fleetbanv1.Record says, without its MAC. Times are Unix milliseconds.
type Record struct {
	Prefix  netip.Prefix
	Kind    fleetbanv1.RecordKind
	Since   int64
	Expires int64
}

// Delta is one entry of a set's log: it takes the set from Version-1 to Version.
type Delta struct {
	Set     string
	Kind    fleetbanv1.SetKind
	Epoch   uint64
	Version uint64
	Digest  uint64
	Records []Record
}

// Claim is one source's wish. Times are Unix milliseconds.
type Claim struct {
	Source operatorv1.ClaimSource
	// HostID and Jail are those of a jail's claim; HostID also that of a host's own address.
	HostID string
	Jail   string
	// Actor and Reason are those of a person's claim.
	Actor   string
	Reason  string
	Since   int64
	Expires int64
	// Set is where it counts, or would but for Unpromoted. Empty: it is an observation only.
	Set        string
	Unpromoted operatorv1.Unpromoted
	Failures   uint32
}

// Counts reports whether the claim makes its set's view.
func (c Claim) Counts() bool {
	return c.Set != "" && c.Unpromoted == operatorv1.Unpromoted_UNPROMOTED_UNSPECIFIED
}

// Tombstone refuses claims begun before At until Expires.
type Tombstone struct {
	Prefix  netip.Prefix
	At      int64
	Expires int64
	Actor   string
	// Set: only claims in this set; empty: in every BAN set.
	Set string
	// HostID, Jail: only claims of this host's jail.
	HostID string
	Jail   string
}

// Entry is what is kept of one prefix.
type Entry struct {
	Prefix netip.Prefix
	// Claims that are live now, those that don't count included.
	Claims     []Claim
	Tombstones []Tombstone
	// Expires is the latest of the claims that count in a BAN set; 0 when none does.
	Expires int64
	// SuppressedBy is the allowlist entry that covers it; not valid when none does.
	SuppressedBy netip.Prefix
}

// Cover is a wider prefix that is banned.
type Cover struct {
	Prefix  netip.Prefix
	Set     string
	Expires int64
}

// BanInput is a person's ban.
type BanInput struct {
	// Prefixes, 1 to MaxPrefixes, each once.
	Prefixes []netip.Prefix
	// Set is "all" or "tag:k=v".
	Set string
	// Duration is 1 ms to MaxDuration.
	Duration time.Duration
	// Actor is who wants it, Reason why: at most 253 and 500 bytes.
	Actor  string
	Reason string
	// PolicyVersion is the version of the policy that was evaluated; 0 isn't checked.
	PolicyVersion uint64
}

// BannedPrefix is what became of one prefix.
type BannedPrefix struct {
	Prefix       netip.Prefix
	Effect       operatorv1.BannedPrefix_Effect
	SuppressedBy netip.Prefix
}

// BanResult answers Ban. Cursor is the set's position that holds the ban.
type BanResult struct {
	Cursor   Cursor
	Expires  int64
	Prefixes []BannedPrefix
}

// UnbanInput is a person's unban.
type UnbanInput struct {
	Prefixes []netip.Prefix
	Actor    string
	Reason   string
	// Within restricts what is retracted. Nil: to nothing.
	Within *Within
}

// Within is a part of the fleet: claims of jails of its hosts, and other claims in its sets.
type Within struct {
	// Sets, one at least, are sets of tags.
	Sets []string
	// Host reports whether a host, by id, is one of its.
	Host func(id string) bool
}

// UnbannedPrefix is what became of one prefix.
type UnbannedPrefix struct {
	Prefix netip.Prefix
	// Retracted are the claims that stood.
	Retracted []Claim
	// StillCoveredBy are wider prefixes that are banned.
	StillCoveredBy []Cover
}

// UnbanResult answers Unban. Cursors are those of every BAN set.
type UnbanResult struct {
	Cursors  []Cursor
	Prefixes []UnbannedPrefix
	// Ordered are the hosts, by id and sorted, that were ordered to unban what their jails claimed.
	Ordered []string
}

// AllowInput exempts prefixes from every ban.
type AllowInput struct {
	Prefixes []netip.Prefix
	// Duration is at most MaxDuration; 0 is for ever.
	Duration time.Duration
	Actor    string
	Reason   string
}

// AllowResult answers Allow. Suppresses are bans in force that are exempted now, at most 100; none
// where they couldn't be read.
type AllowResult struct {
	Cursor     Cursor
	Expires    int64
	Suppresses []netip.Prefix
}

// DisallowInput takes prefixes off the allowlist.
type DisallowInput struct {
	Prefixes []netip.Prefix
	Actor    string
}

// DisallowResult answers Disallow. Reinstates are bans in force again, at most 100; none where they
// couldn't be read.
type DisallowResult struct {
	Cursor     Cursor
	Reinstates []netip.Prefix
}

// EventKind is what a host's fail2ban did.
type EventKind uint8

// The kinds of fleetbanv1.Event's change.
const (
	EventBan EventKind = iota + 1
	EventExtension
	EventUnban
)

// Event is one change of what a host's fail2ban has banned, with what promotion decided of it.
type Event struct {
	// Seq is the event's number in its spool, from 1, growing.
	Seq    uint64
	Kind   EventKind
	Jail   string
	Prefix netip.Prefix
	// Age is how long ago it happened.
	Age time.Duration
	// Duration of the ban from its beginning; negative is for ever. Of bans and extensions.
	Duration time.Duration
	Failures uint32
	// Set is where promotion wants the claim: empty for none (and then Unpromoted says why).
	Set string
	// Unpromoted keeps a claim from counting. AWAITS_SECOND_HOST with a Set: it counts as soon as claims of two hosts
	// on the prefix, both of this kind, began within Window of each other.
	Unpromoted operatorv1.Unpromoted
	// Window is that of the two-host rule, at most ten minutes.
	Window time.Duration
	// Cap is the longest remaining time a claim may have; 0 is none.
	Cap time.Duration
	// Cause of an unban.
	Cause fleetbanv1.UnbanCause
}

// EventsInput is a batch of one host's events, in order.
type EventsInput struct {
	HostID string
	// Fence is the number under which the host's stream was taken: see store key h:HOST, field "fence". A write with a
	// smaller one than is stored is refused with ErrStaleFence. Numbers stay below 2^53.
	Fence uint64
	Spool string
	// After is the last event of the spool that was stored for all the caller knows; where less is, the events are refused
	// with ErrRewound. 0 asks nothing.
	After uint64
	// Events, 1 to MaxEvents; those stored before are skipped.
	Events []Event
	// PolicyVersion is the one that promotion evaluated; 0 isn't checked.
	PolicyVersion uint64
	// HostRate and OrganisationRate are how many bans of the host, and of all hosts together, may be promoted a minute, and
	// at once; 0 is as many as there are. A ban beyond stays local, UNPROMOTED_HOST_RATE or UNPROMOTED_ORGANISATION_RATE.
	HostRate, OrganisationRate int
}

// EventsResult answers RecordEvents.
type EventsResult struct {
	// Through is the last event of the spool that is stored.
	Through uint64
	// Promoted counts claims that began to count.
	Promoted int
	// Skipped counts events stored before.
	Skipped int
	// Refused counts claims begun before a tombstone.
	Refused int
	// OverHostRate and OverOrganisationRate count bans that stay local because of a rate.
	OverHostRate, OverOrganisationRate int
}

// SetState is where a set stands.
type SetState struct {
	Cursor  Cursor
	Kind    fleetbanv1.SetKind
	Records uint64
}

// States is where an organisation stands.
type States struct {
	Epoch    uint64
	OldEpoch uint64
	// RebuildUntil is the Unix millisecond until which what hosts hold is gathered after a loss; 0 when it is over.
	RebuildUntil int64
	// Now is the server's clock, Unix milliseconds.
	Now int64
	// PolicyVersion is meta's.
	PolicyVersion uint64
	Sets          []SetState
}

// Set returns the state of a set; version 0 and no records where it doesn't exist yet.
func (s States) Set(name string) SetState {
	for _, set := range s.Sets {
		if set.Cursor.Set == name {
			return set
		}
	}
	return SetState{Cursor: Cursor{Set: name, Epoch: s.Epoch}, Kind: KindOf(name)}
}

// ResumeAction is what a holder of a cursor needs.
type ResumeAction uint8

// The actions.
const (
	// ResumeCurrent: nothing. The cursor to tell the holder is Resume.State.Cursor (its epoch may be new).
	ResumeCurrent ResumeAction = iota + 1
	// ResumeDeltas: the log from Resume.After on.
	ResumeDeltas
	// ResumeSnapshot: a whole snapshot.
	ResumeSnapshot
	// ResumeOffer: first what it holds above Resume.After, for Redis lost it; then a snapshot.
	ResumeOffer
)

// Resume is the decision about a cursor.
type Resume struct {
	Action ResumeAction
	State  SetState
	// After is the version to read the log from (deltas), or above which to ask for records (offer).
	After uint64
	// Partial: a rebuild is open, and a snapshot sent now must not make the holder drop what is merely absent.
	Partial bool
}

// Snapshot is a whole set at one version.
type Snapshot struct {
	State SetState
	// Records are PRESENT ones in no order, and RETRACTED ones that still refuse.
	Records []Record
	Partial bool
}

// OfferResult answers Offer.
type OfferResult struct {
	// Recovered counts claims and tombstones taken.
	Recovered int
}

// SweepResult answers Sweep.
type SweepResult struct {
	// Expired counts records that ran out.
	Expired int
	// More: work is left; call again.
	More bool
	// Next is when something will be due, Unix milliseconds; 0 when nothing is.
	Next int64
}

// ListInput selects entries.
type ListInput struct {
	// PageSize is at most 5000; 0 is 100.
	PageSize  int
	PageToken string
	// Kind selects sets: SET_KIND_BAN (default), _ALLOW or _PROTECT.
	Kind fleetbanv1.SetKind
	// IncludeUnpromoted adds prefixes that were observed only.
	IncludeUnpromoted bool
	// Jail, HostID: only entries that a claim of this jail and host (both, of the same claim) stands on.
	Jail   string
	HostID string
	// Keep, where it is given, leaves out entries, before pages are made of them.
	Keep func(Entry) bool
}

// ListResult is one page.
type ListResult struct {
	Entries []Entry
	// NextPageToken is empty on the last page.
	NextPageToken string
	// Total is the number of records in all sets of the kind.
	Total uint64
}

// Explanation is everything kept about one prefix.
type Explanation struct {
	// Entries are of the prefix itself (first, if anything is kept of it), then of every wider one with a claim in a BAN set.
	Entries []Entry
	// AllowedBy are entries of the allowlist that cover it.
	AllowedBy []Entry
	// Protected is the fleet's own prefix that it overlaps; not valid when none.
	Protected netip.Prefix
}

// FleetEvent is one thing for people to see, of the organisation's capped stream.
type FleetEvent struct {
	// ID of the stream's entry: resume after it.
	ID         string
	At         int64
	Kind       operatorv1.FleetEventKind
	Prefix     netip.Prefix
	HostID     string
	Jail       string
	Actor      string
	Reason     string
	Expires    int64
	Unpromoted operatorv1.Unpromoted
	Set        string
}
