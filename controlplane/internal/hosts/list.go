package hosts

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"
	"google.golang.org/protobuf/proto"

	"github.com/fleetban/fleetban/controlplane/internal/scope"
	"github.com/fleetban/fleetban/controlplane/internal/store"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// route is a host's stream as kept in Redis.
type route struct {
	State    string  `json:"state"`
	Instance string  `json:"instance"`
	Replica  string  `json:"replica"`
	Cause    string  `json:"cause"`
	Since    float64 `json:"since"` // ms; Lua's numbers
	Seen     float64 `json:"seen"`  // ms
}

// presence is whether a host is heard, as seen at `now` (ms).
type presence struct {
	state       operatorv1.Presence
	seen, since int64
	cause       string
	replica     string
}

func presenceOf(raw string, live float64, enrolled, now int64) presence {
	var r route
	if raw == "" || json.Unmarshal([]byte(raw), &r) != nil {
		return presence{state: operatorv1.Presence_PRESENCE_NEW, since: enrolled}
	}
	p := presence{since: int64(r.Since), seen: max(int64(live), int64(r.Seen)), cause: r.Cause}
	switch {
	case r.State == "quarantined":
		p.state = operatorv1.Presence_PRESENCE_QUARANTINED
	case r.State == "disabled":
		p.state = operatorv1.Presence_PRESENCE_DISABLED
	case r.State == "online" && now-int64(live) < PresenceTTL.Milliseconds():
		p.state, p.replica = operatorv1.Presence_PRESENCE_ONLINE, r.Replica
	case r.State == "online":
		// No sweep has come by yet.
		p.state, p.since, p.cause = operatorv1.Presence_PRESENCE_OFFLINE, p.seen, lapsedCause
	default:
		p.state = operatorv1.Presence_PRESENCE_OFFLINE
	}
	return p
}

// Count is how many hosts an organisation has, and how many of them are heard.
func (h *Hosts) Count(ctx context.Context, org string) (hosts, online uint32, err error) {
	c := h.store.Client()
	now, err := c.Time(ctx).Result()
	if err != nil {
		return 0, 0, fmt.Errorf("count hosts: %w", store.Classify(err))
	}
	pipe := c.Pipeline()
	all := pipe.HLen(ctx, store.Key(org, "hosts"))
	since := strconv.FormatInt(now.UnixMilli()-PresenceTTL.Milliseconds(), 10)
	live := pipe.ZCount(ctx, store.Key(org, "live"), "("+since, "+inf")
	if _, err := pipe.Exec(ctx); err != nil {
		return 0, 0, fmt.Errorf("count hosts: %w", store.Classify(err))
	}
	return uint32(all.Val()), uint32(live.Val()), nil //nolint:gosec // counts
}

// Get reads one host, by name or id, with everything. SetProgress.Current is left to the caller. ErrNotFound.
func (h *Hosts) Get(ctx context.Context, org, host string) (*operatorv1.Host, error) {
	e, err := h.find(ctx, org, host)
	if err != nil {
		return nil, err
	}
	out, err := h.read(ctx, org, []*entry{e})
	if err != nil {
		return nil, err
	}
	return out[0], nil
}

// List lists hosts by name, from the page after token ("" is the first); next is "" after the last.
func (h *Hosts) List(ctx context.Context, org string, size int, token string) (page []*operatorv1.Host, next string, err error) {
	return h.ListWithin(ctx, org, nil, size, token)
}

// ListWithin is List of the hosts within a scope.
func (h *Hosts) ListWithin(
	ctx context.Context, org string, within scope.Tags, size int, token string,
) (page []*operatorv1.Host, next string, err error) {
	d, err := h.directory(ctx, org)
	if err != nil {
		return nil, "", err
	}
	if size <= 0 {
		size = 500
	}
	from := 0
	if token != "" {
		after := strings.ToLower(token)
		from = sort.Search(len(d.sorted), func(i int) bool { return d.sorted[i].lower > after })
	}
	rest := d.sorted[from:]
	if !within.Whole() {
		rest = slices.DeleteFunc(slices.Clone(rest), func(e *entry) bool { return !within.Has(e.tags) })
	}
	to := min(size, len(rest))
	page, err = h.read(ctx, org, rest[:to])
	if err == nil && to < len(rest) {
		next = rest[to-1].name
	}
	return page, next, err
}

