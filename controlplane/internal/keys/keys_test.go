package keys_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/fleetban/fleetban/controlplane/internal/keys"
	"github.com/fleetban/fleetban/controlplane/internal/store/redistest"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

func TestRecordMAC(t *testing.T) {
	t.Parallel()
	k, other := keys.New([32]byte{1}), keys.New([32]byte{2})
	base := fleetbanv1.Record_builder{Prefix: []byte{203, 0, 113, 9, 32}, Kind: fleetbanv1.RecordKind_RECORD_KIND_PRESENT, SinceUnixMs: 1, ExpiresUnixMs: 2}.Build()
	k.SignRecord("O1", "all", base)
	if len(base.GetMac()) != keys.MACLen || !k.VerifyRecord("O1", "all", base) || !keys.New([32]byte{1}).VerifyRecord("O1", "all", base) {
		t.Fatalf("a good record is refused: %v", base)
	}
	change := func(f func(*fleetbanv1.Record)) *fleetbanv1.Record {
		r := proto.CloneOf(base)
		f(r)
		return r
	}
	for name, bad := range map[string]bool{
		"other secret": other.VerifyRecord("O1", "all", base),
		"other org":    k.VerifyRecord("O2", "all", base),
		"other set":    k.VerifyRecord("O1", "allow", base),
		"prefix":       k.VerifyRecord("O1", "all", change(func(r *fleetbanv1.Record) { r.SetPrefix([]byte{203, 0, 113, 9, 31}) })),
		"kind":         k.VerifyRecord("O1", "all", change(func(r *fleetbanv1.Record) { r.SetKind(fleetbanv1.RecordKind_RECORD_KIND_RETRACTED) })),
		"since":        k.VerifyRecord("O1", "all", change(func(r *fleetbanv1.Record) { r.SetSinceUnixMs(9) })),
		"expires":      k.VerifyRecord("O1", "all", change(func(r *fleetbanv1.Record) { r.SetExpiresUnixMs(9) })),
		"short":        k.VerifyRecord("O1", "all", change(func(r *fleetbanv1.Record) { r.SetMac(r.GetMac()[:15]) })),
		"none":         k.VerifyRecord("O1", "all", change(func(r *fleetbanv1.Record) { r.SetMac(nil) })),
	} {
		if bad {
			t.Errorf("%s: a changed record passes", name)
		}
	}
}

// A set's name and a prefix must not be able to trade bytes.
func TestRecordMACIsCanonical(t *testing.T) {
	t.Parallel()
	k := keys.New([32]byte{1})
	rapid.Check(t, func(t *rapid.T) {
		both := rapid.SliceOfN(rapid.Byte(), 2, 20).Draw(t, "bytes")
		i, j := rapid.IntRange(0, len(both)).Draw(t, "i"), rapid.IntRange(0, len(both)).Draw(t, "j")
		a, b := fleetbanv1.Record_builder{Prefix: both[i:]}.Build(), fleetbanv1.Record_builder{Prefix: both[j:]}.Build()
		k.SignRecord("O", string(both[:i]), a)
		k.SignRecord("O", string(both[:j]), b)
		if (i == j) != (string(a.GetMac()) == string(b.GetMac())) {
			t.Fatalf("split at %d and %d: %x, %x", i, j, a.GetMac(), b.GetMac())
		}
	})
}

func TestSecretFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "secret")
	if _, err := keys.Load(path); !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	prints, made := map[string]bool{}, 0
	for range 8 {
		wg.Go(func() {
			k, created, err := keys.LoadOrCreate(path)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Error(err)
				return
			}
			prints[k.Fingerprint()] = true
			if created {
				made++
			}
		})
	}
	wg.Wait()
	if len(prints) != 1 || made != 1 {
		t.Fatalf("eight starts at once made %d secrets, %d say they made one", len(prints), made)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v", info.Mode(), err)
	}
	if entries, _ := os.ReadDir(filepath.Dir(path)); len(entries) != 1 {
		t.Fatalf("left behind: %v", entries)
	}
	if err := os.WriteFile(path, []byte("hunter2"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := keys.Load(path); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Fatalf("a bad secret: %v", err)
	}
}

func TestAgree(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	st := server.Open()
	ctx := context.Background()
	k, other := keys.New([32]byte{1}), keys.New([32]byte{2})
	if err := k.Agree(ctx, st); err != nil {
		t.Fatal(err)
	}
	if err := other.Agree(ctx, st); !errors.Is(err, keys.ErrDisagree) || !strings.Contains(err.Error(), "--secret-file") {
		t.Fatal(err)
	}
	server.Empty()
	// An emptied Redis takes the secret of who asks first.
	if err := k.Agree(ctx, st); err != nil {
		if err = k.Agree(ctx, st); err != nil {
			t.Fatal(err)
		}
	}
}

func BenchmarkSignRecord(b *testing.B) {
	k := keys.New([32]byte{1})
	r := fleetbanv1.Record_builder{Prefix: []byte{203, 0, 113, 9, 32}, SinceUnixMs: 1, ExpiresUnixMs: 2}.Build()
	for b.Loop() {
		k.SignRecord("O1", "all", r)
	}
}
