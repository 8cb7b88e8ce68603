package store

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/redis/go-redis/v9"
)

// What isn't a script.
const (
	operationCommand  = "command"
	operationPipeline = "pipeline"
)

// observer tells Options.Observe of what goes through the pool. Scripts tell themselves: here they have no name.
type observer func(operation string, took time.Duration, err error)

var _ redis.Hook = observer(nil)

// DialHook implements redis.Hook.
func (observer) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) { return next(ctx, network, addr) }
}

// ProcessHook implements redis.Hook.
func (o observer) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if isScript(cmd) {
			return next(ctx, cmd)
		}
		began := time.Now()
		err := next(ctx, cmd)
		o(operationCommand, time.Since(began), Classify(failure(err)))
		return err
	}
}

// ProcessPipelineHook implements redis.Hook.
func (o observer) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if ctx.Value(scriptCall{}) != nil {
			return next(ctx, cmds)
		}
		began := time.Now()
		err := next(ctx, cmds)
		o(operationPipeline, time.Since(began), Classify(failure(err)))
		return err
	}
}

// failure is err unless it is the answer that there is nothing, or the end of the caller's patience.
func failure(err error) error {
	if errors.Is(err, redis.Nil) || errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}
