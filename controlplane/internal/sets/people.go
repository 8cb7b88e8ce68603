package sets

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/fleetban/fleetban/controlplane/internal/store"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

// eventsKept is the least that the stream of events for people keeps; the same as EVENTS_LEN in prelude.lua.
const eventsKept = 10_000

// noEvent comes before every event.
const noEvent = "0-0"

// AppendEventArgs are XADD's arguments after the key for an event, for scripts of other packages that change something
// and tell of it at once. The script adds the field "t", the clock in milliseconds.
func AppendEventArgs(e FleetEvent) []any {
	args := []any{"k", int(e.Kind)}
	add := func(field, value string) {
		if value != "" {
			args = append(args, field, value)
		}
	}
	if e.Prefix.IsValid() {
		add("p", string(prefix.Pack(e.Prefix)))
	}
	add("h", e.HostID)
	add("j", e.Jail)
	add("a", e.Actor)
	add("r", e.Reason)
	if e.Expires != 0 {
		add("e", strconv.FormatInt(e.Expires, 10))
	}
	if e.Unpromoted != 0 {
		add("u", strconv.Itoa(int(e.Unpromoted)))
	}
	add("s", e.Set)
	return args
}

var appendEventScript = store.NewScript("append-event", `#!lua flags=allow-oom
-- KEYS  fb:{ORG}:events, fb:{ORG}:bell. ARGV  length kept, fields and values. O(1).
local t = redis.call('TIME')
redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', 't', t[1] .. string.format('%03d', math.floor(t[2] / 1000)), unpack(ARGV, 2))
redis.call('SPUBLISH', KEYS[2], 'events')
return 1`)

// AppendEvent adds an event for people that isn't of a set: a host came online, a pause. Its ID and At are given here.
func (s *Sets) AppendEvent(ctx context.Context, org string, e FleetEvent) error {
	if err := checkTexts(e.Actor, e.Reason); err != nil {
		return fmt.Errorf("append event: %w", err)
	}
	args := append([]any{eventsKept}, AppendEventArgs(e)...)
	if err := appendEventScript.Run(ctx, s.store, []string{store.Key(org, "events"), store.BellChannel(org)}, args...).Err(); err != nil {
		return fmt.Errorf("append event: %w", err)
	}
	return nil
}

// Events reads at most limit events for people after an id ("": from the oldest kept), in order. gap: events between
// the id and the first returned were trimmed.
func (s *Sets) Events(ctx context.Context, org, after string, limit int) (events []FleetEvent, gap bool, err error) {
	start := "-"
	if after != "" {
		if !validEventID(after) {
			return nil, false, fmt.Errorf("read events: %w: id %.64q", ErrInvalid, after)
		}
		start = "(" + after
	}
	var read, first *redis.XMessageSliceCmd
	_, err = s.store.Client().Pipelined(ctx, func(p redis.Pipeliner) error {
		read = p.XRangeN(ctx, store.Key(org, "events"), start, "+", int64(limit))
		first = p.XRangeN(ctx, store.Key(org, "events"), "-", "+", 1)
		return nil
	})
	if err != nil {
		return nil, false, fmt.Errorf("read events: %w", store.Classify(err))
	}
	if after != "" && after != noEvent && len(first.Val()) > 0 {
		gap = earlierID(after, first.Val()[0].ID)
	}
	for _, m := range read.Val() {
		e, err := parseEvent(m)
		if err != nil {
			return nil, false, err
		}
		events = append(events, e)
	}
	return events, gap, nil
}

// LatestEvents reads the newest limit events, newest first; valid p selects those of that prefix among the newest kept.
func (s *Sets) LatestEvents(ctx context.Context, org string, p netip.Prefix, limit int) ([]FleetEvent, error) {
	return s.EventsUpTo(ctx, org, "+", limit, func(e FleetEvent) bool { return !p.IsValid() || e.Prefix == p })
}

// EventsUpTo reads the newest limit events that keep selects among the newest kept, from the one with the id last ("+": the
// newest) back, newest first.
func (s *Sets) EventsUpTo(ctx context.Context, org, last string, limit int, keep func(FleetEvent) bool) ([]FleetEvent, error) {
	const page = 1000
	var out []FleetEvent
	end := last
	for range eventsKept / page {
		read, err := s.store.Client().XRevRangeN(ctx, store.Key(org, "events"), end, "-", page).Result()
		if err != nil {
			return nil, fmt.Errorf("read events: %w", store.Classify(err))
		}
		for _, m := range read {
			e, err := parseEvent(m)
			if err != nil {
				return nil, err
			}
			if keep(e) {
				if out = append(out, e); len(out) >= limit {
					return out, nil
				}
			}
		}
		if len(read) < page {
			break
		}
		end = "(" + read[len(read)-1].ID
	}
	return out, nil
}

// LastEventID is the id of the newest event, to watch from now on. "0-0" where there is none.
func (s *Sets) LastEventID(ctx context.Context, org string) (string, error) {
	read, err := s.store.Client().XRevRangeN(ctx, store.Key(org, "events"), "+", "-", 1).Result()
	if err != nil && !errors.Is(err, redis.Nil) {
		return "", fmt.Errorf("read events: %w", store.Classify(err))
	}
	if len(read) == 0 {
		return noEvent, nil
	}
	return read[0].ID, nil
}

func parseEvent(m redis.XMessage) (FleetEvent, error) {
	text := func(field string) string {
		s, _ := m.Values[field].(string)
		return s
	}
	number := func(field string) int64 {
		n, _ := strconv.ParseInt(text(field), 10, 64)
		return n
	}
	e := FleetEvent{
		ID: m.ID, At: number("t"), Kind: operatorv1.FleetEventKind(number("k")), HostID: text("h"), Jail: text("j"), Actor: text("a"), Reason: text("r"), //nolint:gosec // an enum of few
		Expires: number("e"), Unpromoted: operatorv1.Unpromoted(number("u")), Set: text("s"), //nolint:gosec // an enum of few
	}
	if packed := text("p"); packed != "" {
		p, err := prefix.Unpack([]byte(packed))
		if err != nil {
			return FleetEvent{}, fmt.Errorf("%w: event %s: %w", errCorrupt, m.ID, err)
		}
		e.Prefix = p
	}
	return e, nil
}

func splitID(id string) (ms, seq uint64, ok bool) {
	a, b, found := strings.Cut(id, "-")
	ms, err1 := strconv.ParseUint(a, 10, 64)
	seq, err2 := strconv.ParseUint(b, 10, 64)
	return ms, seq, found && err1 == nil && err2 == nil
}

func validEventID(id string) bool {
	_, _, ok := splitID(id)
	return ok
}

func earlierID(a, b string) bool {
	am, as, _ := splitID(a)
	bm, bs, _ := splitID(b)
	return am < bm || am == bm && as < bs
}
