package audit

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"strconv"

	"github.com/fleetban/fleetban/controlplane/internal/store"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
)

// Lua is what a script of another package includes to write entries with its change: see lua/write.lua.
//
//go:embed lua/write.lua
var Lua string

var (
	//go:embed lua/append.lua
	appendText string
	//go:embed lua/trim.lua
	trimText string
	//go:embed lua/seal.lua
	sealText string

	// Also when memory is full: what was done must be said, and it is little.
	appendScript = store.NewScript("audit/append", "#!lua flags=allow-oom", Lua, appendText)
	trimScript   = store.NewScript("audit/trim", "#!lua flags=allow-oom", Lua, trimText)
	sealScript   = store.NewScript("audit/seal", "#!lua flags=allow-oom", sealText)
)

var errReply = errors.New("audit: a script's reply makes no sense")

func (l *Log) append(ctx context.Context, org string, s *Staged) error {
	how := map[operatorv1.AuditPhase]string{operatorv1.AuditPhase_AUDIT_PHASE_BEGUN: "begun", operatorv1.AuditPhase_AUDIT_PHASE_ENDED: "ended"}[s.phase]
	reply, err := appendScript.Run(ctx, l.store, []string{logKey(org)}, s.body, s.mac, how, s.id).Slice()
	if err != nil {
		return fmt.Errorf("write the audit log: %w", err)
	}
	s.Wrote(ctx, reply)
	return nil
}

func logKey(org string) string { return store.Key(org, "audit") }

// Wrote takes in what audit.write returned in the script that wrote the entry.
func (s *Staged) Wrote(ctx context.Context, reply []any) {
	if s == nil {
		return
	}
	if s.wrote != nil {
		s.wrote()
	}
	before, after, err := parseReply(reply)
	if err != nil {
		s.log.logger.ErrorContext(ctx, "audit log: reply not understood", slog.Any("error", err))
		return
	}
	s.log.heard(ctx, s.org, s.known, before, after)
}

func parseReply(reply []any) (before, after Head, err error) {
	if len(reply) != 4 {
		return before, after, errReply
	}
	var text [4]string
	for i, v := range reply {
		text[i], _ = v.(string)
	}
	var err1, err2 error
	before.Number, err1 = strconv.ParseUint(text[0], 10, 64)
	after.Number, err2 = strconv.ParseUint(text[2], 10, 64)
	before.Hash, after.Hash = text[1], text[3]
	if err1 != nil || err2 != nil || len(after.Hash) != hashLen {
		return before, after, errReply
	}
	return before, after, nil
}

// heard remembers a newer head. Where the log no longer has what this replica knew, that is said, in it and in the log of
// the process.
func (l *Log) heard(ctx context.Context, org string, known, before, after Head) {
	lost := known.Number > before.Number || known.Number > 0 && known.Number == before.Number && known.Hash != before.Hash
	l.mu.Lock()
	now := l.known[org]
	switch {
	case !lost:
		if after.Number > now.Number {
			l.known[org] = after
		}
	case now == known:
		l.known[org] = after
	default:
		// Another call found the same already.
		lost = false
	}
	l.mu.Unlock()
	if lost {
		l.gap(ctx, org, known, before)
	}
}

// gap says that entries were lost.
func (l *Log) gap(ctx context.Context, org string, known, found Head) {
	l.logger.ErrorContext(ctx, "the audit log lost entries: Redis lost them, or somebody put back an older state",
		slog.String("organisation", org), slog.Uint64("known", known.Number), slog.String("known_hash", known.Hash),
		slog.Uint64("found", found.Number), slog.String("found_hash", found.Hash))
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endWithin)
	defer cancel()
	err := l.Record(ctx, org, Record{Actor: System, Action: ActionGap, Details: []Detail{
		{Name: "head", Before: strconv.FormatUint(known.Number, 10) + ":" + known.Hash, After: strconv.FormatUint(found.Number, 10) + ":" + found.Hash},
	}})
	if err != nil {
		l.logger.ErrorContext(ctx, "the gap in the audit log could not be recorded; verifying finds it all the same", slog.Any("error", err))
	}
}

// Actions of the log itself.
const (
	// ActionGap: entries that a replica knew of are gone.
	ActionGap = "audit.gap"
	// ActionTrim: the oldest entries were dropped for their age or number.
	ActionTrim = "audit.trim"
	// ActionRestart: Redis was restarted or failed over; what it had acknowledged last may be gone.
	ActionRestart = "redis.restart"
	// ActionBegin: the log begins here.
	ActionBegin = "audit.begin"
)

// hashLen is the length of a hash in hex.
const hashLen = 40
