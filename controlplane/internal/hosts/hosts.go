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
// A stream writes under the fence that Attach gave it. Each later Attach of the host gives a greater one, and every
// script refuses a write under another fence than the last: a replica that was cut off can't undo what came after.
//
// Keys, all under the organisation's hash tag (fb:{ORG}:…):
//
//	hosts            hash  host → record: name, public key, tags, enrolled (JSON)
//	hostnames        hash  lower-case name → host
//	hostkeys         hash  public key → host, so that enrolment can be repeated
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
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"
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

	mu   sync.Mutex
	dirs map[string]*directory // by organisation
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
	return &Hosts{store: st, fleet: fleet, logger: logger, dirs: map[string]*directory{}}
}

// Identity is what enrolment establishes.
type Identity struct {
	ID   string
	Name string
}

// record is a host as kept in Redis.
type record struct {
	ID       string            `json:"id,omitempty"`
	Name     string            `json:"name,omitempty"`
	Key      string            `json:"key"`
	Tags     map[string]string `json:"tags,omitempty"`
	Enrolled int64             `json:"enrolled,omitempty"`
}

//go:embed lua/*.lua
var luaFiles embed.FS

func script(name string, with ...string) *store.Script {
	read := func(file string) string {
		text, err := luaFiles.ReadFile("lua/" + file + ".lua")
		if err != nil {
			panic(err) // embedded
		}
		return string(text)
	}
	parts := append([]string{read("common"), commandlog.Lua}, with...)
	return store.NewScript("hosts/"+name, append(parts, read(name))...)
}

var (
	enrolScript   = script("enrol")
	attachScript  = script("attach")
	touchScript   = script("touch")
	detachScript  = script("detach")
	sweepScript   = script("sweep")
	acksScript    = script("acks")
	healthScript  = script("health")
	deleteScript  = script("delete")
	releaseScript = script("release", audit.Lua)
	queueScript   = script("queue")
	resultScript  = script("result")
)

// Enrol makes a host with a name near to name, or finds the one that has this public key.
func (h *Hosts) Enrol(ctx context.Context, org, name string, publicKey []byte, tags map[string]string, facts *fleetbanv1.HostFacts) (Identity, error) {
	id, made, err := h.enrol(ctx, org, ulid.Make().String(), name, publicKey, record{Tags: tags}, "enrol", encodeFacts(facts))
	if err != nil {
		return Identity{}, fmt.Errorf("enrol host: %w", err)
	}
	if made {
		h.tell(ctx, org, sets.FleetEvent{
			Kind: operatorv1.FleetEventKind_FLEET_EVENT_KIND_HOST_ENROLLED, HostID: id.ID,
		})
	}
	return id, nil
}

// Adopt puts back a host that Redis lost, from what its grant says. ErrDeleted when it was deleted, not lost.
func (h *Hosts) Adopt(ctx context.Context, org, id, name string, publicKey []byte, tags map[string]string, enrolled time.Time) (Identity, error) {
	identity, made, err := h.enrol(ctx, org, id, name, publicKey, record{Tags: tags, Enrolled: enrolled.UnixMilli()}, "adopt", nil)
	if err != nil {
		return Identity{}, fmt.Errorf("adopt host %s: %w", id, err)
	}
	if made {
		h.tell(ctx, org, sets.FleetEvent{
			Kind: operatorv1.FleetEventKind_FLEET_EVENT_KIND_NOTICE, HostID: identity.ID,
			Reason: "Redis had lost this host; it was taken back on the word of its grant",
		})
	}
	return identity, nil
}

func (h *Hosts) enrol(ctx context.Context, org, id, name string, publicKey []byte, rec record, mode string, facts []byte) (identity Identity, made bool, err error) {
	rec.Key = base64.RawStdEncoding.EncodeToString(publicKey)
	raw, err := json.Marshal(rec)
	if err != nil {
		return Identity{}, false, fmt.Errorf("encode host: %w", err)
	}
	reply, err := enrolScript.Run(ctx, h.store, h.keys(org), id, name, rec.Key, raw, mode, facts).StringSlice()
	switch {
	case err != nil:
		return Identity{}, false, err
	case reply[0] == "deleted":
		return Identity{}, false, ErrDeleted
	default:
		return Identity{ID: reply[1], Name: reply[2]}, reply[0] == "made", nil
	}
}

// Delete forgets a host; its stream ends and its grant is refused from then on. ErrNotFound when there is none.
func (h *Hosts) Delete(ctx context.Context, org, id, actor string) error {
	host, err := h.find(ctx, org, id)
	if err != nil {
		return err
	}
	args := []any{host.id}
	for _, set := range host.sets() {
		args = append(args, set)
	}
	name, err := deleteScript.Run(ctx, h.store, h.keys(org), args...).Text()
	if err != nil {
		return fmt.Errorf("delete host: %w", err)
	}
	if name == "" {
		return fmt.Errorf("delete host %s: %w", id, ErrNotFound)
	}
	// Its addresses are no longer the fleet's own.
	if err := h.fleet.PutHostAddresses(ctx, org, host.id, nil); err != nil {
		return fmt.Errorf("give up the addresses of host %s: %w", name, err)
	}
	h.tell(ctx, org, sets.FleetEvent{
		Kind: operatorv1.FleetEventKind_FLEET_EVENT_KIND_HOST_DELETED, HostID: host.id, Actor: actor, Reason: name,
	})
	return nil
}

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
