package terminals

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/keys"
	"github.com/fleetban/fleetban/controlplane/internal/people"
	"github.com/fleetban/fleetban/controlplane/internal/store/redistest"
)

const (
	verifier = "a verifier that only the program that asks has"
	person   = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
)

var (
	here = netip.MustParseAddr("192.0.2.1")
	bob  = Approval{Person: person, Org: "01ARZ3NDEKTSV4RRFFQ69G5FAW", Session: "01ARZ3NDEKTSV4RRFFQ69G5FAX", Method: "passkey", State: "s"}
)

// clock is what replicas take for Redis' time.
type clock struct{ ahead atomic.Int64 }

func (c *clock) now() time.Time { return time.Now().Add(time.Duration(c.ahead.Load())) }

// replicas are two over one Redis.
func replicas(t *testing.T) (both [2]*Terminals, c *clock) {
	t.Helper()
	server := redistest.Start(t)
	c = &clock{}
	for i := range both {
		made, err := New(Options{Store: server.Open(), Keys: keys.New([keys.SecretLen]byte{7}), Now: c.now, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		both[i] = made
	}
	return both, c
}

func asker() Asker {
	sum := sha256.Sum256([]byte(verifier))
	return Asker{Challenge: base64.RawURLEncoding.EncodeToString(sum[:]), Name: "build\r\n7", Agent: "fleetban/1" + strings.Repeat("ü", 300), Address: here}
}

func (t *Terminals) begin(tt *testing.T, a Asker) string {
	tt.Helper()
	code, err := t.Begin(tt.Context(), a)
	if err != nil {
		tt.Fatal(err)
	}
	return code
}

func wants(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v; want %v", what, err, want)
	}
}

// Begun at one replica, decided at the other, taken at either: once, however many come at once.
func TestTaken(t *testing.T) {
	t.Parallel()
	both, _ := replicas(t)
	code := both[0].begin(t, asker())
	if by, err := both[1].Take(t.Context(), code, verifier); by != nil || err != nil {
		t.Fatalf("before anybody decided: %v, %v", by, err)
	}
	asked, err := both[1].Look(t.Context(), person, here, " "+strings.ToLower(strings.ReplaceAll(code, "-", " ")))
	if err != nil || asked.Code != code || asked.Name != "build7" || asked.Address != here || len(asked.Agent) > maxText || asked.Until.Sub(asked.Began) != Life {
		t.Fatalf("%+v, %v", asked, err)
	}
	if _, err := both[0].Approve(t.Context(), here, code, bob); err != nil {
		t.Fatal(err)
	}
	_, err = both[1].Approve(t.Context(), here, code, Approval{Person: "another", Org: bob.Org})
	wants(t, "a second approval", err, ErrUnknown)
	_, err = both[1].Deny(t.Context(), person, here, code)
	wants(t, "a denial after that", err, ErrUnknown)
	_, err = both[1].Look(t.Context(), person, here, code)
	wants(t, "a look after that", err, ErrUnknown)
	_, err = both[0].Take(t.Context(), code, strings.Repeat("w", 50))
	wants(t, "another program", err, ErrUnknown)
	var won atomic.Int32
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			by, err := both[i%2].Take(t.Context(), code, verifier)
			switch {
			case err == nil && by != nil && *by == bob:
				won.Add(1)
			case !errors.Is(err, ErrUnknown):
				t.Errorf("one of many: %v, %v", by, err)
			}
		})
	}
	all.Wait()
	if won.Load() != 1 {
		t.Errorf("%d programs have it", won.Load())
	}
}

func TestDenied(t *testing.T) {
	t.Parallel()
	both, _ := replicas(t)
	code := both[0].begin(t, asker())
	if _, err := both[1].Deny(t.Context(), person, here, code); err != nil {
		t.Fatal(err)
	}
	_, err := both[0].Approve(t.Context(), here, code, bob)
	wants(t, "an approval after that", err, ErrUnknown)
	_, err = both[0].Take(t.Context(), code, verifier)
	wants(t, "the program", err, ErrDenied)
	_, err = both[1].Take(t.Context(), code, verifier)
	wants(t, "the program, again", err, ErrUnknown)
}

func TestOtherOrganisation(t *testing.T) {
	t.Parallel()
	both, _ := replicas(t)
	a := asker()
	a.Org = bob.Org
	code := both[0].begin(t, a)
	theirs := bob
	theirs.Org = "01ARZ3NDEKTSV4RRFFQ69G5FAZ"
	_, err := both[1].Approve(t.Context(), here, code, theirs)
	wants(t, "in another organisation", err, ErrOtherOrganisation)
	if by, err := both[0].Take(t.Context(), code, verifier); by != nil || err != nil {
		t.Errorf("after that: %v, %v", by, err)
	}
	if _, err := both[1].Approve(t.Context(), here, code, bob); err != nil {
		t.Error(err)
	}
}

