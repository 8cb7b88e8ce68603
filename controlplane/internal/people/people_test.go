package people

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/fleetban/fleetban/controlplane/internal/keys"
	"github.com/fleetban/fleetban/controlplane/internal/seal"
	"github.com/fleetban/fleetban/controlplane/internal/store"
	"github.com/fleetban/fleetban/controlplane/internal/store/redistest"
)

const (
	org      = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
	good     = "plinth-verandah-oxbow"
	better   = "gasket.tundra.mulberry"
	owner    = "ada@example.com"
	deadline = time.Minute
)

var home = netip.MustParseAddr("192.0.2.7")

func sealer() *seal.Sealer {
	return seal.New(keys.New([keys.SecretLen]byte{7}), seal.Options{Logger: slog.New(slog.DiscardHandler)})
}

func start(t *testing.T) (*People, *redistest.Server) {
	t.Helper()
	server := redistest.Start(t)
	return New(server.Open(), sealer()), server
}

func TestParseEmail(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"Ada@Example.COM": "ada@example.com", "root@localhost": "root@localhost", "a.b+tag@x-y.example": "a.b+tag@x-y.example",
		"o'neill@xn--bcher-kva.example": "o'neill@xn--bcher-kva.example", strings.Repeat("a", 64) + "@b": strings.Repeat("a", 64) + "@b",
	} {
		if got, err := ParseEmail(in); err != nil || got.String() != want {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
	for _, in := range []string{
		"", "@", "a@", "@b", "ab", "a@b@c", "a b@c", "a@b c", "a@b..c", ".a@b", "a.@b", "a..b@c", "a@-b", "a@b-", "a@.b", "a@b.", `"a"@b`, "a@[127.0.0.1]",
		"a@b\n", "a\x00@b", "a@b\r\nBcc: c@d", "<a@b>", "Ada <a@b>", "a(c)@b", "a@b,c@d",
		// Letters that look like others, or fold to them.
		"ａｄａ@example.com", "adа@example.com", "adm\u0131n@example.com", "\u212aate@example.com", "ada@ex\u00e4mple.com", "ada@example\uff0ecom", "ada\u200b@example.com",
		"ada@example.com\u202e", "\ufeffada@example.com",
		strings.Repeat("a", 65) + "@b", "a@" + strings.Repeat("b", 64), "a@" + strings.Repeat("b.", 130) + "c", "\xff@b",
	} {
		if got, err := ParseEmail(in); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q was taken as %q (%v)", in, got, err)
		}
	}
}

func FuzzParseEmail(f *testing.F) {
	for _, s := range []string{"a@b", "Ada@Example.COM", "a@b@c", "\xff", "K@x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		e, err := ParseEmail(s)
		if err != nil {
			return
		}
		again, err := ParseEmail(strings.ToUpper(e.String()))
		if err != nil || again != e {
			t.Errorf("%q became %q, then %q (%v)", s, e, again, err)
		}
		if len(e.String()) > maxEmailLen || strings.ContainsFunc(e.String(), func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
			t.Errorf("%q became %q", s, e)
		}
	})
}

func TestPasswords(t *testing.T) {
	t.Parallel()
	email, err := ParseEmail("margaret.hamilton@apollo.example")
	if err != nil {
		t.Fatal(err)
	}
	for _, weak := range []string{
		"", "short", "password", "password1234", "P@ssw0rd1234", "Passw0rd!!!!", "qwertyuiop12", "qwertyuiopasdf", "123456789012", "111111111111", "abcabcabcabc",
		"abcdefghijkl", "iloveyou1234", "letmein12345", "administrator", "administrator1", "welcome12345", "Summer2026!!", "football1234", "fleetban1234",
		"margaret.hamilton", "hamilton1234", "apollo123456", "ＰＡＳＳＷＯＲＤ１２３４", "1q2w3e4r5t6y", "drowssap\x00aaaa", "tab\tinside-a-password", "\xff\xfe\xfd12345678901",
		strings.Repeat("x", MaxPasswordBytes+1), strings.Repeat("ab", 40),
	} {
		if err := checkPassword(weak, email); !errors.Is(err, ErrWeakPassword) {
			t.Errorf("%q was taken", weak)
		}
	}
	for _, strong := range []string{
		good, better, "correct horse battery staple plus", "Zk8#vQ2!mN4pL", "über-grüße-straßenbahn", "密码是非常非常长的一句话真的", "x7fq-92ml-0vbt", "my dog ate 14 violins",
	} {
		if err := checkPassword(strong, email); err != nil {
			t.Errorf("%q: %v", strong, err)
		}
	}
}

