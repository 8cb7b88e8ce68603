package hosts

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/fleetban/fleetban/controlplane/internal/audit"
	"github.com/fleetban/fleetban/controlplane/internal/sets"
	"github.com/fleetban/fleetban/controlplane/internal/store"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// Enrolment is what a machine that joins says, and what its join token does.
type Enrolment struct {
	// Name is what it would like to be called.
	Name      string
	PublicKey []byte
	Facts     *fleetbanv1.HostFacts
	Tags      map[string]string
	// Ephemeral is after how long offline it is deleted; 0: it stays.
	Ephemeral time.Duration
	// Again is the id of the host that is to have this key from now on, by a person's word; "" where none is.
	Again string
	// Former is a key that the machine proved to hold; it may be any.
	Former []byte
}

// Enrolled is what came of it.
type Enrolled struct {
	Identity

	// Tags and Ephemeral are the host's, which may stand since longer than the join token.
	Tags      map[string]string
	Ephemeral time.Duration
	// Again: it is a host that stood before, with a new key now.
	Again bool
}

// Enrol makes a host with a name near to name, or finds the one that has this public key.
func (h *Hosts) Enrol(ctx context.Context, org, name string, publicKey []byte, tags map[string]string, facts *fleetbanv1.HostFacts) (Identity, error) {
	e, err := h.Join(ctx, org, Enrolment{Name: name, PublicKey: publicKey, Tags: tags, Facts: facts})
	return e.Identity, err
}

// Join makes a host, finds the one that has this key, or gives one that stands this key: ErrNotFound where Again is no host
// any more, ErrDisabled where it is one that a person disabled. Who proves a former key is given its host, unless that is
// quarantined, or online on another boot of its machine: a copied disk has the key too.
func (h *Hosts) Join(ctx context.Context, org string, e Enrolment) (Enrolled, error) {
	former := ""
	if len(e.Former) > 0 && e.Again == "" {
		former = base64.RawStdEncoding.EncodeToString(e.Former)
		same, err := h.sameBoot(ctx, org, former, e.Facts)
		if err != nil {
			return Enrolled{}, fmt.Errorf("enrol host: %w", err)
		}
		if !same {
			former = ""
		}
	}
	rec := record{Tags: e.Tags, Ephemeral: e.Ephemeral.Milliseconds(), Machine: e.Facts.GetMachine()}
	reply, err := h.enrol(ctx, org, ulid.Make().String(), e.Name, e.PublicKey, rec, "enrol", encodeFacts(e.Facts), e.Again, former)
	if err != nil {
		return Enrolled{}, fmt.Errorf("enrol host: %w", err)
	}
	out := Enrolled{Identity: reply.id, Tags: e.Tags, Ephemeral: e.Ephemeral, Again: reply.what == "again"}
	switch reply.what {
	case "made":
		h.tell(ctx, org, sets.FleetEvent{Kind: operatorv1.FleetEventKind_FLEET_EVENT_KIND_HOST_ENROLLED, HostID: reply.id.ID})
		if reply.twin != "" {
			h.tellTwin(ctx, org, reply.id, reply.twin)
		}
		return out, nil
	case "again":
		h.tell(ctx, org, sets.FleetEvent{
			Kind: operatorv1.FleetEventKind_FLEET_EVENT_KIND_NOTICE, HostID: reply.id.ID, Reason: "enrolled again with a new key; the former one is refused",
		})
	}
	stood, err := h.find(ctx, org, reply.id.ID)
	if err != nil {
		return Enrolled{}, fmt.Errorf("enrol host: %w", err)
	}
	out.Tags, out.Ephemeral = stood.tags, time.Duration(stood.ephemeral)*time.Millisecond
	return out, nil
}

// tellTwin says that two hosts may be one.
func (h *Hosts) tellTwin(ctx context.Context, org string, id Identity, twin string) {
	name := twin
	if other, err := h.find(ctx, org, twin); err == nil {
		name = other.name
	}
	h.tell(ctx, org, sets.FleetEvent{
		Kind: operatorv1.FleetEventKind_FLEET_EVENT_KIND_NOTICE, HostID: id.ID,
		Reason: fmt.Sprintf("says it is the machine that %s is; if so, delete the one that is no more, and enrol again with fleetban join-token create --host next time", name),
	})
}

// sameBoot reports whether the host with this key is offline, or says that it is the same boot of the same machine.
func (h *Hosts) sameBoot(ctx context.Context, org, public string, facts *fleetbanv1.HostFacts) (bool, error) {
	id, err := h.store.Client().HGet(ctx, store.Key(org, "hostkeys"), public).Result()
	if err != nil || id == "" {
		return false, missing(err)
	}
	pipe := h.store.Client().Pipeline()
	live, said := pipe.ZScore(ctx, store.Key(org, "live"), id), pipe.HGet(ctx, store.Key(org, "facts"), id)
	if _, err := pipe.Exec(ctx); missing(err) != nil {
		return false, fmt.Errorf("read host: %w", missing(err))
	}
	now, err := h.store.Time(ctx, org)
	if err != nil {
		return false, fmt.Errorf("read host: %w", err)
	}
	if now.UnixMilli()-int64(live.Val()) >= PresenceTTL.Milliseconds() {
		return true, nil
	}
	last := decodeFacts(said.Val())
	return facts.GetBoot() != "" && last.GetBoot() == facts.GetBoot() && last.GetMachine() == facts.GetMachine(), nil
}