// read joins what is known of the hosts: one round trip, and one for the time.
func (h *Hosts) read(ctx context.Context, org string, entries []*entry) ([]*operatorv1.Host, error) {
	if len(entries) == 0 {
		return nil, nil
	}
	ids := make([]string, len(entries))
	var sets []string
	for i, e := range entries {
		ids[i] = e.id
		for _, set := range e.sets() {
			if !slices.Contains(sets, set) {
				sets = append(sets, set)
			}
		}
	}
	pipe := h.store.Client().Pipeline()
	clock := pipe.Time(ctx)
	live := pipe.ZMScore(ctx, store.Key(org, "live"), ids...)
	field := func(name string) *redis.SliceCmd { return pipe.HMGet(ctx, store.Key(org, name), ids...) }
	routes, inert, exceptions := field("routes"), field("inert"), field("exceptions")
	health, facts := field("health"), field("facts")
	acks := make([]*redis.SliceCmd, len(sets))
	for i, set := range sets {
		acks[i] = field("acks:" + set)
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return nil, fmt.Errorf("read hosts: %w", store.Classify(err))
	}
	now := clock.Val().UnixMilli()
	out := make([]*operatorv1.Host, len(entries))
	for i, e := range entries {
		p := presenceOf(str(routes.Val()[i]), live.Val()[i], e.enrolled, now)
		b := operatorv1.Host_builder{
			HostId: e.id, Name: e.name, Tags: e.tags, Facts: decodeFacts(str(facts.Val()[i])), Presence: p.state, EnrolledUnixMs: e.enrolled,
			SeenUnixMs: p.seen, SinceUnixMs: p.since, Cause: p.cause, Replica: p.replica, Inert: parseInert(str(inert.Val()[i])),
			EphemeralS: e.ephemeral / 1000, KeySinceUnixMs: e.keyed,
		}
		if raw := str(health.Val()[i]); raw != "" {
			b.Health = &fleetbanv1.Health{}
			if err := proto.Unmarshal([]byte(raw), b.Health); err != nil {
				b.Health = nil
			}
		}
		ack := parseExceptions(str(exceptions.Val()[i]))
		b.Exceptions, b.ExceptionsTotal = ack.GetExceptions(), ack.GetExceptionsTotal()
		own := e.sets()
		for s, set := range sets {
			if slices.Contains(own, set) {
				c := parseCursor(set, str(acks[s].Val()[i]))
				b.Sets = append(b.Sets, operatorv1.SetProgress_builder{Set: set, Acknowledged: c.GetVersion()}.Build())
			}
		}
		out[i] = b.Build()
	}
	return out, nil
}

func str(v any) string {
	s, _ := v.(string)
	return s
}

func parseInert(s string) fleetbanv1.Inert {
	n, _ := strconv.ParseInt(s, 10, 32)
	return fleetbanv1.Inert(n)
}

func parseExceptions(raw string) *fleetbanv1.Ack {
	ack := &fleetbanv1.Ack{}
	if raw == "" || proto.Unmarshal([]byte(raw), ack) != nil {
		return nil
	}
	return ack
}

// parseCursor reads "epoch version digest"; nil when there is none.
func parseCursor(set, s string) *fleetbanv1.SetCursor {
	parts := strings.Fields(s)
	if len(parts) != 3 {
		return nil
	}
	epoch, err1 := strconv.ParseUint(parts[0], 10, 64)
	version, err2 := strconv.ParseUint(parts[1], 10, 64)
	digest, err3 := strconv.ParseUint(parts[2], 16, 64)
	if err1 != nil || err2 != nil || err3 != nil {
		return nil
	}
	return fleetbanv1.SetCursor_builder{Set: set, Epoch: epoch, Version: version, Digest: digest}.Build()
}
