// Package hosts keeps what the control plane knows of each host, in Redis: who it is, which replica holds its stream,
// whether it is heard, what it has acknowledged, and the commands that wait for it.
//
//	                 enrol                    attach
//	   (nothing) ────────────▶ new ─────────────────────────▶ online ◀──────────┐
//	       ▲  ▲                 │                              │   │            │ attach
//	adopt  │  │ delete          │ delete        stream ends,   │   │            │
//	(after │  └─────────────────┘             60 s of silence  │   └──▶ offline ┘
//	a loss)│                                                   ▼
//	       └ never once deleted            an instance that was displaced comes back: quarantined ──release──▶ offline
//
// From any of these a person may disable a host, and enable it again: it is offline then, or quarantined if it was. An
// ephemeral host is deleted when it was offline for its time (SweepEphemeral).
//
// A host changes its key on the word of the present one (Rotate). One that lost its key is given another by who proves the
// former one, or by a join token that a person made for this very host; a name or what a machine says of itself prove nothing
// and make a second host.
//
// A stream writes under the fence that Attach gave it. Each later Attach of the host gives a greater one, and every
// script refuses a write under another fence than the last: a replica that was cut off can't undo what came after.
//
// Keys, all under the organisation's hash tag (fb:{ORG}:…):
//
//	hosts            hash  host → record: name, public key, tags, enrolled (JSON)
//	hostnames        hash  lower-case name → host
//	hostkeys         hash  public key → host, so that enrolment can be repeated
//	machines         hash  machine (HostFacts) → the host that said so last when it was enrolled
//	ephemeral        hash  host → ms offline after which it is deleted;  vanished  hash  deleted so, not yet cleaned up → name
//	hostgone         hash  deleted host → when: tombstones
//	hostsver         when names or tags last changed: replicas cache them
//	fences           hash  host → fence of its last stream (package sets checks it too)
//	routes           hash  host → state, instance, replica, since, cause (JSON)
//	facts            hash  host → HostFacts, as it said last
//	live             zset  host with a stream → last heard, ms
//	acks:SET         hash  host → "epoch version digest"
//	inert            hash  host → why it drops nothing, where it doesn't
//	exceptions       hash  host → the Ack that told what it refuses, where it refuses something
//	health           hash  host → Health
//	cmds:HOST        hash  command → HostCommand;  results:HOST  command → CommandResult: see package commandlog
//	jti:HOST:ID      the assertion was presented; gone when it would be refused for its age
package hosts

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"google.golang.org/protobuf/proto"

	"github.com/fleetban/fleetban/controlplane/internal/audit"
	"github.com/fleetban/fleetban/controlplane/internal/hosts/commandlog"
	"github.com/fleetban/fleetban/controlplane/internal/sets"
	"github.com/fleetban/fleetban/controlplane/internal/store"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

const (
	// PresenceTTL is how long a host that isn't heard counts as online.
	PresenceTTL = 60 * time.Second
	// CloneWindow is how soon a displaced instance must come back to be taken for a clone's other half.
	CloneWindow = 10 * time.Minute
)

// Errors that callers decide on.
var (
	ErrNotFound = errors.New("no such host")
	// ErrDeleted: a person deleted the host; its identity is worth nothing any more.
	ErrDeleted = errors.New("the host was deleted")
	// ErrMissing: Redis knows neither the host nor that it was deleted: it lost it. Adopt puts it back.
	ErrMissing = errors.New("the host's record is missing")
	// ErrWrongKey: the host's record has another public key.
	ErrWrongKey = errors.New("the host has another key")
	// ErrDisabled: a person disabled the host.
	ErrDisabled = errors.New("the host is disabled")
	// ErrKeyTaken: another host has that key.
	ErrKeyTaken = errors.New("the key is another host's")
	// ErrStaleFence: a newer stream of the host took over, or it was deleted or quarantined.
	ErrStaleFence = errors.New("a newer stream of the host took over")
	// ErrReplayed: the assertion was presented before.
	ErrReplayed = errors.New("the assertion was presented before")
	// ErrTooManyCommands: the host has that many commands waiting.
	ErrTooManyCommands = errors.New("too many commands wait for the host")
)

// QuarantinedError says that two machines use the host's identity.
type QuarantinedError struct {
	Cause string
	// New is true for the attach that found it.
	New bool
}

func (e *QuarantinedError) Error() string { return e.Cause }

// Hosts is the domain over one store. Safe for concurrent use.
type Hosts struct {
	store  *store.Store
	fleet  Fleet
	logger *slog.Logger
	// patience is receiptPatience, and another in tests.
	patience time.Duration

	mu      sync.Mutex
	dirs    map[string]*directory                 // by organisation
	watches map[string]map[*receiptWatch]struct{} // by organisation
}

// Fleet is what Hosts needs of package sets.
type Fleet interface {
	// AppendEvent tells people that something happened.
	AppendEvent(ctx context.Context, org string, e sets.FleetEvent) error
	// PutHostAddresses says which addresses of a host the fleet must never ban.
	PutHostAddresses(ctx context.Context, org, hostID string, addresses []netip.Prefix) error
}

