package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// node stands between a pool and one server (with Sentinel: whichever is the master). It keeps three promises that the
// client library doesn't:
//
//   - A command whose answer didn't come is not sent again, by nobody: a cluster client would.
//   - A script doesn't follow its slot half way. While a slot's keys move, those that have moved are missing here and
//     the others there, and a script that finds nothing would take it for an empty set. It waits until all have moved.
//   - Where Redis is set to write with so many replicas at least (min-replicas-to-write), a script's answer comes only
//     when so many have confirmed it: what was acknowledged outlives a failover.
//
// And it sends together what many want of the server in one moment: see combiner.
type node struct {
	client   *redis.Client
	cluster  bool
	combiner combiner
	observe  func(operation string, took time.Duration, err error)
	// patience is how long replicas may take to confirm.
	patience time.Duration
	// replicas that must confirm a script, as the server was last heard to be set.
	replicas atomic.Int32
}

func (s *Store) newNode(timeout time.Duration) *node {
	n := &node{patience: timeout / 3, observe: s.observe}
	n.combiner = combiner{send: n.together, patience: timeout}
	return n
}

func (n *node) hooked() *redis.Client {
	n.client.AddHook(n)
	return n.client
}

// connected looks what the server at the other end of a new connection is set to: after a failover it is another one.
func (n *node) connected(ctx context.Context, conn *redis.Conn) error {
	n.heed(ctx, conn)
	return nil // a server that is in trouble says so to the command that waits for the connection
}

// heed reads how many replicas must confirm. A server that hides its configuration tells by INFO whether it is any.
func (n *node) heed(ctx context.Context, c redis.Cmdable) {
	config, err := c.ConfigGet(ctx, minReplicas).Result()
	var reply redis.Error
	switch {
	case err == nil:
		n.heedConfig(config)
	case errors.As(err, &reply):
		if info, err := c.Info(ctx, "replication").Result(); err == nil {
			n.replicas.Store(int32(strings.Count(info, minReplicasInfo)))
		}
	}
}

func (n *node) heedConfig(config map[string]string) {
	if want, err := strconv.ParseUint(config[minReplicas], 10, 31); err == nil {
		n.replicas.Store(int32(want)) //nolint:gosec // 31 bits
	}
}

const (
	minReplicas     = "min-replicas-to-write"
	minReplicasInfo = "min_slaves_good_slaves:" // there only where min-replicas-to-write isn't 0
)

var _ redis.Hook = (*node)(nil)

// DialHook implements redis.Hook.
func (n *node) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := next(ctx, network, addr)
		var op *net.OpError
		if err != nil && (!errors.As(err, &op) || op.Op != "dial") {
			// Also where no Sentinel knows a master: nothing was sent.
			err = &net.OpError{Op: "dial", Net: network, Err: err}
		}
		return conn, err
	}
}

// ProcessHook implements redis.Hook.
func (n *node) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		// The client library leaves the error that a command has when its pipeline fails: that of another server, which sent it on here.
		cmd.SetErr(nil)
		if cmd.Name() == "cluster" {
			// The map of slots can't be read: nothing else was sent yet.
			err := n.final(next(ctx, cmd))
			if errors.Is(err, ErrOutcomeUnknown) {
				err = fmt.Errorf("%w: read the cluster's slots: %s", ErrUnavailable, err.Error())
			}
			return err
		}
		if !isScript(cmd) {
			err := n.final(n.send(ctx, cmd, next))
			if config, ok := cmd.(*redis.MapStringStringCmd); ok && err == nil { // also what Inspect reads
				n.heedConfig(config.Val())
			}
			return err
		}
		replicas := n.replicas.Load()
		if replicas == 0 {
			return n.moving(n.final(n.send(ctx, cmd, next)))
		}
		pipe := n.client.Pipeline()
		_ = pipe.Process(ctx, cmd)
		confirmed := redis.NewIntCmd(ctx, "wait", replicas, n.patience.Milliseconds())
		_ = pipe.Process(ctx, confirmed)
		_, _ = pipe.Exec(context.WithValue(ctx, scriptCall{}, true))
		err := cmd.Err()
		if err == nil && confirmed.Err() != nil {
			err = &unanswered{text: "wait for replicas: " + confirmed.Err().Error()}
		} else if err == nil && confirmed.Val() < int64(replicas) {
			err = fmt.Errorf("%w: %d of %d replicas confirmed it in %s", ErrOutcomeUnknown, confirmed.Val(), replicas, n.patience)
		}
		return n.moving(n.final(err))
	}
}

// send sends a command by itself, or with others that come in the same moment.
func (n *node) send(ctx context.Context, cmd redis.Cmder, alone redis.ProcessHook) error {
	if !combinable(cmd) {
		return alone(ctx, cmd)
	}
	began := time.Now()
	err, together := n.combiner.do(ctx, cmd, alone)
	// A cluster's observer stands before this, the others' behind it, where it saw nothing.
	if together && !n.cluster && n.observe != nil && !isScript(cmd) {
		n.observe(operationCommand, time.Since(began), Classify(failure(err)))
	}
	return err
}

// together sends a pipeline of commands that have nothing to do with each other.
func (n *node) together(cmds []redis.Cmder) {
	ctx := context.WithValue(context.Background(), scriptCall{}, true)
	pipe := n.client.Pipeline()
	for _, cmd := range cmds {
		_ = pipe.Process(ctx, cmd)
	}
	_, _ = pipe.Exec(ctx)
}

// ProcessPipelineHook implements redis.Hook.
func (n *node) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error { return next(ctx, cmds) }
}

// scriptCall marks the context of a pipeline that is a script with its WAIT, or what a combiner made, for the observer: each of its
// commands is told of by itself.
type scriptCall struct{}

func isScript(cmd redis.Cmder) bool { name := cmd.Name(); return name == "evalsha" || name == "eval" }

// unanswered is a failure after something was sent. It hides what failed, by which a cluster client would know that it
// may try again.
type unanswered struct{ text string }

func (u *unanswered) Error() string { return ErrOutcomeUnknown.Error() + ": " + u.text }
func (*unanswered) Unwrap() error   { return ErrOutcomeUnknown }

// final keeps a cluster client from repeating what may have been done. Replies, and what failed before anything was sent,
// stay as they are: those it may repeat.
func (n *node) final(err error) error {
	var reply redis.Error
	var op *net.OpError
	switch {
	case err == nil || !n.cluster, errors.As(err, &reply), errors.Is(err, redis.ErrPoolTimeout), errors.Is(err, redis.ErrClosed),
		errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), errors.Is(err, ErrOutcomeUnknown):
		return err
	case errors.As(err, &op) && op.Op == "dial":
		return err
	case errors.Is(err, io.EOF):
		return &unanswered{text: "the connection was closed"}
	default:
		return &unanswered{text: err.Error()}
	}
}

// moving refuses a script where its slot is on the way from one server to another.
func (n *node) moving(err error) error {
	var reply redis.Error
	if n.cluster && errors.As(err, &reply) && strings.HasPrefix(reply.Error(), "ASK ") {
		return fmt.Errorf("%w: its slot is being moved", ErrUnavailable)
	}
	return err
}