// Whatever is put into a password, it is judged in bounded time and never panics.
func TestPasswordsOfAnyKind(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		_ = checkPassword(rapid.String().Draw(t, "password"), Email{rapid.StringMatching(`[a-z]{0,5}@[a-z.]{0,9}`).Draw(t, "email")})
	})
}

func TestStoredHashes(t *testing.T) {
	t.Parallel()
	h := newHasher()
	stored, err := h.hash(t.Context(), good)
	if err != nil {
		t.Fatal(err)
	}
	for password, want := range map[string]bool{good: true, good + " ": false, "": false, strings.ToUpper(good): false} {
		if got, err := h.verify(t.Context(), stored, password); err != nil || got != want {
			t.Errorf("%q: %v, %v", password, got, err)
		}
	}
	// A damaged one is nobody's, and costs no more than any other.
	for _, damaged := range []string{
		"", "x", stored[:40], strings.Replace(stored, "m=19456", "m=4294967295", 1), strings.Replace(stored, "t=2", "t=0", 1),
		strings.Replace(stored, "p=1", "p=0", 1), strings.Replace(stored, "argon2id", "argon2i", 1), stored + "$",
	} {
		if got, err := h.verify(t.Context(), damaged, good); err != nil || got {
			t.Errorf("%q: %v, %v", damaged, got, err)
		}
	}
}

// Whatever a record of an account is, it is another address's for every other address, and never asks for more memory or time than the
// bounds of a hash.
func FuzzAccountRecord(f *testing.F) {
	h := newHasher()
	for _, text := range []string{h.decoy + " " + owner, h.decoy, "", " ", " " + owner, "x  y", strings.Replace(h.decoy, "m=19456", "m=4294967295", 1), "$argon2id$v=19$m=8,t=1,p=1$$ " + owner} {
		f.Add(text, owner)
	}
	f.Add("x y z", "y z")
	f.Fuzz(func(t *testing.T, text, email string) {
		hash, ok := parseCredential(text, email)
		if ok && text != hash && text != hash+" "+email || strings.Contains(hash, " ") {
			t.Errorf("%q of %q is taken as %q", text, email, hash)
		}
		if _, other := parseCredential(text, email+"x"); ok && other && strings.Contains(text, " ") {
			t.Errorf("%q is two addresses'", text)
		}
		memory, rounds, lanes, salt, sum, ok := decodeHash(hash)
		if !ok {
			return
		}
		if memory > maxArgonMemory || rounds > maxArgonTime || lanes > maxArgonLanes || memory == 0 || rounds == 0 || lanes == 0 || len(salt) > 64 || len(sum) > 64 || len(sum) < 16 {
			t.Errorf("%q: %d KiB, %d rounds, %d lanes, %d and %d bytes", text, memory, rounds, lanes, len(salt), len(sum))
		}
	})
}

func TestSignIn(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	p, server := start(t)
	if _, err := p.FirstOwner(ctx, org, owner, good); err != nil {
		t.Fatal(err)
	}
	account, err := p.SignIn(ctx, "ADA@example.com", good, home)
	if err != nil || account.Email != owner || len(account.Orgs) != 1 || account.Orgs[0] != org {
		t.Fatal(account, err)
	}
	// An unknown address is answered as a wrong password is, after the same work.
	before := p.hasher.hashed.Load()
	_, wrong := p.SignIn(ctx, owner, better, home)
	cost := p.hasher.hashed.Load() - before
	before = p.hasher.hashed.Load()
	_, unknown := p.SignIn(ctx, "nobody@example.com", better, home)
	if !errors.Is(wrong, ErrBadLogin) || wrong.Error() != unknown.Error() || cost != 1 || p.hasher.hashed.Load()-before != cost {
		t.Errorf("wrong: %v (%d hashes), unknown: %v (%d)", wrong, cost, unknown, p.hasher.hashed.Load()-before)
	}
	// With Redis away nobody is let in, and nobody may guess.
	before = p.hasher.hashed.Load()
	server.Kill()
	if _, err := p.SignIn(ctx, owner, good, home); !errors.Is(err, store.ErrUnavailable) && !errors.Is(err, store.ErrOutcomeUnknown) {
		t.Errorf("with Redis away: %v", err)
	}
	if p.hasher.hashed.Load() != before {
		t.Error("a password was looked at while attempts can't be counted")
	}
}

