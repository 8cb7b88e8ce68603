package server_test

import (
	"bytes"
	"errors"
	"log/slog"
	"testing"

	redisclient "github.com/redis/go-redis/v9"

	"github.com/fleetban/fleetban/controlplane/internal/orgs"
	"github.com/fleetban/fleetban/controlplane/internal/server"
	"github.com/fleetban/fleetban/controlplane/internal/store"
	"github.com/fleetban/fleetban/controlplane/internal/store/redistest"
)

// What sign prints names, with its kind, each thing that becomes valid by it, and nothing else; a second run names none.
func TestSignSaysWhatItSigns(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t)
	backend := server.Backend{RedisURL: redis.URL(), SecretFile: secretFile(t, secretFill), DataDir: t.TempDir()}
	logger := slog.New(slog.NewTextHandler(t.Output(), nil))
	// As a release would have left it that didn't sign.
	unsigned := backend
	unsigned.AcceptUnsigned = true
	if out, err := setupOwner(t, unsigned, ownerEmail, ownerPassword); err != nil {
		t.Fatal(out, err)
	}
	st := redis.Open()
	tokens := orgsOf(st, sealerOf(secretFill))
	org, err := tokens.FirstID(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	join, err := tokens.CreateJoinToken(t.Context(), org, orgs.NewJoinToken{})
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Client().HDel(t.Context(), store.Key(org, "join", join.ID), "seal").Err(); err != nil {
		t.Fatal(err)
	}
	sign := func() string {
		t.Helper()
		var out bytes.Buffer
		if err := server.Sign(t.Context(), server.SignOptions{Backend: backend}, logger, &out); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	prefix := "organisation " + org + ": signed "
	want := prefix + "member " + ownerEmail + ", owner\n" + prefix + "the password of " + ownerEmail + "\n" + prefix + "join token " + join.ID + "\n"
	const rest = " signed. Whom you don't know among them: remove (fleetban members remove, fleetban tokens revoke, fleetban join-token revoke).\n"
	if got := sign(); got != want+"3"+rest {
		t.Errorf("it prints\n%swant\n%s", got, want+"3"+rest)
	}
	if got := sign(); got != "0"+rest {
		t.Errorf("run again it prints\n%s", got)
	}
	// Whoever wrote to Redis can't hide in the list.
	hidden := "x\x1b[2K\rsigned nothing"
	if err := errors.Join(st.Client().ZAdd(t.Context(), store.Key(org, "joins"), redisclient.Z{Member: hidden, Score: 1}).Err(),
		st.Client().HSet(t.Context(), store.Key(org, "join", hidden), "hash", "x").Err()); err != nil {
		t.Fatal(err)
	}
	if got, want := sign(), prefix+`join token "x\x1b[2K\rsigned nothing"`+"\n1"+rest; got != want {
		t.Errorf("it prints\n%q\nwant\n%q", got, want)
	}
}