// Lost is a host as its grant tells of it.
type Lost struct {
	ID, Name  string
	PublicKey []byte
	Tags      map[string]string
	Ephemeral time.Duration
	// Granted is when the grant was made: since then at the latest the host was one.
	Granted time.Time
}

// Adopt puts back a host that Redis lost, from what its grant says. ErrDeleted when it was deleted, not lost.
func (h *Hosts) Adopt(ctx context.Context, org string, l Lost) (Identity, error) {
	rec := record{Tags: l.Tags, Enrolled: l.Granted.UnixMilli(), Granted: l.Granted.Unix(), Ephemeral: l.Ephemeral.Milliseconds()}
	reply, err := h.enrol(ctx, org, l.ID, l.Name, l.PublicKey, rec, "adopt", nil, "", "")
	if err != nil {
		return Identity{}, fmt.Errorf("adopt host %s: %w", l.ID, err)
	}
	if reply.what == "made" {
		h.tell(ctx, org, sets.FleetEvent{
			Kind: operatorv1.FleetEventKind_FLEET_EVENT_KIND_NOTICE, HostID: reply.id.ID,
			Reason: "Redis had lost this host; it was taken back on the word of its grant",
		})
	}
	return reply.id, nil
}

type enrolReply struct {
	what string
	id   Identity
	twin string
}

func (h *Hosts) enrol(
	ctx context.Context, org, id, name string, publicKey []byte, rec record, mode string, facts []byte, again, former string,
) (enrolReply, error) {
	rec.Key = base64.RawStdEncoding.EncodeToString(publicKey)
	raw, err := json.Marshal(rec)
	if err != nil {
		return enrolReply{}, fmt.Errorf("encode host: %w", err)
	}
	entry := audit.Stage(ctx)
	body, mac := entry.Args()
	reply, err := enrolScript.Run(ctx, h.store, h.keys(org), id, name, rec.Key, raw, mode, facts, again, former, body, mac).Slice()
	if err != nil {
		return enrolReply{}, err
	}
	switch what := word(reply, 0); what {
	case "deleted":
		return enrolReply{}, ErrDeleted
	case "gone":
		return enrolReply{}, ErrNotFound
	case "disabled":
		return enrolReply{}, ErrDisabled
	case "made", "stands", "again":
		wrote(ctx, entry, reply, 3)
		return enrolReply{what: what, id: Identity{ID: word(reply, 1), Name: word(reply, 2)}, twin: word(reply, 4)}, nil
	default:
		return enrolReply{}, fmt.Errorf("unexpected reply %q", what)
	}
}

// word is the text at i of a script's reply; "" where it has none.
func word(reply []any, i int) string {
	if i >= len(reply) {
		return ""
	}
	s, _ := reply[i].(string)
	return s
}

// wrote passes on what the script at i of its reply says of the audit log.
func wrote(ctx context.Context, entry *audit.Staged, reply []any, i int) {
	if i < len(reply) {
		if said, _ := reply[i].([]any); len(said) > 0 {
			entry.Wrote(ctx, said)
		}
	}
}

// Rotated is a host with its new key.
type Rotated struct {
	Identity

	Tags      map[string]string
	Ephemeral time.Duration
}

// Rotate gives a host its next key, on the word of the present one, and ends its stream; again with the same two keys it
// answers the same. ErrMissing, ErrDeleted, ErrDisabled, ErrWrongKey, ErrKeyTaken, *QuarantinedError, or an error of the store.
func (h *Hosts) Rotate(ctx context.Context, org, id string, present, next []byte) (Rotated, error) {
	entry := audit.Stage(ctx)
	body, mac := entry.Args()
	reply, err := rekeyScript.Run(ctx, h.store, h.keys(org), id, base64.RawStdEncoding.EncodeToString(present),
		base64.RawStdEncoding.EncodeToString(next), body, mac).Slice()
	if err != nil {
		return Rotated{}, fmt.Errorf("change the key of host %s: %w", id, err)
	}
	switch what := word(reply, 0); what {
	case "changed", "stands":
	case "missing":
		return Rotated{}, ErrMissing
	case "deleted":
		return Rotated{}, ErrDeleted
	case "disabled":
		return Rotated{}, ErrDisabled
	case "quarantined":
		return Rotated{}, &QuarantinedError{Cause: "two running agents use this identity: neither may change its key"}
	case "other key":
		return Rotated{}, ErrWrongKey
	case "taken":
		return Rotated{}, ErrKeyTaken
	default:
		return Rotated{}, fmt.Errorf("change the key of host %s: unexpected reply %q", id, what)
	}
	wrote(ctx, entry, reply, 2)
	var rec record
	if err := json.Unmarshal([]byte(word(reply, 1)), &rec); err != nil {
		return Rotated{}, fmt.Errorf("stored host %s is damaged: %w", id, err)
	}
	return Rotated{Identity: Identity{ID: id, Name: rec.Name}, Tags: rec.Tags, Ephemeral: time.Duration(rec.Ephemeral) * time.Millisecond}, nil
}

