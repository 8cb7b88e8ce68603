package agentapi

import (
	"strings"
	"testing"

	"buf.build/go/protovalidate"
	"google.golang.org/protobuf/proto"

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
		"two sets":              {ackOf(cursorOf("all"), cursorOf("tag:role=web")), true},
		"nothing":               {ackOf(), true},
		"inert":                 {inert, true},
		"of a kind not known":   {unknown, false},
		"exceptions":            {changed, false},
		"a set without a name":  {ackOf(cursorOf("")), false},
		"a name that is longer": {ackOf(cursorOf(strings.Repeat("x", plainSet+1))), false},
	} {
		m, ok := plainAck(encoded(t, c.ack))
		if ok != c.plain {
			t.Errorf("%s: plain is %t", name, ok)
		} else if want := c.ack.Build(); ok && !proto.Equal(m.GetAck(), want) {
			t.Errorf("%s: got %v, want %v", name, m.GetAck(), want)
		}
	}
}

// FuzzPlainAck: what is decoded by hand is what the generated code decodes, and nothing that the rules refuse.
func FuzzPlainAck(f *testing.F) {
	f.Add(encoded(f, ackOf(cursorOf("all"), cursorOf("allow"))))
	f.Add(encoded(f, ackOf()))
	f.Add([]byte{tagAck, 4, tagCursors, 2, tagSet, 0})
	f.Add([]byte{tagAck, 0, tagAck, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, ok := plainAck(b)
		if !ok {
			return
		}
		want := new(fleetbanv1.ConnectRequest)
		if err := proto.Unmarshal(b, want); err != nil || !proto.Equal(m, want) {
			t.Errorf("%x is %v by hand and %v, %v else", b, m, want, err)
		}
		if err := protovalidate.Validate(m); err != nil {
			t.Error(err)
		}
	})
}
