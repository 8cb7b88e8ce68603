// Package audit keeps, of each organisation, who did what: every change that people, their programs and operator's commands
// make, every sign-in, and what was refused.
//
// # When an entry is written
//
// A change that is one script of the organisation's slot writes its entry in that script (Stage, and Lua): neither is ever
// without the other. Any other change is an entry before it and one after with the same id (Begin, End): where the second
// is missing, the outcome is unknown, and is shown so. What changes nothing, a sign-in or a refusal, is one entry (Record).
//
// # What holds the log together
//
// Entries of an organisation are numbered without holes. Each has a MAC over what it says, under a key derived from the
// fleet's secret, and a hash over the hash before it, its number, its time and its MAC. The hash alone could be computed
// again by whoever writes to Redis; but each entry also says, under its MAC, the newest number and hash that its writer
// knew: nothing before that can be removed without removing it too. A seal, made every few seconds, does the same for the
// newest entries. So what can be undone unseen is the end of the log as a whole; a person who noted its head sees that too.
//
// Keys: see lua/write.lua.
package audit

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/fleetban/fleetban/controlplane/internal/store"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
)

// Bounds of what an entry holds; what is longer is cut.
const (
	MaxTargets = 32
	maxDetails = 24
	maxName    = 64
	maxTarget  = 253
	maxText    = 500
)

// Defaults and bounds of what is kept.
const (
	DefaultKeep       = 90 * 24 * time.Hour
	DefaultKeepNumber = 100_000
	MaxKeepNumber     = 1_000_000
)

// ErrInvalid is wrapped by refusals of what a reader asks.
var ErrInvalid = errors.New("invalid")

// Actor is who did it.
type Actor struct {
	Kind     operatorv1.AuditActorKind
	ID, Name string
}

// Actors that are no callers of the API.
var (
	OperatorCommand = Actor{Kind: operatorv1.AuditActorKind_AUDIT_ACTOR_KIND_OPERATOR_COMMAND, Name: "operator command"}
	System          = Actor{Kind: operatorv1.AuditActorKind_AUDIT_ACTOR_KIND_SYSTEM, Name: "control plane"}
)

// Client is where a call came from.
type Client struct {
	Address   netip.Addr
	UserAgent string
	RequestID string
}

// Detail is a property of what was done. Secrets are never given as one.
type Detail struct{ Name, Before, After string }

// Record is what there is to say of one thing that was done or tried.
type Record struct {
	Actor Actor
	Client
	// Action is what was done, a short name: "ban", "session.begin".
	Action string
	// Procedure is the RPC, where it was one.
	Procedure string
	// Targets is what it was done to. Empty: the organisation.
	Targets []string
	Details []Detail
	// Outcome; default OK. Reason says why it was refused.
	Outcome operatorv1.AuditOutcome
	Reason  string
}

// Signer makes the MACs: *keys.Keys.
type Signer interface {
	AuditMAC(org string, kind byte, data []byte) []byte
}

// Kinds of MACs.
const (
	macEntry = 'e'
	macSeal  = 's'
)

// Options of New.
type Options struct {
	Store  *store.Store
	Signer Signer
	// Keep is how long entries are kept, KeepNumber how many at most. Default DefaultKeep and DefaultKeepNumber.
	Keep       time.Duration
	KeepNumber int
	// Logger; default slog.Default().
	Logger *slog.Logger
}

// Log is the audit log of all organisations. Safe for concurrent use.
type Log struct {
	store  *store.Store
	signer Signer
	keep   time.Duration
	most   uint64
	slack  time.Duration
	logger *slog.Logger

	mu sync.Mutex
	// known is the newest head of each organisation that this replica has heard of.
	known map[string]Head
	// sealed is what this replica sealed last.
	sealed map[string]Head
}

// Head is an entry and, with its hash, all before it. The zero Head is that of a log without entries.
type Head struct {
	Number uint64
	Hash   string // 40 hex digits
}

// New makes a Log.
func New(o Options) *Log {
	if o.Keep <= 0 {
		o.Keep = DefaultKeep
	}
	if o.KeepNumber <= 0 {
		o.KeepNumber = DefaultKeepNumber
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return &Log{
		store: o.Store, signer: o.Signer, keep: o.Keep, most: uint64(min(o.KeepNumber, MaxKeepNumber)), logger: o.Logger, //nolint:gosec // positive
		slack: ageSlack, known: map[string]Head{}, sealed: map[string]Head{},
	}
}

// Record appends one entry of something that is over: a sign-in, a refusal.
func (l *Log) Record(ctx context.Context, org string, r Record) error {
	return l.append(ctx, org, l.stage(org, r, newID(), 0))
}

// Begun is a change of which the beginning is recorded.
type Begun struct {
	log *Log
	org string
	id  string
	// Record may be completed before End: what was there before, what the target's name is.
	Record Record
}

// Begin records that something is about to be done. Where that fails, it must not be done.
func (l *Log) Begin(ctx context.Context, org string, r Record) (*Begun, error) {
	b := &Begun{log: l, org: org, id: newID(), Record: r}
	r.Outcome = operatorv1.AuditOutcome_AUDIT_OUTCOME_UNKNOWN
	return b, l.append(ctx, org, l.stage(org, r, b.id, operatorv1.AuditPhase_AUDIT_PHASE_BEGUN))
}

// End records what came of it, also when ctx is over. Without it, or where it fails, the outcome is shown as unknown.
func (b *Begun) End(ctx context.Context, outcome operatorv1.AuditOutcome, reason string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endWithin)
	defer cancel()
	b.Record.Outcome, b.Record.Reason = outcome, reason
	return b.log.append(ctx, b.org, b.log.stage(b.org, b.Record, b.id, operatorv1.AuditPhase_AUDIT_PHASE_ENDED))
}

// endWithin bounds writing an outcome after the caller left.
const endWithin = 5 * time.Second

// Staged is an entry that a script is to write with the change that it tells of. A nil one is none.
type Staged struct {
	log   *Log
	org   string
	id    string
	phase operatorv1.AuditPhase
	known Head
	body  []byte
	mac   []byte
	wrote func()
}

// Args are what the script passes to audit.add: the entry and its MAC; "" where there is no entry.
func (s *Staged) Args() (body, mac []byte) {
	if s == nil {
		return []byte{}, []byte{}
	}
	return s.body, s.mac
}

func (l *Log) stage(org string, r Record, id string, phase operatorv1.AuditPhase) *Staged {
	l.mu.Lock()
	known := l.known[org]
	l.mu.Unlock()
	if r.Outcome == 0 {
		r.Outcome = operatorv1.AuditOutcome_AUDIT_OUTCOME_OK
	}
	body := encode(r, id, phase, known)
	return &Staged{log: l, org: org, id: id, phase: phase, known: known, body: body, mac: l.signer.AuditMAC(org, macEntry, body)}
}

// cut makes text of any origin what an entry can hold: valid UTF-8 of at most most bytes.
func cut(s string, most int) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= most {
		return s
	}
	end := most - len("…")
	for end > 0 && !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end] + "…"
}

func newID() string {
	var random [12]byte
	_, _ = rand.Read(random[:])
	return base64.RawURLEncoding.EncodeToString(random[:])
}
