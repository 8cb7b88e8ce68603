package sets_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/fleetban/fleetban/controlplane/internal/sets"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/banset"
)

func FuzzUnpackClaims(f *testing.F) {
	f.Add(make([]byte, 25))
	f.Add(bytes.Repeat([]byte{0xff}, 50))
	f.Add([]byte{1, 2, 3})
	f.Fuzz(func(t *testing.T, b []byte) {
		claims, err := sets.UnpackClaims(b)
		if err != nil {
			if !errors.Is(err, sets.ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		if got := sets.PackClaims(claims); !bytes.Equal(got, b) {
			t.Fatalf("%x became %x", b, got)
		}
	})
}

func FuzzUnpackRecords(f *testing.F) {
	var packed []byte
	for _, p := range []string{"203.0.113.9/32", "2001:db8::/64"} {
		packed = sets.AppendRecord(packed, sets.Record{Prefix: pfx(p), Kind: fleetbanv1.RecordKind_RECORD_KIND_PRESENT, Since: 1, Expires: banset.Never})
	}
	f.Add(packed)
	f.Add([]byte{5})
	f.Fuzz(func(t *testing.T, b []byte) {
		records, err := sets.UnpackRecords(b)
		if err != nil {
			return
		}
		var again []byte
		for _, r := range records {
			again = sets.AppendRecord(again, r)
		}
		if !bytes.Equal(again, b) {
			t.Fatalf("%x became %x", b, again)
		}
	})
}