// The limits are one however many replicas there are: three here.
func TestAttemptsAreLimited(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	server := redistest.Start(t)
	replicas := []*People{New(server.Open(), sealer()), New(server.Open(), sealer()), New(server.Open(), sealer())}
	tries := func(email func(int) string, from func(int) netip.Addr, n int) (heard int) {
		for i := range n {
			address, err := ParseEmail(email(i))
			if err != nil {
				t.Fatal(err)
			}
			err = replicas[i%3].attempt(ctx, address, from(i))
			var often *TooOftenError
			switch {
			case err == nil:
				heard++
			case !errors.As(err, &often) || often.RetryAfter <= 0:
				t.Fatal(err)
			}
		}
		return heard
	}
	elsewhere := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}) }
	// A token comes back every 6 s: a slow machine may see a few more.
	began := time.Now()
	back := func() int { return int(time.Since(began)/(6*time.Second)) + 1 }
	if n := tries(func(int) string { return owner }, elsewhere, 25); n < attemptsPerAccount || n > attemptsPerAccount+max(5, back()) {
		t.Errorf("%d attempts at one account were heard", n)
	}
	// One address, and one IPv6 network, whatever accounts they name.
	network := netip.MustParsePrefix("2001:db8::/64").Addr().As16()
	for name, from := range map[string]func(int) netip.Addr{
		"address": func(int) netip.Addr { return home },
		"network": func(i int) netip.Addr { network[15] = byte(i); return netip.AddrFrom16(network) },
	} {
		n := tries(func(i int) string { return string(rune('a'+i%26)) + string(rune('a'+i/26)) + "@example.com" }, from, 50)
		if n < attemptsPerAddress || n > attemptsPerAddress+15 {
			t.Errorf("%d attempts from one %s were heard", n, name)
		}
	}
}

// A flood of logins has few turns: memory and processors are bounded, and who waits too long is told.
func TestLoginFlood(t *testing.T) {
	h := newHasher()
	var peak atomic.Uint64
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	var watching sync.WaitGroup
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	base := stats.HeapInuse
	done := make(chan struct{})
	watching.Go(func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			var stats runtime.MemStats
			runtime.ReadMemStats(&stats)
			peak.Store(max(peak.Load(), stats.HeapInuse))
		}
	})
	var busy, hashed atomic.Int64
	var flood sync.WaitGroup
	for range 2000 {
		flood.Go(func() {
			switch _, err := h.verify(ctx, "", better); {
			case errors.Is(err, ErrBusy):
				busy.Add(1)
			case err != nil:
				t.Error(err)
			default:
				hashed.Add(1)
			}
		})
	}
	flood.Wait()
	close(done)
	watching.Wait()
	if hashed.Load() == 0 || busy.Load() == 0 {
		t.Errorf("%d were hashed, %d told to come again", hashed.Load(), busy.Load())
	}
	// What is hashed now, and what the collector hasn't taken yet: a few times the memory of one turn, not 2,000 times.
	bound := uint64(6*cap(h.turns)+4) * argonMemory << 10
	if grown := peak.Load() - min(base, peak.Load()); grown > bound {
		t.Errorf("the heap grew by %d MiB, %d are the bound", grown>>20, bound>>20)
	} else {
		t.Logf("%d hashed, %d told to come again, heap grew by %d MiB", hashed.Load(), busy.Load(), grown>>20)
	}
}

