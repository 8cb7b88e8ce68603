package seal_test

import (
	"errors"
	"log/slog"
	"testing"

	"pgregory.net/rapid"

	"github.com/fleetban/fleetban/controlplane/internal/keys"
	"github.com/fleetban/fleetban/controlplane/internal/seal"
)

// What is sealed opens in its place and nowhere else.
func TestSeal(t *testing.T) {
	t.Parallel()
	s := seal.New(keys.New([keys.SecretLen]byte{1}), seal.Options{Logger: slog.New(slog.DiscardHandler)})
	other := seal.New(keys.New([keys.SecretLen]byte{2}), seal.Options{Logger: slog.New(slog.DiscardHandler)})
	word := rapid.StringMatching(`[a-z~ ]{0,6}`)
	rapid.Check(t, func(t *rapid.T) {
		text := word.Draw(t, "text")
		place := [3]string{word.Draw(t, "kind"), word.Draw(t, "org"), word.Draw(t, "id")}
		there := [3]string{word.Draw(t, "kind2"), word.Draw(t, "org2"), word.Draw(t, "id2")}
		sealed := s.Seal(place[0], place[1], place[2], text)
		if got, err := s.Open(t.Context(), place[0], place[1], place[2], sealed); err != nil || got != text || !seal.Sealed(sealed) {
			t.Fatalf("%q, %v", got, err)
		}
		if got, err := s.Open(t.Context(), there[0], there[1], there[2], sealed); (err == nil) != (place == there) {
			t.Fatalf("in another place: %q, %v", got, err)
		}
		if _, err := other.Open(t.Context(), place[0], place[1], place[2], sealed); !errors.Is(err, seal.ErrForged) {
			t.Fatal(err)
		}
	})
}

func FuzzOpen(f *testing.F) {
	s := seal.New(keys.New([keys.SecretLen]byte{1}), seal.Options{Logger: slog.New(slog.DiscardHandler)})
	good := s.Seal("k", "o", "i", "text")
	f.Add("")
	f.Add(good)
	f.Fuzz(func(t *testing.T, raw string) {
		if text, err := s.Open(t.Context(), "k", "o", "i", raw); err == nil && raw != good {
			t.Errorf("%q opened as %q", raw, text)
		}
	})
}
