// Package approvals keeps what waits for a second person.
//
//	         asked ──▶ waiting ──approve──▶ approved ──▶ done | failed
//	                     │  │
//	reject, withdraw ◀───┘  └──▶ expired
//
// A request is kept as it was made, signed, with who made it: whoever writes to Redis can't change what somebody is about to
// approve. One script decides, so that of many who approve at once, on any replicas, one has it done; a replica that dies
// meanwhile leaves it approved, and it is not done again.
//
// Keys: fb:{ORG}:approvals (sorted set: id → until when it waits, or when it was decided), fb:{ORG}:approval:ID (hash),
// fb:{ORG}:approvalpolicy (text).
package approvals

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/redis/go-redis/v9"

	"github.com/fleetban/fleetban/controlplane/internal/audit"
	"github.com/fleetban/fleetban/controlplane/internal/seal"
	"github.com/fleetban/fleetban/controlplane/internal/store"
)

const (
	// Wait is how long a request waits.
	Wait = 24 * time.Hour
	// Kept is how long it is shown after it was decided or expired.
	Kept = 48 * time.Hour
	// MostWaiting bounds what waits in one organisation.
	MostWaiting = 100
	// MaxRequest bounds one request, bytes.
	MaxRequest = 256 << 10
)

// Errors that callers decide on.
var (
	ErrNotFound = errors.New("no such approval")
	ErrTooMany  = errors.New("too many requests wait for approval")
	ErrTooLarge = errors.New("the request is too large to be kept for approval")
)

// OverError says that an approval is decided, or its time is over.
type OverError struct{ State State }

func (e *OverError) Error() string { return "the approval is " + string(e.State) }

// State of an approval.
type State string

// The states. A waiting one whose time is over is expired.
const (
	Waiting   State = "waiting"
	Approved  State = "approved"
	Done      State = "done"
	Failed    State = "failed"
	Rejected  State = "rejected"
	Withdrawn State = "withdrawn"
	Expired   State = "expired"
)

// Requester is who asked.
type Requester struct {
	Org string `json:"org"`
	// Person is who it is, or whose personal token; empty for a token of the organisation. Version is that of the membership.
	Person  string `json:"person,omitempty"`
	Version uint64 `json:"version,omitempty"`
	// Token is set where it was a program.
	Token string `json:"token,omitempty"`
	// Maker is who made the token: no second person to what it asks for.
	Maker string `json:"maker,omitempty"`
	Name  string `json:"name"`
	// Where the request came from.
	Address netip.Addr `json:"address,omitzero"`
	Agent   string     `json:"agent,omitempty"`
}

// Request is what was asked for.
type Request struct {
	// Procedure is the RPC's path, and Message its request as protobuf writes it.
	Procedure string    `json:"procedure"`
	Message   []byte    `json:"message"`
	Requester Requester `json:"requester"`
}

// Approval is a request and what came of it. Times are Unix milliseconds.
type Approval struct {
	ID string
	Request

	Created, Expires   int64
	State              State
	DeciderID, Decider string
	Decided            int64
	Reason             string
}

// Approvals keeps them in Redis. Safe for concurrent use.
type Approvals struct {
	store *store.Store
	seal  *seal.Sealer
}

// New makes an Approvals.
func New(st *store.Store, s *seal.Sealer) *Approvals { return &Approvals{store: st, seal: s} }

var (
	//go:embed lua/request.lua
	requestText string
	//go:embed lua/decide.lua
	decideText string
	//go:embed lua/policy.lua
	policyText string

	requestScript = store.NewScript("approvals/request", audit.Lua, requestText)
	decideScript  = store.NewScript("approvals/decide", audit.Lua, decideText)
	policyScript  = store.NewScript("approvals/policy", audit.Lua, policyText)
)

const sealKind = "approval"

// Ask keeps a request: ErrTooMany, ErrTooLarge, or an error of the store.
func (a *Approvals) Ask(ctx context.Context, org string, r Request) (Approval, error) {
	r.Requester.Org = org
	raw, err := json.Marshal(r)
	if err != nil {
		return Approval{}, fmt.Errorf("ask for approval: %w", err)
	}
	if len(raw) > MaxRequest {
		return Approval{}, ErrTooLarge
	}
	id := ulid.Make().String()
	entry := audit.Stage(ctx)
	body, mac := entry.Args()
	reply, err := requestScript.Run(ctx, a.store, []string{listKey(org)}, id, a.seal.Seal(sealKind, org, id, string(raw)),
		Wait.Milliseconds(), MostWaiting, Kept.Milliseconds(), body, mac).Slice()
	switch {
	case err != nil:
		return Approval{}, fmt.Errorf("ask for approval: %w", err)
	case len(reply) != 3:
		return Approval{}, ErrTooMany
	}
	said(ctx, entry, reply[2])
	return Approval{ID: id, Request: r, Created: number(reply[0]), Expires: number(reply[1]), State: Waiting}, nil
}

