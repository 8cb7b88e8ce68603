package audit

import (
	"context"
	"crypto/hmac"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"google.golang.org/protobuf/proto"

	"github.com/fleetban/fleetban/controlplane/internal/store"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

const (
	// readPage is how many entries are read from Redis at once, and scanPages how many times one List does so.
	readPage  = 1000
	scanPages = 20
	// underWay is how long what was begun may take to end.
	underWay = time.Minute
)

// Filter selects entries; what is zero selects all.
type Filter struct {
	// Actor is a name or an id, whole. Target is one of the entry's, whole.
	Actor, Target string
	// Action is one, or what stands before a dot in several.
	Action string
	// Since and Until are Unix milliseconds; Until isn't included.
	Since, Until int64
}

func (f Filter) match(e *operatorv1.AuditEntry) bool {
	return (f.Actor == "" || f.Actor == e.GetActor().GetName() || f.Actor == e.GetActor().GetId()) &&
		(f.Action == "" || f.Action == e.GetAction() || strings.HasPrefix(e.GetAction(), f.Action+".")) &&
		(f.Target == "" || slices.Contains(e.GetTargets(), f.Target)) &&
		e.GetAtUnixMs() >= f.Since && (f.Until == 0 || e.GetAtUnixMs() < f.Until)
}

// stored is an entry as Redis has it.
type stored struct {
	number             uint64
	at                 int64
	found              string
	mac, body, hash, t string
}

func parseStored(m redis.XMessage) stored {
	text := func(field string) string {
		s, _ := m.Values[field].(string)
		return s
	}
	s := stored{found: text("x"), mac: text("m"), body: text("b"), hash: text("h"), t: text("t")}
	number, _, _ := strings.Cut(m.ID, "-")
	s.number, _ = strconv.ParseUint(number, 10, 64)
	s.at, _ = strconv.ParseInt(s.t, 10, 64)
	return s
}

// marker: Redis itself wrote it, in the words of lua/write.lua.
func (s stored) marker() (action string, is bool) {
	switch {
	case s.mac != "" || s.body != "":
		return "", false
	case s.found == "restart":
		return ActionRestart, true
	case s.found == "begin":
		return ActionBegin, true
	default:
		return "", false
	}
}

// signed is the entry where the control plane wrote it; nil where it didn't.
func (l *Log) signed(org string, s stored) *operatorv1.AuditEntry {
	e := &operatorv1.AuditEntry{}
	if !hmac.Equal([]byte(s.mac), l.signer.AuditMAC(org, macEntry, []byte(s.body))) || proto.Unmarshal([]byte(s.body), e) != nil {
		return nil
	}
	return e
}

// entry is what readers are shown. One that the control plane didn't write is shown as that and nothing more.
func (l *Log) entry(org string, s stored) *operatorv1.AuditEntry {
	e := l.signed(org, s)
	if e == nil {
		e = &operatorv1.AuditEntry{}
		system := operatorv1.AuditActor_builder{Kind: System.Kind, Name: "Redis"}.Build()
		if action, is := s.marker(); is {
			e.SetAction(action)
			e.SetActor(system)
		} else {
			e.SetAction(ActionDamaged)
			e.SetReason("the control plane didn't write this entry: run fleetban audit verify")
		}
	} else {
		found(e, s.found)
	}
	e.SetNumber(s.number)
	e.SetAtUnixMs(s.at)
	e.SetHash(s.hash)
	return e
}

// ActionDamaged is what an entry is shown as that the control plane didn't write.
const ActionDamaged = "audit.damaged"

// found puts what the script found into the details: "was.NAME=VALUE" is what was there before, "NAME=VALUE" what came of it.
func found(e *operatorv1.AuditEntry, text string) {
	for _, word := range strings.Fields(text) {
		name, value, _ := strings.Cut(word, "=")
		name, before := strings.CutPrefix(name, "was.")
		if name == "mode" {
			n, _ := strconv.ParseInt(value, 10, 32)
			value = strings.ToLower(strings.TrimPrefix(fleetbanv1.Mode(n).String(), "MODE_"))
		}
		d := operatorv1.AuditDetail_builder{Name: name}.Build()
		if i := slices.IndexFunc(e.GetDetails(), func(d *operatorv1.AuditDetail) bool { return d.GetName() == name }); i >= 0 {
			d = e.GetDetails()[i]
		} else {
			e.SetDetails(append(e.GetDetails(), d))
		}
		if before {
			d.SetBefore(value)
		} else {
			d.SetAfter(value)
		}
	}
}

// List lists entries, newest first, at most size of them from the page after token ("" is the first). next is "" after the
// last page; a page may hold fewer than size, or none, before it.
func (l *Log) List(ctx context.Context, org string, f Filter, size int, token string) (page []*operatorv1.AuditEntry, next string, err error) {
	end := "+"
	if token != "" {
		n, err := strconv.ParseUint(token, 10, 53)
		if err != nil || n == 0 {
			return nil, "", fmt.Errorf("%w page token", ErrInvalid)
		}
		end = "(" + strconv.FormatUint(n, 10) + "-0"
	}
	if size <= 0 {
		size = 100
	}
	var now time.Time
	for range scanPages {
		// Together, so that what is open is what it was for these entries.
		pipe := l.store.Client().TxPipeline()
		read, opened := pipe.XRevRangeN(ctx, logKey(org), end, "-", readPage), pipe.HGetAll(ctx, openKey(org))
		if _, err := pipe.Exec(ctx); err != nil {
			return nil, "", fmt.Errorf("read the audit log: %w", store.Classify(err))
		}
		open := opened.Val()
		if len(open) > 0 && now.IsZero() {
			if now, err = l.store.Time(ctx, org); err != nil {
				return nil, "", fmt.Errorf("read the audit log: %w", err)
			}
		}
		for _, m := range read.Val() {
			s := parseStored(m)
			next = strconv.FormatUint(s.number, 10)
			if s.at < f.Since {
				return page, "", nil // times never go back
			}
			e := l.entry(org, s)
			if e.GetPhase() == operatorv1.AuditPhase_AUDIT_PHASE_BEGUN {
				if _, is := open[e.GetId()]; !is {
					continue // its end is shown
				}
				unfinished(e, now)
			}
			if f.match(e) {
				if page = append(page, e); len(page) == size {
					return page, next, nil
				}
			}
		}
		if len(read.Val()) < readPage {
			return page, "", nil
		}
		end = "(" + next + "-0"
	}
	return page, next, nil
}

func unfinished(e *operatorv1.AuditEntry, now time.Time) {
	e.SetOutcome(operatorv1.AuditOutcome_AUDIT_OUTCOME_UNKNOWN)
	e.SetReason("the control plane was interrupted before it could say what came of it")
	if now.Sub(time.UnixMilli(e.GetAtUnixMs())) < underWay {
		e.SetOutcome(operatorv1.AuditOutcome_AUDIT_OUTCOME_UNDER_WAY)
		e.SetReason("")
	}
}

// Each gives every kept entry to yield, oldest first, up to the newest when it was called.
func (l *Log) Each(ctx context.Context, org string, f Filter, yield func(*operatorv1.AuditEntry) error) error {
	last, err := l.store.Client().XRevRangeN(ctx, logKey(org), "+", "-", 1).Result()
	if err != nil {
		return fmt.Errorf("read the audit log: %w", store.Classify(err))
	}
	if len(last) == 0 {
		return nil
	}
	return l.scan(ctx, org, last[0].ID, func(s stored) error {
		if e := l.entry(org, s); f.match(e) {
			return yield(e)
		}
		return nil
	})
}

// scan reads all entries up to the one with the id end.
func (l *Log) scan(ctx context.Context, org, end string, yield func(stored) error) error {
	for from := "-"; ; {
		read, err := l.store.Client().XRangeN(ctx, logKey(org), from, end, readPage).Result()
		if err != nil {
			return fmt.Errorf("read the audit log: %w", store.Classify(err))
		}
		for _, m := range read {
			if err := yield(parseStored(m)); err != nil {
				return err
			}
		}
		if len(read) < readPage {
			return nil
		}
		from = "(" + read[len(read)-1].ID
	}
}

func openKey(org string) string { return store.Key(org, "auditopen") }
func metaKey(org string) string { return store.Key(org, "auditmeta") }