// A code ends by what is sealed in it: who writes to Redis doesn't have it last. Redis forgets it by itself, too.
func TestEnds(t *testing.T) {
	t.Parallel()
	both, c := replicas(t)
	code, approved := both[0].begin(t, asker()), both[0].begin(t, asker())
	if _, err := both[0].Approve(t.Context(), here, approved, bob); err != nil {
		t.Fatal(err)
	}
	for _, code := range []string{code, approved} {
		key := both[0].key(parse(code))
		if left, err := both[0].store.Client().PTTL(t.Context(), key).Result(); err != nil || left <= 0 || left > Life {
			t.Errorf("Redis keeps it for %s, %v", left, err)
		}
		if err := both[0].store.Client().Persist(t.Context(), key).Err(); err != nil {
			t.Fatal(err)
		}
	}
	c.ahead.Store(int64(Life))
	_, err := both[1].Look(t.Context(), person, here, code)
	wants(t, "a look", err, ErrUnknown)
	_, err = both[1].Approve(t.Context(), here, code, bob)
	wants(t, "an approval", err, ErrUnknown)
	_, err = both[1].Take(t.Context(), approved, verifier)
	wants(t, "the program", err, ErrUnknown)
}

// Who reads Redis learns no code; who writes there approves nothing: a record is bound to its place and to the fleet's secret.
func TestForged(t *testing.T) {
	t.Parallel()
	both, _ := replicas(t)
	client := both[0].store.Client()
	code, mine := both[0].begin(t, asker()), both[0].begin(t, asker())
	key := both[0].key(parse(code))
	if strings.Contains(key, parse(code)) {
		t.Errorf("the code is in the key %s", key)
	}
	if _, err := both[0].Approve(t.Context(), here, mine, bob); err != nil {
		t.Fatal(err)
	}
	moved, err := client.Get(t.Context(), both[0].key(parse(mine))).Result()
	if err != nil {
		t.Fatal(err)
	}
	other, err := New(Options{Store: both[0].store, Keys: keys.New([keys.SecretLen]byte{8}), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	approved := waiting{Asker: asker(), Until: time.Now().Add(time.Hour).UnixMilli(), Approval: &bob}
	made, err := other.sealed(key, approved)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := json.Marshal(approved)
	if err != nil {
		t.Fatal(err)
	}
	for what, text := range map[string]string{"that of another code": moved, "another secret's": made, "an unsealed one": string(plain), "none": ""} {
		if strings.Contains(text, parse(code)) || strings.Contains(moved, person) {
			t.Errorf("%s can be read", what)
		}
		if err := client.Set(t.Context(), key, text, Life).Err(); err != nil {
			t.Fatal(err)
		}
		_, err := both[1].Take(t.Context(), code, verifier)
		wants(t, what, err, ErrUnknown)
		_, err = both[1].Look(t.Context(), person, here, code)
		wants(t, what+", looked at", err, ErrUnknown)
	}
}

// Limits are one over both replicas: codes that an address makes, what a person and an address look up, a program's questions.
func TestLimits(t *testing.T) {
	t.Parallel()
	both, _ := replicas(t)
	often := func(try func(i int) error) int {
		for i := range 200 {
			var refused *people.TooOftenError
			if err := try(i); errors.As(err, &refused) {
				return i
			} else if err != nil && !errors.Is(err, ErrUnknown) {
				t.Fatal(err)
			}
		}
		return 200
	}
	atMost := func(what string, got, limit int) {
		t.Helper()
		// More is let through in the time that it takes, and never less.
		if got < limit || got > limit+limit/2 {
			t.Errorf("%s: %d are let through; want %d", what, got, limit)
		}
	}
	code := both[0].begin(t, asker())
	atMost("begun at an address", often(func(i int) error {
		a := asker()
		_, err := both[i%2].Begin(t.Context(), a)
		return err
	}), beginsPerAddress-1)
	atMost("looked up by a person", often(func(i int) error {
		_, err := both[i%2].Look(t.Context(), person, netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}), "BBBB-BBBB")
		return err
	}), lookupsPerPerson)
	atMost("looked up at an address", often(func(i int) error {
		_, err := both[i%2].Look(t.Context(), string(rune('a'+i)), here, "BBBB-BBBB")
		return err
	}), lookupsPerAddress)
	atMost("asked by a program", often(func(i int) error {
		_, err := both[i%2].Take(t.Context(), code, verifier)
		return err
	}), takesPerCode)
}

func FuzzCodes(f *testing.F) {
	for _, s := range []string{"BCDF-GHJK", "bcdf ghjk", "", "BCDF-GHJ", "BCDFGHJKL", "ſCDFGHJK", "BCDFGHJ\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, typed string) {
		code := parse(typed)
		if code == "" {
			return
		}
		if len(code) != codeLen || strings.Trim(code, letters) != "" || parse(Shown(code)) != code {
			t.Errorf("%q is taken for %q", typed, code)
		}
	})
}

func TestNewCodes(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for range 1000 {
		code := newCode()
		if parse(code) != code || seen[code] {
			t.Fatalf("%q", code)
		}
		seen[code] = true
	}
}
