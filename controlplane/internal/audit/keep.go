package audit

import (
	"context"
	"fmt"
	"sort"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fleetban/fleetban/controlplane/internal/store"
)

const (
	trimDetail = "dropped"
	// ageSlack is how much longer than it must an entry may be kept, so that a quiet log isn't full of entries that say
	// that others were dropped.
	ageSlack = time.Hour
)

// Tend seals the newest entry and drops what need no longer be kept. One replica, whichever, is to call it every few
// seconds for each organisation.
func (l *Log) Tend(ctx context.Context, org string) error {
	m, err := l.meta(ctx, org)
	if err != nil || m.head.Number == 0 {
		return err
	}
	if m.sealed != m.head {
		if err := l.seal(ctx, org, m); err != nil {
			return err
		}
	}
	return l.trim(ctx, org, m.head)
}

func (l *Log) seal(ctx context.Context, org string, m meta) error {
	l.mu.Lock()
	was := l.sealed[org]
	l.mu.Unlock()
	// What this replica sealed before must still be there: or it would vouch for another log.
	if was.Number > 0 && was != m.base {
		now, err := l.at(ctx, org, was.Number)
		if err != nil {
			return err
		}
		if now.hash != was.Hash && (now.hash != "" || was.Number > m.base.Number) {
			l.gap(ctx, org, was, m.head)
		}
	}
	mac := l.signer.AuditMAC(org, macSeal, sealedText(m.head))
	if err := sealScript.Run(ctx, l.store, []string{metaKey(org)}, m.head.Number, m.head.Hash, mac).Err(); err != nil {
		return fmt.Errorf("seal the audit log: %w", err)
	}
	l.mu.Lock()
	l.sealed[org] = m.head
	l.mu.Unlock()
	return nil
}

// at reads one entry; the zero one where it isn't there.
func (l *Log) at(ctx context.Context, org string, number uint64) (stored, error) {
	id := strconv.FormatUint(number, 10) + "-0"
	read, err := l.store.Client().XRangeN(ctx, logKey(org), id, id, 1).Result()
	if err != nil {
		return stored{}, fmt.Errorf("read the audit log: %w", store.Classify(err))
	}
	if len(read) == 0 {
		return stored{}, nil
	}
	return parseStored(read[0]), nil
}

func (l *Log) trim(ctx context.Context, org string, head Head) error {
	var oldest []redis.XMessage
	oldest, err := l.store.Client().XRangeN(ctx, logKey(org), "-", "+", 1).Result()
	if err != nil || len(oldest) == 0 {
		return store.Classify(err)
	}
	now, err := l.store.Time(ctx, org)
	if err != nil {
		return fmt.Errorf("trim the audit log: %w", err)
	}
	first, through := parseStored(oldest[0]), uint64(0)
	if n := head.Number - min(first.number, head.Number) + 1; n > l.most+l.most/100 {
		through = head.Number - l.most
	}
	if before := now.Add(-l.keep).UnixMilli(); first.at < before-l.slack.Milliseconds() {
		aged, err := l.before(ctx, org, first.number, head.Number, before)
		if err != nil {
			return err
		}
		through = max(through, aged)
	}
	// The newest stays: it is what a person may have noted.
	through = min(through, head.Number-1)
	if through < first.number {
		return nil
	}
	last, err := l.at(ctx, org, through)
	if err != nil || last.hash == "" {
		return err
	}
	s := l.stage(org, Record{Actor: System, Action: ActionTrim, Details: []Detail{
		{Name: trimDetail, Before: strconv.FormatUint(first.number, 10), After: strconv.FormatUint(through, 10) + ":" + last.hash},
	}}, newID(), 0)
	reply, err := trimScript.Run(ctx, l.store, []string{logKey(org)}, through, last.hash, s.body, s.mac).Slice()
	if err != nil {
		return fmt.Errorf("trim the audit log: %w", err)
	}
	if len(reply) > 0 {
		s.Wrote(ctx, reply)
	}
	return nil
}

// before is the number of the last entry from first to last whose time is before at; times never go back.
func (l *Log) before(ctx context.Context, org string, first, last uint64, at int64) (uint64, error) {
	var failed error
	n := sort.Search(int(last-first+1), func(i int) bool { //nolint:gosec // as many as are kept
		s, err := l.at(ctx, org, first+uint64(i)) //nolint:gosec // positive
		if err != nil {
			failed = err
		}
		return s.at >= at
	})
	return first + uint64(n) - 1, failed //nolint:gosec // positive
}