// New makes a Hosts.
func New(st *store.Store, fleet Fleet, logger *slog.Logger) *Hosts {
	if logger == nil {
		logger = slog.Default()
	}
	return &Hosts{store: st, fleet: fleet, logger: logger, patience: receiptPatience, dirs: map[string]*directory{}, watches: map[string]map[*receiptWatch]struct{}{}}
}

// Identity is what enrolment establishes.
type Identity struct {
	ID   string
	Name string
}

// record is a host as kept in Redis. Times are Unix milliseconds.
type record struct {
	ID       string            `json:"id,omitempty"`
	Name     string            `json:"name,omitempty"`
	Key      string            `json:"key"`
	Tags     map[string]string `json:"tags,omitempty"`
	Enrolled int64             `json:"enrolled,omitempty"`
	// Keyed is since when it has its key; 0: since it was enrolled.
	Keyed int64 `json:"keyed,omitempty"`
	// Ephemeral is for how many ms it may be offline; 0: for ever.
	Ephemeral int64  `json:"ephemeral,omitempty"`
	Machine   string `json:"machine,omitempty"`
	// Granted is when the grant was made, Unix s, on whose word Redis has the host: a newer one with another key beats it.
	Granted int64 `json:"granted,omitempty"`
	// The scripts' own: disabled, quarantined, former.
}

//go:embed lua/*.lua
var luaFiles embed.FS

func read(file string) string {
	text, err := luaFiles.ReadFile("lua/" + file + ".lua")
	if err != nil {
		panic(err) // embedded
	}
	return string(text)
}

func told() string { return read("told") }

func script(name string, with ...string) *store.Script {
	parts := append([]string{read("common"), commandlog.Lua}, with...)
	return store.NewScript("hosts/"+name, append(parts, read(name))...)
}

var (
	enrolScript   = script("enrol", audit.Lua, told())
	rekeyScript   = script("rekey", audit.Lua, told())
	disableScript = script("disable", audit.Lua, told())
	expireScript  = script("expire")
	attachScript  = script("attach")
	touchScript   = script("touch")
	detachScript  = script("detach")
	sweepScript   = script("sweep")
	acksScript    = script("acks")
	healthScript  = script("health")
	deleteScript  = script("delete", audit.Lua, told())
	releaseScript = script("release", audit.Lua, told())
	queueScript   = script("queue")
	resultScript  = script("result")
)

// Release ends a host's quarantine; false when it isn't quarantined. host is a name or an id.
func (h *Hosts) Release(ctx context.Context, org, host, actor string) (bool, error) {
	found, err := h.find(ctx, org, host)
	if err != nil {
		return false, err
	}
	entry := audit.Stage(ctx)
	body, mac := entry.Args()
	reply, err := releaseScript.Run(ctx, h.store, h.keys(org), found.id, body, mac).Slice()
	n := int64(-1)
	if len(reply) == 2 {
		n, _ = reply[0].(int64)
		wrote, _ := reply[1].([]any)
		entry.Wrote(ctx, wrote)
	}
	switch {
	case err != nil:
		return false, fmt.Errorf("release host: %w", err)
	case n < 0:
		return false, fmt.Errorf("release host %s: %w", host, ErrNotFound)
	case n == 1:
		h.tell(ctx, org, sets.FleetEvent{
			Kind: operatorv1.FleetEventKind_FLEET_EVENT_KIND_NOTICE, HostID: found.id, Actor: actor,
			Reason: "released from quarantine",
		})
	}
	return n == 1, nil
}

// UseAssertion remembers an assertion until it would be refused for its age; ErrReplayed when it was presented before,
// to any replica.
func (h *Hosts) UseAssertion(ctx context.Context, org, host, jti string, life time.Duration) error {
	fresh, err := h.store.Client().SetNX(ctx, store.Key(org, "jti", host, jti), "", life).Result()
	switch {
	case err != nil:
		return fmt.Errorf("remember assertion: %w", store.Classify(err))
	case !fresh:
		return ErrReplayed
	default:
		return nil
	}
}

func (*Hosts) keys(org string) []string { return []string{store.Key(org, "hosts")} }

// tell emits an event; one that can't be emitted is logged: what it tells of stands.
func (h *Hosts) tell(ctx context.Context, org string, e sets.FleetEvent) {
	if err := h.fleet.AppendEvent(ctx, org, e); err != nil {
		h.logger.WarnContext(ctx, "event not recorded", slog.String("organisation", org), slog.String("kind", e.Kind.String()), slog.Any("error", err))
	}
}

func encodeFacts(facts *fleetbanv1.HostFacts) []byte {
	raw, err := proto.Marshal(facts)
	if err != nil {
		return nil // not valid UTF-8: shown to people only
	}
	return raw
}

func decodeFacts(raw string) *fleetbanv1.HostFacts {
	facts := &fleetbanv1.HostFacts{}
	if proto.Unmarshal([]byte(raw), facts) != nil {
		return &fleetbanv1.HostFacts{}
	}
	return facts
}

// missing is nil for a reply that isn't there, and the classified error otherwise.
func missing(err error) error {
	if errors.Is(err, redis.Nil) {
		return nil
	}
	return store.Classify(err)
}