// inTurn does something, and again as long as it is told that too many are before it: a busy machine hashes slowly.
func inTurn(do func() error) error {
	for {
		if err := do(); !errors.Is(err, ErrBusy) {
			return err
		}
	}
}

// Exactly one of many first owners wins, on whatever replica, with the same address or with different ones.
func TestFirstOwnerIsOne(t *testing.T) {
	t.Parallel()
	for _, same := range []bool{true, false} {
		server := redistest.Start(t)
		replicas := []*People{New(server.Open(), sealer()), New(server.Open(), sealer())}
		var won atomic.Int64
		var all sync.WaitGroup
		for i := range 8 {
			all.Go(func() {
				email := owner
				if !same {
					email = string(rune('a'+i)) + owner
				}
				err := inTurn(func() error {
					_, err := replicas[i%2].FirstOwner(t.Context(), org, email, good+string(rune('a'+i)))
					return err
				})
				switch {
				case err == nil:
					won.Add(1)
				case !errors.Is(err, ErrOwnerStands) && !errors.Is(err, ErrBadLogin):
					t.Error(err)
				}
			})
		}
		all.Wait()
		members, err := replicas[0].Members(t.Context(), org)
		if won.Load() != 1 || err != nil || len(members) != 1 || members[0].Role != Owner {
			t.Errorf("same address %v: %d won, members %+v (%v)", same, won.Load(), members, err)
		}
	}
}

