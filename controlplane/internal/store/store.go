// Package store is the control plane's way to Redis (or Valkey): connections, key names, scripts, the clock and the
// doorbell. What is kept there belongs to the packages above it: sets, hosts, orgs.
//
// Redis may be one server, a master that Sentinels watch, or a cluster; nothing outside of this package knows. What holds
// of all three because a cluster needs it: a script or transaction touches the keys of one organisation, which share its
// hash tag and so a slot, or one other key; and the clock to ask is that of the server that holds the organisation.
package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// Errors that callers decide on.
var (
	// ErrUnavailable: Redis could not be reached, or refused before doing anything. Nothing was changed.
	ErrUnavailable = errors.New("redis is unavailable")
	// ErrOutcomeUnknown: the connection was lost or timed out after a change was sent. It may or may not stand.
	ErrOutcomeUnknown = errors.New("redis did not answer: the change may or may not stand")
)

// Options say how to reach Redis.
type Options struct {
	// URL is one of Forms.
	URL string
	// Timeout bounds each round trip. Default 3 s.
	Timeout time.Duration
	// Logger is not used: kept for callers.
	Logger *slog.Logger
	// Observe, where it is given, is told of each call: one of Operations, how long it took with the wait for a connection,
	// and its error as Classify gives it. It must not block.
	Observe func(operation string, took time.Duration, err error)
}

// Store is a connection pool. Safe for concurrent use.
type Store struct {
	client   redis.UniversalClient
	topology Topology
	observe  func(string, time.Duration, error)
}

// Open makes a pool. It doesn't wait for Redis: see Ping.
func Open(o Options) (*Store, error) {
	t, err := parseTarget(o.URL)
	if err != nil {
		return nil, err
	}
	if o.Timeout <= 0 {
		o.Timeout = 3 * time.Second
	}
	s := &Store{topology: t.topology, observe: o.Observe}
	if s.client, err = s.newClient(t, o.Timeout); err != nil {
		return nil, err
	}
	if s.observe != nil {
		s.client.AddHook(observer(s.observe))
	}
	return s, nil
}

// Client gives the pool to the packages that keep something in Redis.
func (s *Store) Client() redis.UniversalClient { return s.client }

// Close ends every connection.
func (s *Store) Close() error { return s.client.Close() }

// Ping reports whether Redis answers.
func (s *Store) Ping(ctx context.Context) error {
	if err := s.client.Ping(ctx).Err(); err != nil {
		return fmt.Errorf("ping redis: %w", Classify(err))
	}
	return nil
}

// Key names a key of one organisation; all of them share its hash tag.
func Key(org string, parts ...string) string {
	return "fb:{" + org + "}:" + strings.Join(parts, ":")
}

// Global names a key that belongs to no organisation. Commands on such keys touch one key each.
func Global(parts ...string) string { return "fb:" + strings.Join(parts, ":") }

// refusals begin replies of a Redis that can't serve now and did nothing: it loads its data, is a replica, can't write its
// append-only file, has too few replicas, is part of a cluster that is down or moves the slot, or runs a long script; or that
// doesn't know who calls.
var refusals = []string{
	"NOAUTH ", "WRONGPASS ",
	"LOADING ", "MASTERDOWN ", "READONLY ", "MISCONF ", "NOREPLICAS ", "CLUSTERDOWN ", "TRYAGAIN ", "BUSY ", "MOVED ", "ASK ",
}

// inScript are what a script hears of a cluster that is down or moves its slot, from the first key that it looks at.
// Scripts look at all they will write before they write any.
var inScript = []string{"access a non local key in a cluster", "while the cluster is down"}

// noNodes is what the client says of a cluster of which no server answers.
const noNodes = "redis: cluster has no nodes"

// Classify wraps a failure of go-redis in ErrUnavailable or ErrOutcomeUnknown; nil and other replies of Redis itself
// (redis.Error) pass unchanged.
func Classify(err error) error {
	var reply redis.Error
	var op *net.OpError
	switch {
	case err == nil, errors.Is(err, ErrUnavailable), errors.Is(err, ErrOutcomeUnknown):
		return err
	case errors.As(err, &reply):
		text := reply.Error()
		if slices.ContainsFunc(refusals, func(refusal string) bool { return strings.HasPrefix(text, refusal) }) ||
			slices.ContainsFunc(inScript, func(refusal string) bool { return strings.Contains(text, refusal) }) {
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		return err
	case errors.As(err, &op) && op.Op == "dial", errors.Is(err, redis.ErrPoolTimeout), err.Error() == noNodes:
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	default:
		return fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
	}
}
