package hosts

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/fleetban/fleetban/controlplane/internal/sets"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// Fence is what Attach gives a stream to write under.
type Fence struct {
	Org  string
	Host string
	// N is below 2^53.
	N uint64
}

func (f Fence) text() string { return strconv.FormatUint(f.N, 10) }

// Attachment is a stream that begins.
type Attachment struct {
	Fence Fence
	Name  string
	Tags  map[string]string
	// Stored is the mark of its stored events, for sets.ThroughOf.
	Stored string
}

// Attach makes this the host's stream: older ones are refused from here on, and told so by the doorbell. ErrMissing,
// ErrDeleted, ErrDisabled, ErrWrongKey, *QuarantinedError, or an error of the store.
//
// granted is when the grant was made: after a loss of Redis the newest one of a host decides which key is its.
func (h *Hosts) Attach(
	ctx context.Context, org, id, instance, replica string, publicKey []byte, facts *fleetbanv1.HostFacts, granted time.Time,
) (Attachment, error) {
	var encoded []byte
	if facts != nil {
		encoded = encodeFacts(facts)
	}
	reply, err := attachScript.Run(ctx, h.store, h.keys(org), id, instance, replica, PresenceTTL.Milliseconds(), CloneWindow.Milliseconds(),
		encoded, base64.RawStdEncoding.EncodeToString(publicKey), granted.Unix()).StringSlice()
	if err != nil {
		return Attachment{}, fmt.Errorf("attach host %s: %w", id, err)
	}
	switch reply[0] {
	case "missing":
		return Attachment{}, ErrMissing
	case "deleted":
		return Attachment{}, ErrDeleted
	case "other key":
		return Attachment{}, ErrWrongKey
	case "disabled":
		return Attachment{}, ErrDisabled
	case "quarantined":
		return Attachment{}, &QuarantinedError{Cause: reply[1]}
	case "cloned":
		h.tell(ctx, org, sets.FleetEvent{
			Kind: operatorv1.FleetEventKind_FLEET_EVENT_KIND_HOST_CLONED, HostID: id, Reason: reply[1],
		})
		return Attachment{}, &QuarantinedError{Cause: reply[1], New: true}
	}
	if reply[3] == "1" {
		h.tell(ctx, org, sets.FleetEvent{
			Kind: operatorv1.FleetEventKind_FLEET_EVENT_KIND_HOST_ONLINE, HostID: id,
		})
	}
	n, err := strconv.ParseUint(reply[1], 10, 53)
	if err != nil {
		return Attachment{}, fmt.Errorf("attach host %s: fence: %w", id, err)
	}
	a := Attachment{Fence: Fence{Org: org, Host: id, N: n}, Name: reply[2], Stored: reply[5]}
	if err := json.Unmarshal([]byte(reply[4]), &a.Tags); err != nil {
		return Attachment{}, fmt.Errorf("attach host %s: tags: %w", id, err)
	}
	return a, nil
}

// Detach says that a stream ended and why. Nothing happens when a newer one took over.
func (h *Hosts) Detach(ctx context.Context, f Fence, cause string) error {
	name, err := detachScript.Run(ctx, h.store, h.keys(f.Org), f.Host, f.text(), cause).Text()
	if err != nil {
		return fmt.Errorf("detach host %s: %w", f.Host, err)
	}
	if name != "" {
		h.tellOffline(ctx, f.Org, f.Host, cause)
	}
	return nil
}

// State is what Touch finds of a stream.
type State string

// States that need something to be done.
const (
	// StateLost: Redis lost the host; the stream should attach anew.
	StateLost State = "lost"
	// StateBack: it counted as offline and is online again.
	StateBack        State = "back"
	StateStale       State = "stale"
	StateDeleted     State = "deleted"
	StateQuarantined State = "quarantined"
	StateDisabled    State = "disabled"
)

// Touch says that the streams of one organisation were heard. It returns those, by host, that are not as they were.
func (h *Hosts) Touch(ctx context.Context, org string, fences []Fence) (map[string]State, error) {
	if len(fences) == 0 {
		return nil, nil
	}
	args := make([]any, 0, 2*len(fences))
	for _, f := range fences {
		args = append(args, f.Host, f.text())
	}
	reply, err := touchScript.Run(ctx, h.store, h.keys(org), args...).StringSlice()
	if err != nil {
		return nil, fmt.Errorf("touch hosts: %w", err)
	}
	changed := make(map[string]State, len(reply)/2)
	for i := 0; i+1 < len(reply); i += 2 {
		changed[reply[i]] = State(reply[i+1])
		if State(reply[i+1]) == StateBack {
			h.tell(ctx, org, sets.FleetEvent{
				Kind: operatorv1.FleetEventKind_FLEET_EVENT_KIND_HOST_ONLINE, HostID: reply[i],
			})
		}
	}
	return changed, nil
}

// lapsedCause is told of a host whose replica died, or that fell silent together with it.
const lapsedCause = "not heard for a minute: its replica stopped, or the network between is gone"

// SweepPresence marks hosts offline that were not heard for PresenceTTL, and tells. It returns how many.
func (h *Hosts) SweepPresence(ctx context.Context, org string) (int, error) {
	return h.sweepPresence(ctx, org, PresenceTTL)
}

func (h *Hosts) sweepPresence(ctx context.Context, org string, ttl time.Duration) (int, error) {
	const page = 500
	total := 0
	for {
		found, err := sweepScript.Run(ctx, h.store, h.keys(org), ttl.Milliseconds(), lapsedCause, page).StringSlice()
		if err != nil {
			return total, fmt.Errorf("sweep presence: %w", err)
		}
		for i := 0; i+1 < len(found); i += 2 {
			h.tellOffline(ctx, org, found[i], lapsedCause)
		}
		total += len(found) / 2
		if len(found) < 2*page {
			return total, nil
		}
	}
}

// HealthWrite is a host's health, written with the fence of its stream.
type HealthWrite struct {
	Fence  Fence
	Health *fleetbanv1.Health
}

// StoreHealth stores the health of hosts of one organisation in one round trip. It returns the hosts whose stream is stale:
// nothing of theirs was stored.
func (h *Hosts) StoreHealth(ctx context.Context, org string, writes []HealthWrite) ([]string, error) {
	if len(writes) == 0 {
		return nil, nil
	}
	args := make([]any, 0, 3*len(writes))
	for _, w := range writes {
		raw, err := proto.Marshal(w.Health)
		if err != nil {
			return nil, fmt.Errorf("encode health: %w", err)
		}
		args = append(args, w.Fence.Host, w.Fence.text(), raw)
	}
	stale, err := healthScript.Run(ctx, h.store, h.keys(org), args...).StringSlice()
	if err != nil {
		return nil, fmt.Errorf("store health: %w", err)
	}
	return stale, nil
}

// SetHealth stores what a host says of itself; ErrStaleFence when a newer stream took over.
func (h *Hosts) SetHealth(ctx context.Context, f Fence, health *fleetbanv1.Health) error {
	stale, err := h.StoreHealth(ctx, f.Org, []HealthWrite{{f, health}})
	if err == nil && len(stale) > 0 {
		return ErrStaleFence
	}
	return err
}

func (h *Hosts) tellOffline(ctx context.Context, org, id, cause string) {
	h.tell(ctx, org, sets.FleetEvent{
		Kind: operatorv1.FleetEventKind_FLEET_EVENT_KIND_HOST_OFFLINE, HostID: id, Reason: cause,
	})
}
