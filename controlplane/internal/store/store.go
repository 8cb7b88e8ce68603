// Package store is the control plane's way to Redis (or Valkey): one connection pool, key names, scripts, the clock and
// the doorbell. What is kept there belongs to the packages above it: sets, hosts, orgs.
package store

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
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
	// URL is redis://[user:password@]host:port/db, rediss://… (TLS) or unix:///path.
	URL string
	// Timeout bounds each round trip. Default 3 s.
	Timeout time.Duration
	// Logger; default slog.Default().
	Logger *slog.Logger
	// Observe, where it is given, is told of each call: one of Operations, how long it took with the wait for a connection,
	// and its error as Classify gives it. It must not block.
	Observe func(operation string, took time.Duration, err error)
}

// Store is a connection pool. Safe for concurrent use.
type Store struct {
	client  *redis.Client
	logger  *slog.Logger
	observe func(string, time.Duration, error)
}

// Open makes a pool. It doesn't wait for Redis: see Ping.
func Open(o Options) (*Store, error) {
	parsed, err := redis.ParseURL(o.URL)
	if err != nil {
		return nil, fmt.Errorf("redis URL: %w; write redis://host:6379/0, rediss://host:6379/0 or unix:///path/redis.sock", redactURL(err, o.URL))
	}
	if o.Timeout <= 0 {
		o.Timeout = 3 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	parsed.DialTimeout = o.Timeout
	parsed.ReadTimeout = o.Timeout
	parsed.WriteTimeout = o.Timeout
	// A change that timed out is reported as unknown, never repeated behind the caller's back.
	parsed.MaxRetries = -1
	// Whoever waits for Redis tries again by itself.
	parsed.DialerRetries = 1
	parsed.ContextTimeoutEnabled = true
	parsed.DisableIdentity = true
	if parsed.TLSConfig != nil {
		parsed.TLSConfig.MinVersion = tls.VersionTLS12
	}
	s := &Store{client: redis.NewClient(parsed), logger: o.Logger, observe: o.Observe}
	if s.observe != nil {
		s.client.AddHook(observer(s.observe))
	}
	return s, nil
}

// Client gives the pool to the packages that keep something in Redis.
func (s *Store) Client() *redis.Client { return s.client }

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
// append-only file, has too few replicas, is part of a cluster that is down or moves the slot, or runs a long script.
var refusals = []string{"LOADING ", "MASTERDOWN ", "READONLY ", "MISCONF ", "NOREPLICAS ", "CLUSTERDOWN ", "TRYAGAIN ", "BUSY "}

// Classify wraps a failure of go-redis in ErrUnavailable or ErrOutcomeUnknown; nil and other replies of Redis itself
// (redis.Error) pass unchanged.
func Classify(err error) error {
	var reply redis.Error
	var op *net.OpError
	switch {
	case err == nil, errors.Is(err, ErrUnavailable), errors.Is(err, ErrOutcomeUnknown):
		return err
	case errors.As(err, &reply):
		for _, refusal := range refusals {
			if strings.HasPrefix(reply.Error(), refusal) {
				return fmt.Errorf("%w: %w", ErrUnavailable, err)
			}
		}
		return err
	case errors.As(err, &op) && op.Op == "dial", errors.Is(err, redis.ErrPoolTimeout):
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	default:
		return fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
	}
}

// redactURL keeps a password out of a parser's message.
func redactURL(err error, url string) error {
	if strings.Contains(err.Error(), url) {
		return errors.New("it can't be parsed")
	}
	return err
}
