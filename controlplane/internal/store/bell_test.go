package store_test

import (
	"errors"
	"reflect"
	"testing"

	"github.com/fleetban/fleetban/controlplane/internal/store"
)

func TestBell(t *testing.T) {
	t.Parallel()
	for _, b := range []store.Bell{
		{Kind: store.BellDelta, Set: "tag:team=web", SetKind: 1, Epoch: 1_800_000_000_000, Version: 7, Digest: 0xff00000000000001, Records: []byte("\n \x00x")},
		{Kind: store.BellDelta, Set: "all", SetKind: 1, Epoch: 1, Version: 7},
		{Kind: store.BellEpoch, Epoch: 9},
		{Kind: store.BellCommand, Host: "H1"},
		{Kind: store.BellResult, Host: "H1"},
		{Kind: store.BellAcks, Host: "*"},
		{Kind: store.BellKick, Host: "H1", Fence: 1_800_000_000_000_000},
		{Kind: store.BellSettings},
		{Kind: store.BellEvents},
		{Kind: store.BellProbe, Token: "T"},
	} {
		got, err := store.ParseBell(b.Encode())
		if err != nil || !reflect.DeepEqual(got, b) {
			t.Errorf("%+v became %+v, %v", b, got, err)
		}
	}
	for _, bad := range []string{"delta", "delta all 1 2 3", "delta all 1 2 3 zz\n", "kick H1", "kick H1 x", "command", "epoch -1"} {
		if got, err := store.ParseBell(bad); !errors.Is(err, store.ErrMalformedBell) {
			t.Errorf("ParseBell(%q) = %+v, %v", bad, got, err)
		}
	}
	// What a later version of the control plane may say.
	if got, err := store.ParseBell("novelty of a later version"); err != nil || got.Kind != "novelty" {
		t.Errorf("unknown kind: %+v, %v", got, err)
	}
	if got, err := store.ParseBell("settings 12"); err != nil || got.Kind != store.BellSettings {
		t.Errorf("settings: %+v, %v", got, err)
	}
}

func FuzzParseBell(f *testing.F) {
	f.Add("delta all 1 2 3 00000000000000ff\nxyz")
	f.Add("kick H1 7")
	f.Fuzz(func(t *testing.T, s string) {
		b, err := store.ParseBell(s)
		if err != nil {
			return
		}
		again, err := store.ParseBell(b.Encode())
		if err != nil || !reflect.DeepEqual(again, b) {
			t.Fatalf("%q: %+v became %+v, %v", s, b, again, err)
		}
	})
}