func invite(t *testing.T, p *People, by, email string, role Role) Member {
	t.Helper()
	secret, _, err := p.Invite(t.Context(), org, by, email, role, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, m, err := p.Accept(t.Context(), secret, good, netip.Addr{}, nil)
	if err != nil || m.Role != role {
		t.Fatal(m, err)
	}
	if _, _, err := p.Accept(t.Context(), secret, good, netip.Addr{}, nil); !errors.Is(err, ErrBadInvitation) {
		t.Errorf("an invitation was used twice: %v", err)
	}
	return m
}

func TestMembers(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	p, _ := start(t)
	first, err := p.FirstOwner(ctx, org, owner, good)
	if err != nil {
		t.Fatal(err)
	}
	admin := invite(t, p, first.Person, "bob@example.com", Admin)
	viewer := invite(t, p, admin.Person, "eve@example.com", Viewer)
	want := func(what string, err, want error) {
		t.Helper()
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
	}
	_, _, err = p.SetRole(ctx, org, admin.Person, owner, Viewer, Restriction{})
	want("an admin changes an owner", err, ErrOwnersOnly)
	_, _, err = p.SetRole(ctx, org, admin.Person, admin.Person, Owner, Restriction{})
	want("an admin makes themselves an owner", err, ErrOwnersOnly)
	_, _, err = p.Invite(ctx, org, admin.Person, "x@example.com", Owner, nil)
	want("an admin invites an owner", err, ErrOwnersOnly)
	_, _, err = p.Invite(ctx, org, viewer.Person, "x@example.com", Viewer, nil)
	want("a viewer invites", err, ErrNotAllowed)
	_, _, err = p.SetRole(ctx, org, viewer.Person, viewer.Person, Admin, Restriction{})
	want("a viewer raises themselves", err, ErrNotAllowed)
	_, _, err = p.SetRole(ctx, org, first.Person, first.Person, Admin, Restriction{})
	want("the last owner steps down", err, ErrLastOwner)
	_, _, err = p.Remove(ctx, org, first.Person, owner)
	want("the last owner goes", err, ErrLastOwner)
	_, _, err = p.SetRole(ctx, org, first.Person, viewer.Person, 9, Restriction{})
	want("a role that isn't", err, ErrInvalid)
	_, _, err = p.Remove(ctx, "01ARZ3NDEKTSV4RRFFQ69G5FAW", first.Person, viewer.Person)
	want("in another organisation", err, ErrNotAllowed)
	_, raised, err := p.SetRole(ctx, org, first.Person, "BOB@example.com", Owner, Restriction{})
	if err != nil || raised.Person != admin.Person || raised.Version <= admin.Version {
		t.Errorf("%+v after %+v: %v", raised, admin, err)
	}
	if _, _, err = p.SetRole(ctx, org, first.Person, owner, Viewer, Restriction{}); err != nil {
		t.Errorf("one of two owners steps down: %v", err)
	}
	// Who invited must be one who may when it is accepted.
	secret, _, err := p.Invite(ctx, org, admin.Person, "late@example.com", Admin, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := p.SetRole(ctx, org, admin.Person, owner, Owner, Restriction{}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := p.Remove(ctx, org, first.Person, admin.Person); err != nil {
		t.Fatal(err)
	}
	if _, _, err := p.Accept(ctx, secret, "short", netip.Addr{}, nil); !errors.Is(err, ErrWeakPassword) {
		t.Errorf("a weak password: %v", err)
	}
	_, _, err = p.Accept(ctx, secret, good, netip.Addr{}, nil)
	want("an invitation by who was removed", err, ErrNotAllowed)
	gone, err := p.SignIn(ctx, "bob@example.com", good, home)
	if err != nil || len(gone.Orgs) != 0 {
		t.Errorf("who was removed: %+v, %v", gone, err)
	}
	// An account that stands is joined with its own password only.
	secret, _, err = p.Invite(ctx, org, first.Person, "bob@example.com", Operator, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = p.Accept(ctx, secret, better, netip.Addr{}, nil)
	want("another password than the account's", err, ErrBadLogin)
	_, back, err := p.Accept(ctx, secret, good, netip.Addr{}, nil)
	if err != nil || back.Person != admin.Person || back.Version < raised.Version {
		t.Errorf("%+v: %v", back, err)
	}
}

// Of many who use one invitation at once, one does.
func TestInvitationIsUsedOnce(t *testing.T) {
	t.Parallel()
	p, _ := start(t)
	first, err := p.FirstOwner(t.Context(), org, owner, good)
	if err != nil {
		t.Fatal(err)
	}
	secret, _, err := p.Invite(t.Context(), org, first.Person, "bob@example.com", Admin, nil)
	if err != nil {
		t.Fatal(err)
	}
	var won atomic.Int64
	var all sync.WaitGroup
	for range 6 {
		all.Go(func() {
			err := inTurn(func() error {
				_, _, err := p.Accept(t.Context(), secret, good, netip.Addr{}, nil)
				return err
			})
			switch {
			case err == nil:
				won.Add(1)
			case !errors.Is(err, ErrBadInvitation):
				t.Error(err)
			}
		})
	}
	all.Wait()
	if won.Load() != 1 {
		t.Errorf("%d used it", won.Load())
	}
}

func TestChangePassword(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	p, _ := start(t)
	first, err := p.FirstOwner(ctx, org, owner, good)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.ChangePassword(ctx, first.Person, better, "a-third-password-xyz", home); !errors.Is(err, ErrBadLogin) {
		t.Errorf("without the present one: %v", err)
	}
	if err := p.ChangePassword(ctx, first.Person, good, "password1234", home); !errors.Is(err, ErrWeakPassword) {
		t.Errorf("to a common one: %v", err)
	}
	if err := p.ChangePassword(ctx, first.Person, good, better, home); err != nil {
		t.Fatal(err)
	}
	if _, err := p.SignIn(ctx, owner, good, home); !errors.Is(err, ErrBadLogin) {
		t.Errorf("with the old one: %v", err)
	}
	if _, err := p.SignIn(ctx, owner, better, home); err != nil {
		t.Errorf("with the new one: %v", err)
	}
	// Of many at once who know the present one, one replaces it: none of the others overwrites what was set since.
	var changed atomic.Int32
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			switch err := p.ChangePassword(ctx, first.Person, better, fmt.Sprintf("violet-anchor-%d-lamp-river", i), home); {
			case err == nil:
				changed.Add(1)
			case !errors.Is(err, ErrBadLogin) && !errors.Is(err, ErrBusy):
				t.Error(err)
			}
		})
	}
	all.Wait()
	if changed.Load() != 1 {
		t.Errorf("%d changed it", changed.Load())
	}
}

func BenchmarkHash(b *testing.B) {
	h := newHasher()
	for b.Loop() {
		if _, err := h.hash(b.Context(), good); err != nil {
			b.Fatal(err)
		}
	}
}
