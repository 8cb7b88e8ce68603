package sessions

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fleetban/fleetban/controlplane/internal/auth"
	"github.com/fleetban/fleetban/controlplane/internal/store"
)

const (
	// revokedKept is how long Redis keeps an entry: longer than any access token that it is about, and a stream's owner
	// has been told long before.
	revokedKept = 30 * time.Minute
	// pollEvery is how often the list is read, whether or not something was heard: what is published to a connection that
	// has just died is lost.
	pollEvery = 300 * time.Millisecond
	// staleAfter is how long a replica that can't read the list goes on with what it knows.
	staleAfter = 5 * time.Second
	// reread is how far back each read reaches: entries of one script have one time, and clocks of servers differ.
	reread = 2 * time.Second
)

// ErrStale says that this replica doesn't know which sessions ended lately.
var ErrStale = fmt.Errorf("%w: which sessions ended lately is not known", store.ErrUnavailable)

// The list stands in one slot of a cluster, with its bell.
var (
	revokedKey  = store.Key("revoked", "list")
	revokedBell = store.Key("revoked", "bell")

	//go:embed lua/revoke.lua
	revokeText   string
	revokeScript = store.NewScript("sessions/revoke", revokeText)
)

// revoked holds which sessions and API tokens ended and which versions of memberships are no longer good: "s SESSION",
// "t TOKEN", "m ORG PERSON VERSION".
type revoked struct {
	store  *store.Store
	logger *slog.Logger

	mu       sync.RWMutex
	sessions map[string]time.Time // when it was heard of
	members  map[[2]string]uint64 // org and person → the least version that is good
	memberAt map[[2]string]time.Time
	tokens   map[string]time.Time // when it was heard of

	// read is when the last complete read began, on the monotonic clock; 0: never.
	read  atomic.Int64
	begun time.Time
	// from is where the next read begins, Redis' milliseconds.
	from int64
}

func newRevoked(st *store.Store, logger *slog.Logger) *revoked {
	return &revoked{
		store: st, logger: logger, sessions: make(map[string]time.Time), members: make(map[[2]string]uint64),
		memberAt: make(map[[2]string]time.Time), tokens: make(map[string]time.Time), begun: time.Now(),
	}
}

func sessionEntry(id string) string { return "s " + id }

func memberEntry(org, person string, version uint64) string {
	return "m " + org + " " + person + " " + strconv.FormatUint(version, 10)
}

// add publishes entries; when it returns without error, every replica that reads knows them within pollEvery.
func (r *revoked) add(ctx context.Context, entries ...string) error {
	if len(entries) == 0 {
		return nil
	}
	args := []any{revokedKept.Milliseconds()}
	for _, e := range entries {
		args = append(args, e)
	}
	if err := revokeScript.Run(ctx, r.store, []string{revokedKey, revokedBell}, args...).Err(); err != nil {
		return fmt.Errorf("revoke: %w", err)
	}
	for _, e := range entries {
		r.take(e)
	}
	return nil
}

// take notes one entry. One of a kind that a newer release made is skipped.
func (r *revoked) take(entry string) {
	words := strings.Split(entry, " ")
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case len(words) == 2 && words[0] == "s":
		r.sessions[words[1]] = time.Now()
	case len(words) == 2 && words[0] == "t":
		r.tokens[words[1]] = time.Now()
	case len(words) == 4 && words[0] == "m":
		version, err := strconv.ParseUint(words[3], 10, 64)
		if err != nil {
			return
		}
		key := [2]string{words[1], words[2]}
		r.members[key], r.memberAt[key] = max(r.members[key], version), time.Now()
	}
}

// check reports why a token of these is good no longer.
func (r *revoked) check(org, person string, version uint64, session string) error {
	if at := r.read.Load(); at == 0 || time.Since(r.begun)-time.Duration(at) > staleAfter {
		return ErrStale
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	if _, ended := r.sessions[session]; ended {
		return fmt.Errorf("%w: the session ended", ErrToken)
	}
	if least := r.members[[2]string{org, person}]; version < least {
		return fmt.Errorf("%w: the member's role changed", ErrToken)
	}
	return nil
}

// checkToken reports why a token is good no longer, or that of a person with a membership of that version. Not knowing
// is no reason.
func (r *revoked) checkToken(org string, t auth.Token) error {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if _, ended := r.tokens[t.ID]; ended {
		return fmt.Errorf("%w: the API token was revoked", ErrToken)
	}
	if least := r.members[[2]string{org, t.Person}]; t.Person != "" && t.Version < least {
		return fmt.Errorf("%w: the role of the person whose token it is changed", ErrToken)
	}
	return nil
}

// run follows the list until ctx ends.
func (r *revoked) run(ctx context.Context) {
	var listening sync.WaitGroup
	listening.Go(func() { r.listen(ctx) })
	defer listening.Wait()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	away := false
	for {
		err := r.poll(ctx)
		if err != nil && ctx.Err() == nil && !away {
			r.logger.WarnContext(ctx, "which sessions ended lately can't be read: people are refused until it can", slog.Any("error", err))
		}
		away = err != nil
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// poll reads what was added.
func (r *revoked) poll(ctx context.Context) error {
	began := time.Since(r.begun)
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	entries, err := r.store.Client().ZRangeArgsWithScores(ctx, redis.ZRangeArgs{
		Key: revokedKey, ByScore: true, Start: strconv.FormatInt(r.from, 10), Stop: "+inf",
	}).Result()
	if err != nil {
		return fmt.Errorf("read what was revoked: %w", store.Classify(err))
	}
	newest := int64(0)
	for _, e := range entries {
		if text, ok := e.Member.(string); ok {
			r.take(text)
		}
		newest = max(newest, int64(e.Score))
	}
	if newest > 0 {
		r.from = newest - reread.Milliseconds()
	} else {
		r.from = 0 // the list is empty, or Redis is another one
	}
	r.read.Store(max(1, int64(began)))
	r.forget()
	return nil
}

// forget drops what no token is about any more.
func (r *revoked) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	old := time.Now().Add(-2 * revokedKept)
	for id, at := range r.sessions {
		if at.Before(old) {
			delete(r.sessions, id)
		}
	}
	for id, at := range r.tokens {
		if at.Before(old) {
			delete(r.tokens, id)
		}
	}
	for key, at := range r.memberAt {
		if at.Before(old) {
			delete(r.members, key)
			delete(r.memberAt, key)
		}
	}
}

// listen hears of entries as they are added: milliseconds instead of pollEvery.
func (r *revoked) listen(ctx context.Context) {
	for ctx.Err() == nil {
		sub := r.store.Client().SSubscribe(ctx, revokedBell)
		// A read that waits for a message heeds no context.
		stop := context.AfterFunc(ctx, func() { _ = sub.Close() })
		for {
			message, err := sub.ReceiveMessage(ctx)
			if err != nil {
				break
			}
			r.take(message.Payload)
		}
		stop()
		_ = sub.Close()
		timer := time.NewTimer(time.Second)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
}

// IsStale reports whether err is ErrStale.
func IsStale(err error) bool { return errors.Is(err, ErrStale) }
