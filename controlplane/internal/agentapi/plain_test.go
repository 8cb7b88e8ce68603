package agentapi

import (
	"slices"
	"strings"
	"testing"

	"buf.build/go/protovalidate"
	"google.golang.org/protobuf/proto"

	"github.com/fleetban/fleetban/controlplane/internal/sets"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

func ackOf(cursors ...*fleetbanv1.SetCursor) fleetbanv1.Ack_builder {
	return fleetbanv1.Ack_builder{Cursors: cursors}
}

func cursorOf(set string) *fleetbanv1.SetCursor {
	return fleetbanv1.SetCursor_builder{Set: set, Epoch: 1_795_000_000_000, Version: 300, Digest: 1<<63 + 5}.Build()
}

func encoded(t testing.TB, b fleetbanv1.Ack_builder) []byte {
	t.Helper()
	raw, err := proto.Marshal(fleetbanv1.ConnectRequest_builder{Ack: b.Build()}.Build())
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestPlainAck(t *testing.T) {
	t.Parallel()
	inert := ackOf(cursorOf("all"))
	inert.Inert = fleetbanv1.Inert_INERT_OFF
	changed := ackOf(cursorOf("all"))
	changed.ExceptionsChanged = true
	unknown := ackOf()
	unknown.Inert = 77
	for name, c := range map[string]struct {
		ack   fleetbanv1.Ack_builder
		plain bool
	}{
		"one set":               {ackOf(cursorOf("all")), true},
		"two sets":              {ackOf(cursorOf("all"), cursorOf("allow")), true},
		"nothing":               {ackOf(), true},
		"inert":                 {inert, true},
		"a set it lacks":        {ackOf(cursorOf("all"), cursorOf("tag:role=web")), true},
		"five sets":             {ackOf(cursorOf("all"), cursorOf("a"), cursorOf("b"), cursorOf("c"), cursorOf("d")), false},
		"of a kind not known":   {unknown, false},
		"exceptions":            {changed, false},
		"a set without a name":  {ackOf(cursorOf("")), false},
		"a name that is longer": {ackOf(cursorOf(strings.Repeat("x", plainSet+1))), false},
	} {
		got, inert, ok := plainAck(encoded(t, c.ack), held, nil)
		if ok != c.plain {
			t.Errorf("%s: plain is %t", name, ok)
		} else if want, wantInert := heldOf(c.ack.Build()); ok && (!slices.Equal(got, want) || inert != wantInert) {
			t.Errorf("%s: got %v, want %v", name, got, want)
		}
	}
}

var held = []string{"all", "allow"}

// heldOf is what a host that holds these sets is taken to have said.
func heldOf(ack *fleetbanv1.Ack) (cursors []sets.Cursor, inert fleetbanv1.Inert) {
	for _, c := range ack.GetCursors() {
		if slices.Contains(held, c.GetSet()) {
			cursors = append(cursors, sets.CursorFrom(c))
		}
	}
	return cursors, ack.GetInert()
}

// FuzzPlainAck: what is decoded by hand is what the generated code decodes, and nothing that the rules refuse.
func FuzzPlainAck(f *testing.F) {
	f.Add(encoded(f, ackOf(cursorOf("all"), cursorOf("allow"))))
	f.Add(encoded(f, ackOf()))
	f.Add([]byte{tagAck, 4, tagCursors, 2, tagSet, 0})
	f.Add([]byte{tagAck, 0, tagAck, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		got, inert, ok := plainAck(b, held, nil)
		if !ok {
			return
		}
		m := new(fleetbanv1.ConnectRequest)
		if err := proto.Unmarshal(b, m); err != nil || m.WhichMessage() != fleetbanv1.ConnectRequest_Ack_case {
			t.Fatalf("%x is an acknowledgement by hand, and %v, %v else", b, m, err)
		}
		if want, wantInert := heldOf(m.GetAck()); !slices.Equal(got, want) || inert != wantInert {
			t.Errorf("%x is %v by hand and %v else", b, got, want)
		}
		if err := protovalidate.Validate(m); err != nil {
			t.Error(err)
		}
	})
}
