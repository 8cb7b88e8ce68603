package commandlog_test

import (
	"bytes"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/fleetban/fleetban/controlplane/internal/hosts/commandlog"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// What a script joins is what the whole order would have been.
func TestUnbanOrdersJoin(t *testing.T) {
	t.Parallel()
	now := time.UnixMilli(1_800_000_000_000)
	packed := [][]byte{{203, 0, 113, 9, 32}, append(bytes.Repeat([]byte{0x20, 1}, 8), 128), {198, 51, 100, 0, 24}}
	orders, err := commandlog.Unban(packed, "alice", now)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range orders.Parts {
		if len(part) > 255 {
			t.Fatalf("a part of %d bytes", len(part))
		}
	}
	got, err := commandlog.Parse(string(orders.Head) + string(orders.Parts[2]) + string(orders.Parts[1]))
	if err != nil {
		t.Fatal(err)
	}
	want := operatorv1.HostCommand_builder{
		Command: fleetbanv1.Command_builder{
			CommandId: orders.ID, NotAfterUnixMs: now.Add(commandlog.Life).UnixMilli(),
			UnbanInJails: fleetbanv1.UnbanInJails_builder{Prefixes: [][]byte{packed[2], packed[1]}}.Build(),
		}.Build(),
		Actor: "alice", IssuedUnixMs: now.UnixMilli(),
	}.Build()
	if !proto.Equal(got, want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
}
