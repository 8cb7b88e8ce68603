// Package commandlog is the format of what hosts are ordered to do, as kept in Redis. It stands apart from package hosts
// so that a script of package sets can give an order in the same change that makes it necessary.
package commandlog

import (
	_ "embed"
	"fmt"
	"time"

	"github.com/oklog/ulid/v2"
	"google.golang.org/protobuf/proto"

	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

const (
	// Life is how long a command waits for its host where nothing else is said.
	Life = 7 * 24 * time.Hour
	// Kept bounds a host's commands. An unban's orders go beyond it: they must not be lost, and there are never more of
	// them than the host had claims.
	Kept = 200
)

//go:embed commandlog.lua
var lua string

// Lua defines append_command and commandable, for scripts.
var Lua = fmt.Sprintf("local COMMANDS_KEPT = %d\n%s", Kept, lua)

// New completes a command, its id and where it has none its end, and encodes it as it is stored.
func New(command *fleetbanv1.Command, actor string, now time.Time) (queued *operatorv1.HostCommand, raw []byte, err error) {
	command.SetCommandId(ulid.Make().String())
	if command.GetNotAfterUnixMs() == 0 {
		command.SetNotAfterUnixMs(now.Add(Life).UnixMilli())
	}
	queued = operatorv1.HostCommand_builder{Command: command, Actor: actor, IssuedUnixMs: now.UnixMilli()}.Build()
	if raw, err = proto.Marshal(queued); err != nil {
		return nil, nil, fmt.Errorf("encode command: %w", err)
	}
	return queued, raw, nil
}

// UnbanOrders are the parts of which a script makes orders to unban, for it learns only then which host claimed which
// prefix. One message's encoding after another's is the encoding of both merged, so that a host's order is Head and, in
// any order, the Parts of its prefixes. All hosts' orders have one id.
type UnbanOrders struct {
	ID    string
	Head  []byte
	Parts [][]byte // one a prefix, each shorter than 256 bytes
}

// Unban makes the parts for packed prefixes.
func Unban(packed [][]byte, actor string, now time.Time) (UnbanOrders, error) {
	queued, head, err := New(&fleetbanv1.Command{}, actor, now)
	if err != nil {
		return UnbanOrders{}, err
	}
	out := UnbanOrders{ID: queued.GetCommand().GetCommandId(), Head: head, Parts: make([][]byte, len(packed))}
	for i, p := range packed {
		order := fleetbanv1.UnbanInJails_builder{Prefixes: [][]byte{p}}.Build()
		part := operatorv1.HostCommand_builder{Command: fleetbanv1.Command_builder{UnbanInJails: order}.Build()}.Build()
		if out.Parts[i], err = proto.Marshal(part); err != nil {
			return UnbanOrders{}, fmt.Errorf("encode command: %w", err)
		}
	}
	return out, nil
}

// Parse reads a stored command.
func Parse(raw string) (*operatorv1.HostCommand, error) {
	c := &operatorv1.HostCommand{}
	if err := proto.Unmarshal([]byte(raw), c); err != nil {
		return nil, fmt.Errorf("decode command: %w", err)
	}
	return c, nil
}
