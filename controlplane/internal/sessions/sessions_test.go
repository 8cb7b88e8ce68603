package sessions

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/fleetban/fleetban/controlplane/internal/auth"
	"github.com/fleetban/fleetban/controlplane/internal/keys"
	"github.com/fleetban/fleetban/controlplane/internal/people"
	"github.com/fleetban/fleetban/controlplane/internal/seal"
	"github.com/fleetban/fleetban/controlplane/internal/store"
	"github.com/fleetban/fleetban/controlplane/internal/store/redistest"
	"github.com/fleetban/fleetban/controlplane/internal/testwait"
)

const org = "01ARZ3NDEKTSV4RRFFQ69G5FAV"

// replica is one that follows what is revoked until the test ends.
func replica(t *testing.T, server *redistest.Server) *Sessions {
	t.Helper()
	st := server.Open()
	s := New(Options{Store: st, Keys: keys.New([keys.SecretLen]byte{7}), People: people.New(st, seal.New(keys.New([keys.SecretLen]byte{7}), seal.Options{Logger: slog.New(slog.DiscardHandler)})), Logger: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { s.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return s
}

func begin(t *testing.T, s *Sessions) Tokens {
	t.Helper()
	m, err := s.people.FirstOwner(t.Context(), org, "ada@example.com", "plinth-verandah-oxbow")
	if err != nil {
		t.Fatal(err)
	}
	tokens, err := s.Begin(t.Context(), m.Person, org, Password, Client{Address: netip.MustParseAddr("192.0.2.1"), Agent: "evil\r\nX-Header: 1\x00" + strings.Repeat("ü", 300)})
	if err != nil {
		t.Fatal(err)
	}
	return tokens
}

func (s *Sessions) lets(t *testing.T, token string) bool {
	t.Helper()
	_, err := s.Authenticate(t.Context(), token)
	if err != nil && !errors.Is(err, auth.ErrBadCredential) && !IsStale(err) {
		t.Fatal(err)
	}
	return err == nil
}

// What the bell didn't bring is read from the list; what stood in it before a replica began, too.
func TestRevokedWithoutBell(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	a, b := replica(t, server), replica(t, server)
	tokens := begin(t, a)
	testwait.For(t, "both let it in", func() bool { return a.lets(t, tokens.Access) && b.lets(t, tokens.Access) })
	// A script that publishes elsewhere: as if every connection that listens had just died.
	if err := revokeScript.Run(t.Context(), a.store, []string{revokedKey, store.Key("revoked", "nobody")}, revokedKept.Milliseconds(), sessionEntry(tokens.Session)).Err(); err != nil {
		t.Fatal(err)
	}
	testwait.For(t, "both refuse it", func() bool { return !a.lets(t, tokens.Access) && !b.lets(t, tokens.Access) })
	late := replica(t, server)
	testwait.For(t, "one that began later has read the list", func() bool { return !IsStale(late.Standing(auth.Principal{Session: auth.Session{Ends: 1 << 50}})) })
	if late.lets(t, tokens.Access) {
		t.Error("a replica that began later lets it in")
	}
}

// A replica that can't learn what ended lets nobody in, and goes on when it can.
func TestRedisAway(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	s := replica(t, server)
	tokens := begin(t, s)
	testwait.For(t, "it is let in", func() bool { return s.lets(t, tokens.Access) })
	server.Kill()
	testwait.For(t, "nobody is let in", func() bool {
		_, err := s.Authenticate(t.Context(), tokens.Access)
		return errors.Is(err, store.ErrUnavailable)
	})
	if _, err := s.Refresh(t.Context(), tokens.Refresh, Client{}); err == nil || errors.Is(err, ErrToken) {
		t.Errorf("refreshed without Redis: %v", err)
	}
	server.Start()
	testwait.For(t, "it is let in again", func() bool { return s.lets(t, tokens.Access) })
}

// What a client says of itself is cut and cleaned; sessions are bounded.
func TestManySessions(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	s := replica(t, server)
	first := begin(t, s)
	list, err := s.List(t.Context(), first.Member.Person)
	if err != nil || len(list) != 1 || len(list[0].Agent) > maxAgent || strings.ContainsAny(list[0].Agent, "\r\n\x00") || list[0].Address != "192.0.2.1" {
		t.Fatalf("%+v, %v", list, err)
	}
	for range maxSessions {
		if _, err := s.Begin(t.Context(), first.Member.Person, org, Password, Client{}); err != nil {
			t.Fatal(err)
		}
	}
	if list, err = s.List(t.Context(), first.Member.Person); err != nil || len(list) != maxSessions {
		t.Errorf("%d sessions, %v", len(list), err)
	}
	if _, err := s.Refresh(t.Context(), first.Refresh, Client{}); !errors.Is(err, ErrToken) {
		t.Errorf("the oldest goes on: %v", err)
	}
}

// The key changes with time, and what the one before signed stays good.
func TestKeysTurn(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_800_000_000, 0).Truncate(keyPeriod)
	now = time.Unix(now.Unix()/int64(keyPeriod/time.Second)*int64(keyPeriod/time.Second), 0)
	clock := now.Add(-time.Second)
	s := newSigner(keys.New([keys.SecretLen]byte{7}), func() time.Time { return clock })
	claims := Claims{RegisteredClaims: jwt.RegisteredClaims{Subject: "p"}, Org: "o", Session: "s"}
	before, err := s.sign(claims)
	if err != nil {
		t.Fatal(err)
	}
	clock = now.Add(time.Second)
	after, err := s.sign(claims)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Split(before, ".")[0] == strings.Split(after, ".")[0] {
		t.Fatal("the key didn't change")
	}
	for i, token := range []string{before, after} {
		if _, err := s.verify(token); err != nil {
			t.Errorf("%d: %v", i, err)
		}
	}
	clock = now.Add(-time.Second)
	if _, err := s.verify(after); err != nil {
		t.Errorf("one whose clock is behind: %v", err)
	}
}

func FuzzTokens(f *testing.F) {
	s := newSigner(keys.New([keys.SecretLen]byte{7}), time.Now)
	refresh, err := s.refreshText(refreshToken{person: org, session: org, turn: 3})
	if err != nil {
		f.Fatal(err)
	}
	access, err := s.sign(Claims{RegisteredClaims: jwt.RegisteredClaims{Subject: "p"}, Org: "o", Session: "s"})
	if err != nil {
		f.Fatal(err)
	}
	for _, text := range []string{refresh, access, "", "..", "fbr_", access[:80]} {
		f.Add(text)
	}
	other := newSigner(keys.New([keys.SecretLen]byte{8}), time.Now)
	f.Fuzz(func(t *testing.T, text string) {
		if _, err := other.verify(text); err == nil {
			t.Errorf("%q was taken", text)
		}
		if parsed, err := s.parseRefresh(text); err == nil {
			if again, err := s.refreshText(parsed); err != nil || again != text {
				t.Errorf("%q is another way to write %q (%v)", text, again, err)
			}
		}
	})
}

// What a call costs: the budget is 100 µs.
func BenchmarkAuthenticate(b *testing.B) {
	s := New(Options{Keys: keys.New([keys.SecretLen]byte{7}), Logger: slog.New(slog.DiscardHandler), Store: nil})
	s.revoked.read.Store(1)
	token, err := s.signer.sign(Claims{
		RegisteredClaims: jwt.RegisteredClaims{Subject: org}, Org: org, Role: people.Owner, Version: 1, Session: org, Ends: 1 << 50, Email: "ada@example.com",
	})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		s.revoked.read.Store(int64(time.Since(s.revoked.begun)) + 1)
		if _, err := s.Authenticate(b.Context(), token); err != nil {
			b.Fatal(err)
		}
	}
}