// Get reads one; ErrNotFound.
func (a *Approvals) Get(ctx context.Context, org, id string) (Approval, error) {
	now, err := a.store.Time(ctx, org)
	if err != nil {
		return Approval{}, fmt.Errorf("read approval: %w", err)
	}
	fields, err := a.store.Client().HGetAll(ctx, oneKey(org, id)).Result()
	if err != nil {
		return Approval{}, fmt.Errorf("read approval: %w", store.Classify(err))
	}
	return a.parse(ctx, org, id, fields, now.UnixMilli())
}

// List lists them, newest first. One that isn't signed is left out: package seal says so loudly.
func (a *Approvals) List(ctx context.Context, org string) ([]Approval, error) {
	now, err := a.store.Time(ctx, org)
	if err != nil {
		return nil, fmt.Errorf("list approvals: %w", err)
	}
	since := strconv.FormatInt(now.Add(-Kept).UnixMilli(), 10)
	ids, err := a.store.Client().ZRangeByScore(ctx, listKey(org), &redis.ZRangeBy{Min: since, Max: "+inf", Count: 1000}).Result()
	if err != nil {
		return nil, fmt.Errorf("list approvals: %w", store.Classify(err))
	}
	commands := make([]*redis.MapStringStringCmd, len(ids))
	if _, err := a.store.Client().Pipelined(ctx, func(p redis.Pipeliner) error {
		for i, id := range ids {
			commands[i] = p.HGetAll(ctx, oneKey(org, id))
		}
		return nil
	}); err != nil {
		return nil, fmt.Errorf("list approvals: %w", store.Classify(err))
	}
	out := make([]Approval, 0, len(ids))
	for i, id := range ids {
		one, err := a.parse(ctx, org, id, commands[i].Val(), now.UnixMilli())
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, one)
	}
	slices.SortFunc(out, func(x, y Approval) int { return strings.Compare(y.ID, x.ID) })
	return out, nil
}

func (a *Approvals) parse(ctx context.Context, org, id string, fields map[string]string, now int64) (Approval, error) {
	if len(fields) == 0 || fields["request"] == "" {
		return Approval{}, ErrNotFound
	}
	raw, err := a.seal.Open(ctx, sealKind, org, id, fields["request"])
	if errors.Is(err, seal.ErrForged) {
		return Approval{}, fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	if err != nil {
		return Approval{}, fmt.Errorf("read approval %s: %w", id, err)
	}
	out := Approval{
		ID: id, State: State(fields["state"]), Created: number(fields["created"]), Expires: number(fields["expires"]),
		DeciderID: fields["deciderid"], Decider: fields["decider"], Decided: number(fields["decided"]), Reason: fields["reason"],
	}
	if err := json.Unmarshal([]byte(raw), &out.Request); err != nil {
		return Approval{}, fmt.Errorf("stored approval %s is damaged: %w", id, err)
	}
	if out.State == Waiting && now >= out.Expires {
		out.State = Expired
	}
	return out, nil
}

// Decide approves, rejects or withdraws what waits: of many callers at once, one gets no error. ErrNotFound, *OverError.
func (a *Approvals) Decide(ctx context.Context, org, id string, to State, deciderID, decider, reason string) error {
	entry := audit.Stage(ctx)
	body, mac := entry.Args()
	reply, err := decideScript.Run(ctx, a.store, []string{listKey(org)}, id, string(to), deciderID, decider, reason, body, mac).Slice()
	if err != nil || len(reply) == 0 {
		return fmt.Errorf("decide approval: %w", err)
	}
	switch what, _ := reply[0].(string); what {
	case "ok":
		said(ctx, entry, reply[1])
		return nil
	case "missing":
		return ErrNotFound
	default:
		return &OverError{State: State(what)}
	}
}

// Finish says what came of an approved one.
func (a *Approvals) Finish(ctx context.Context, org, id string, to State, reason string) error {
	if err := a.store.Client().HSet(ctx, oneKey(org, id), "state", string(to), "reason", reason).Err(); err != nil {
		return fmt.Errorf("finish approval: %w", store.Classify(err))
	}
	return nil
}

func said(ctx context.Context, entry *audit.Staged, reply any) {
	if wrote, _ := reply.([]any); len(wrote) > 0 {
		entry.Wrote(ctx, wrote)
	}
}

func number(v any) int64 {
	s, _ := v.(string)
	n, _ := strconv.ParseInt(s, 10, 64)
	return n
}

func listKey(org string) string    { return store.Key(org, "approvals") }
func oneKey(org, id string) string { return store.Key(org, "approval", id) }
func policyKey(org string) string  { return store.Key(org, "approvalpolicy") }
