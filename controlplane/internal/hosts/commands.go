package hosts

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/fleetban/fleetban/controlplane/internal/hosts/commandlog"
	"github.com/fleetban/fleetban/controlplane/internal/store"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// QueueCommand gives a host an order, kept until it is done or its time is over. It sets the command's id, and its
// NotAfterUnixMs where that is 0. hostID is an id. ErrNotFound, ErrTooManyCommands.
func (h *Hosts) QueueCommand(ctx context.Context, org, hostID string, command *fleetbanv1.Command, actor string) (*operatorv1.HostCommand, error) {
	now, err := h.store.Time(ctx, org)
	if err != nil {
		return nil, fmt.Errorf("queue command: %w", err)
	}
	queued, raw, err := commandlog.New(command, actor, now)
	if err != nil {
		return nil, err
	}
	n, err := queueScript.Run(ctx, h.store, h.keys(org), hostID, command.GetCommandId(), raw).Int()
	switch {
	case err != nil:
		return nil, fmt.Errorf("queue command: %w", err)
	case n == 0:
		return nil, fmt.Errorf("queue command for %s: %w", hostID, ErrNotFound)
	case n < 0:
		return nil, fmt.Errorf("queue command for %s: %w", hostID, ErrTooManyCommands)
	default:
		return queued, nil
	}
}

// Commands lists a host's commands, latest first, with the results of those that have one. hostID is an id.
func (h *Hosts) Commands(ctx context.Context, org, hostID string) ([]*operatorv1.HostCommand, error) {
	pipe := h.store.Client().Pipeline()
	commands, results := pipe.HGetAll(ctx, store.Key(org, "cmds", hostID)), pipe.HGetAll(ctx, store.Key(org, "results", hostID))
	if _, err := pipe.Exec(ctx); err != nil {
		return nil, fmt.Errorf("read commands: %w", store.Classify(err))
	}
	out := make([]*operatorv1.HostCommand, 0, len(commands.Val()))
	for id, raw := range commands.Val() {
		c, err := commandlog.Parse(raw)
		if err != nil {
			return nil, fmt.Errorf("stored command %s is damaged: %w", id, err)
		}
		if raw, ok := results.Val()[id]; ok {
			result := &fleetbanv1.CommandResult{}
			if err := proto.Unmarshal([]byte(raw), result); err != nil {
				return nil, fmt.Errorf("stored result of %s is damaged: %w", id, err)
			}
			c.SetResult(result)
		}
		out = append(out, c)
	}
	slices.SortFunc(out, func(a, b *operatorv1.HostCommand) int {
		return strings.Compare(b.GetCommand().GetCommandId(), a.GetCommand().GetCommandId())
	})
	return out, nil
}

// Pending lists the commands that a host still has to carry out, oldest first: delivered at least once each.
func (h *Hosts) Pending(ctx context.Context, org, hostID string) ([]*fleetbanv1.Command, error) {
	// Mostly there are none. This question goes together with those of other hosts that come in the same moment.
	n, err := h.store.Client().HLen(ctx, store.Key(org, "cmds", hostID)).Result()
	if err != nil {
		return nil, fmt.Errorf("read commands: %w", store.Classify(err))
	}
	if n == 0 {
		return nil, nil
	}
	all, err := h.Commands(ctx, org, hostID)
	if err != nil || len(all) == 0 {
		return nil, err
	}
	now, err := h.store.Time(ctx, org)
	if err != nil {
		return nil, fmt.Errorf("read commands: %w", err)
	}
	var out []*fleetbanv1.Command
	for _, c := range slices.Backward(all) {
		if !c.HasResult() && c.GetCommand().GetNotAfterUnixMs() > now.UnixMilli() {
			out = append(out, c.GetCommand())
		}
	}
	return out, nil
}

// Result stores what came of a command; the first result stands. ErrStaleFence, ErrNotFound.
func (h *Hosts) Result(ctx context.Context, f Fence, result *fleetbanv1.CommandResult) error {
	raw, err := proto.Marshal(result)
	if err != nil {
		return fmt.Errorf("encode result: %w", err)
	}
	n, err := resultScript.Run(ctx, h.store, h.keys(f.Org), f.Host, f.text(), result.GetCommandId(), raw).Int()
	switch {
	case err != nil:
		return fmt.Errorf("store result: %w", err)
	case n == -1:
		return ErrStaleFence
	case n == -2:
		return fmt.Errorf("command %s: %w", result.GetCommandId(), ErrNotFound)
	default:
		return nil
	}
}