// Disable ends a host's stream and refuses its identity until Enable, and reports whether that was news. host is a name or
// an id.
func (h *Hosts) Disable(ctx context.Context, org, host, actor, reason string) (bool, error) {
	cause := "disabled by " + actor
	if reason != "" {
		cause += ": " + reason
	}
	return h.disable(ctx, org, host, actor, cause)
}

// Enable trusts a disabled host again; false when it wasn't disabled.
func (h *Hosts) Enable(ctx context.Context, org, host, actor string) (bool, error) {
	return h.disable(ctx, org, host, actor, "")
}

func (h *Hosts) disable(ctx context.Context, org, host, actor, cause string) (bool, error) {
	found, err := h.find(ctx, org, host)
	if err != nil {
		return false, err
	}
	entry := audit.Stage(ctx)
	body, mac := entry.Args()
	reply, err := disableScript.Run(ctx, h.store, h.keys(org), found.id, cause, body, mac).Slice()
	if err != nil || len(reply) == 0 {
		return false, fmt.Errorf("disable or enable host: %w", err)
	}
	n, _ := reply[0].(int64)
	if n < 0 {
		return false, fmt.Errorf("host %s: %w", host, ErrNotFound)
	}
	wrote(ctx, entry, reply, 1)
	if n == 1 {
		told := "disabled"
		if cause == "" {
			told = "enabled again"
		}
		h.tell(ctx, org, sets.FleetEvent{Kind: operatorv1.FleetEventKind_FLEET_EVENT_KIND_NOTICE, HostID: found.id, Actor: actor, Reason: told})
	}
	return n == 1, nil
}

// Delete forgets a host; its stream ends and its grant is refused from then on. ErrNotFound when there is none.
func (h *Hosts) Delete(ctx context.Context, org, id, actor string) error {
	host, err := h.find(ctx, org, id)
	if err != nil {
		return err
	}
	entry := audit.Stage(ctx)
	body, mac := entry.Args()
	reply, err := deleteScript.Run(ctx, h.store, h.keys(org), host.id, body, mac).Slice()
	if err != nil {
		return fmt.Errorf("delete host: %w", err)
	}
	if len(reply) == 0 {
		return fmt.Errorf("delete host %s: %w", id, ErrNotFound)
	}
	wrote(ctx, entry, reply, 1)
	// Its addresses are no longer the fleet's own.
	if err := h.fleet.PutHostAddresses(ctx, org, host.id, nil); err != nil {
		return fmt.Errorf("give up the addresses of host %s: %w", host.name, err)
	}
	h.tell(ctx, org, sets.FleetEvent{
		Kind: operatorv1.FleetEventKind_FLEET_EVENT_KIND_HOST_DELETED, HostID: host.id, Actor: actor, Reason: host.name,
	})
	return nil
}

// SweepEphemeral deletes the ephemeral hosts that were offline for their time, tells, and returns them. What a sweep that
// died left is cleaned up by the next.
func (h *Hosts) SweepEphemeral(ctx context.Context, org string) ([]Identity, error) {
	client := h.store.Client()
	var gone []Identity
	var cursor uint64
	for {
		pairs, next, err := client.HScan(ctx, store.Key(org, "ephemeral"), cursor, "", 500).Result()
		if err != nil {
			return gone, fmt.Errorf("look for ephemeral hosts: %w", store.Classify(err))
		}
		if len(pairs) > 0 {
			ids := make([]any, 0, len(pairs)/2)
			for i := 0; i < len(pairs); i += 2 {
				ids = append(ids, pairs[i])
			}
			if _, err := expireScript.Run(ctx, h.store, h.keys(org), ids...).StringSlice(); err != nil {
				return gone, fmt.Errorf("delete ephemeral hosts: %w", err)
			}
		}
		if cursor = next; cursor == 0 {
			break
		}
	}
	vanished, err := client.HGetAll(ctx, store.Key(org, "vanished")).Result()
	if err != nil {
		return gone, fmt.Errorf("look for ephemeral hosts: %w", store.Classify(err))
	}
	for id, name := range vanished {
		if err := h.fleet.PutHostAddresses(ctx, org, id, nil); err != nil {
			return gone, fmt.Errorf("give up the addresses of host %s: %w", name, err)
		}
		h.tell(ctx, org, sets.FleetEvent{
			Kind: operatorv1.FleetEventKind_FLEET_EVENT_KIND_HOST_DELETED, HostID: id, Reason: name + ": ephemeral, and offline for its time",
		})
		if err := client.HDel(ctx, store.Key(org, "vanished"), id).Err(); err != nil {
			return gone, fmt.Errorf("clean up ephemeral hosts: %w", store.Classify(err))
		}
		gone = append(gone, Identity{ID: id, Name: name})
		h.logger.InfoContext(ctx, "ephemeral host deleted", slog.String("organisation", org), slog.String("host", id), slog.String("name", strings.ToValidUTF8(name, "?")))
	}
	return gone, nil
}
