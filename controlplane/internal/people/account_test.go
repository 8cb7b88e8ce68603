package people

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/fleetban/fleetban/controlplane/internal/keys"
	"github.com/fleetban/fleetban/controlplane/internal/scope"
	"github.com/fleetban/fleetban/controlplane/internal/seal"
	"github.com/fleetban/fleetban/controlplane/internal/store"
)

const another = "gasket.tundra.mulberry"

// Whoever writes to Redis signs in as nobody: not with a password of theirs in somebody's account, nor a link that is mailed
// to them, nor as the first to give an account a password that they took away.
func TestForgedAccounts(t *testing.T) {
	t.Parallel()
	p, server := start(t)
	ctx, client := t.Context(), server.Open().Client()
	var alarms atomic.Int64
	p.seal = seal.New(keys.New([keys.SecretLen]byte{7}), seal.Options{
		Logger: slog.New(slog.DiscardHandler), Alarm: func(context.Context, string, string, string) { alarms.Add(1) },
	})
	first, err := p.FirstOwner(ctx, org, owner, good)
	if err != nil {
		t.Fatal(err)
	}
	mallory := invite(t, p, first.Person, "mallory@example.com", Viewer)
	key := accountKey(first.Person)
	stood := client.HGetAll(ctx, key).Val()
	_, mark, sealed := strings.Cut(stood["password"], " ")
	if !sealed {
		t.Fatalf("the password stands unsealed: %q", stood["password"])
	}
	theirs := client.HGet(ctx, accountKey(mallory.Person), "password").Val()
	hash, err := p.hasher.hash(ctx, another)
	if err != nil {
		t.Fatal(err)
	}
	address, err := ParseEmail("mallory@example.org")
	if err != nil {
		t.Fatal(err)
	}
	restore := func() {
		client.Del(ctx, key, emailKey(address))
		client.HSet(ctx, key, stood)
		// What this test tries is not what is limited here.
		for _, limited := range []string{store.Global("signin", "account", hashOf(owner)), store.Global("signin", "account", hashOf(address.String())), store.Key(first.Person, "checks")} {
			if err := p.rate.Reset(ctx, limited); err != nil {
				t.Error(err)
			}
		}
	}
	for name, forged := range map[string]string{
		"unsigned": hash, "with the address, unsigned": hash + " " + owner, "another's": theirs,
		"another hash under the seal": hash + " " + mark, "nothing": "",
	} {
		client.HSet(ctx, key, "password", forged)
		for _, password := range []string{another, good} {
			if _, err := p.SignIn(ctx, owner, password, netip.Addr{}); !errors.Is(err, ErrBadLogin) {
				t.Errorf("%s: signed in: %v", name, err)
			}
		}
		if err := p.Check(ctx, first.Person, another); !errors.Is(err, ErrBadLogin) {
			t.Errorf("%s: proved: %v", name, err)
		}
		if err := p.ChangePassword(ctx, first.Person, another, "oxbow.plinth.verandah", netip.Addr{}); !errors.Is(err, ErrBadLogin) {
			t.Errorf("%s: changed: %v", name, err)
		}
		restore()
	}
	if alarms.Load() == 0 {
		t.Error("nobody hears of it")
	}
	// The link of a reset to another address.
	client.HSet(ctx, key, "email", address.String())
	client.Set(ctx, emailKey(address), first.Person, 0)
	if _, err := p.BeginReset(ctx, address); err == nil {
		t.Error("a link to a forged address")
	}
	if _, err := p.SignIn(ctx, address.String(), good, netip.Addr{}); !errors.Is(err, ErrBadLogin) {
		t.Errorf("a forged address: %v", err)
	}
	restore()
	// The password taken away, or the account, or the address led to it: an invitation makes another account, which is nobody.
	for name, take := range map[string]func(Email){
		"the password": func(Email) { client.HDel(ctx, key, "password") },
		"the account":  func(Email) { client.Del(ctx, key) },
		"the address":  func(e Email) { client.HDel(ctx, key, "password"); client.Set(ctx, emailKey(e), first.Person, 0) },
	} {
		email := owner
		if name == "the address" {
			email = "mallory@example.org"
		}
		invited, err := ParseEmail(email)
		if err != nil {
			t.Fatal(err)
		}
		take(invited)
		// The right of somebody else's, for the owner's is of another organisation.
		secret, _, err := p.Invite(ctx, org, first.Person, email, Viewer, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, m, err := p.Accept(ctx, secret, another, netip.Addr{}, nil); err != nil || m.Person == first.Person || m.Role != Viewer {
			t.Errorf("%s taken away: %+v, %v", name, m, err)
		}
		restore()
		own, _ := ParseEmail(owner)
		client.Set(ctx, emailKey(own), first.Person, 0)
	}
	if _, err := p.SignIn(ctx, owner, good, netip.Addr{}); err != nil {
		t.Errorf("as it was: %v", err)
	}
}

// Accounts of a release that didn't sign: refused, until who runs the control plane has looked at them and signed.
func TestUnsignedAccounts(t *testing.T) {
	t.Parallel()
	p, server := start(t)
	ctx, client := t.Context(), server.Open().Client()
	strict := p.seal
	p.seal = strict.Accepting()
	first, err := p.FirstOwner(ctx, org, owner, good)
	if err != nil {
		t.Fatal(err)
	}
	if raw := client.HGet(ctx, accountKey(first.Person), "password").Val(); !strings.HasPrefix(raw, "$argon2id$") || strings.Contains(raw, " ") {
		t.Errorf("an older release can't read %q", raw)
	}
	if _, err := p.SignIn(ctx, owner, good, netip.Addr{}); err != nil {
		t.Errorf("while older releases run: %v", err)
	}
	p.seal = strict
	if _, err := p.SignIn(ctx, owner, good, netip.Addr{}); !errors.Is(err, ErrBadLogin) {
		t.Errorf("unsigned: %v", err)
	}
	if _, err := p.Sign(ctx, org); err != nil {
		t.Fatal(err)
	}
	for _, want := range []int{1, 0} {
		if signed, err := p.SignAccounts(ctx, org); err != nil || len(signed) != want || want == 1 && signed[0] != owner {
			t.Fatalf("%v, %v", signed, err)
		}
	}
	if _, err := p.SignIn(ctx, owner, good, netip.Addr{}); err != nil {
		t.Errorf("signed: %v", err)
	}
	if err := p.ChangePassword(ctx, first.Person, good, another, netip.Addr{}); err != nil {
		t.Error(err)
	}
	if _, err := p.SignIn(ctx, owner, another, netip.Addr{}); err != nil {
		t.Errorf("changed: %v", err)
	}
}

// Two invitations of one address that are accepted at once, at two replicas, make one account.
func TestOneAccountForAnAddress(t *testing.T) {
	t.Parallel()
	p, server := start(t)
	ctx := t.Context()
	first, err := p.FirstOwner(ctx, org, owner, good)
	if err != nil {
		t.Fatal(err)
	}
	replicas := []*People{p, New(server.Open(), sealer())}
	var secrets [4]string
	for i := range secrets {
		if secrets[i], _, err = p.Invite(ctx, org, first.Person, "bob@example.com", Viewer, nil); err != nil {
			t.Fatal(err)
		}
	}
	var all sync.WaitGroup
	ids := make([]string, len(secrets))
	for i, secret := range secrets {
		all.Go(func() {
			_, m, err := replicas[i%2].Accept(ctx, secret, another, netip.Addr{}, nil)
			if err != nil {
				t.Error(err)
			}
			ids[i] = m.Person
		})
	}
	all.Wait()
	for _, id := range ids {
		if id != ids[0] {
			t.Errorf("accounts: %v", ids)
		}
	}
	if members, err := p.Members(ctx, org); err != nil || len(members) != 2 {
		t.Errorf("%v, %v", members, err)
	}
}

// A role that changes leaves a restriction to tags as it is; lifting it is said.
func TestRestrictionStays(t *testing.T) {
	t.Parallel()
	p, _ := start(t)
	ctx := t.Context()
	first, err := p.FirstOwner(ctx, org, owner, good)
	if err != nil {
		t.Fatal(err)
	}
	web := scope.Tags{{Key: "team", Value: "web"}}
	bob := invite(t, p, first.Person, "bob@example.com", Operator)
	for _, step := range []struct {
		role Role
		to   Restriction
		want scope.Tags
		err  error
	}{
		{Operator, Restriction{Tags: web}, web, nil},
		{Viewer, Restriction{}, web, nil},
		{Admin, Restriction{}, web, ErrRestricted},
		{Owner, Restriction{}, web, ErrRestricted},
		{Admin, Restriction{Tags: web}, web, ErrInvalid},
		{Operator, Restriction{Lift: true}, nil, nil},
		{Operator, Restriction{}, nil, nil},
		{Viewer, Restriction{Tags: web}, web, nil},
		{Admin, Restriction{Lift: true}, nil, nil},
	} {
		_, _, err := p.SetRole(ctx, org, first.Person, "bob@example.com", step.role, step.to)
		if !errors.Is(err, step.err) {
			t.Errorf("%+v: %v", step, err)
		}
		if m, err := p.Member(ctx, org, bob.Person); err != nil || len(m.Tags) != len(step.want) {
			t.Errorf("%+v: %+v, %v", step, m, err)
		}
	}
}

// An address that two members have, one of whom came by the identity provider, names neither; one that one has names them.
func TestNamedMembers(t *testing.T) {
	t.Parallel()
	p, _ := start(t)
	ctx := t.Context()
	first, err := p.FirstOwner(ctx, org, owner, good)
	if err != nil {
		t.Fatal(err)
	}
	address, err := ParseEmail("carol@example.com")
	if err != nil {
		t.Fatal(err)
	}
	provided, err := p.NewProvided(ctx, address)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := p.Provide(ctx, org, provided, address, Viewer, nil); err != nil {
		t.Fatal(err)
	}
	if m, err := p.Find(ctx, org, "CAROL@example.com"); err != nil || m.Person != provided {
		t.Fatalf("%+v, %v", m, err)
	}
	local := invite(t, p, first.Person, "carol@example.com", Viewer)
	if _, _, err := p.Remove(ctx, org, first.Person, "carol@example.com"); !errors.Is(err, ErrAmbiguous) {
		t.Errorf("either: %v", err)
	}
	if _, _, err := p.Remove(ctx, org, first.Person, provided); err != nil {
		t.Error(err)
	}
	if m, err := p.Find(ctx, org, "carol@example.com"); err != nil || m.Person != local.Person {
		t.Errorf("%+v, %v", m, err)
	}
	for _, nobody := range []string{"nobody@example.com", "", "carol", "01ARZ3NDEKTSV4RRFFQ69G5FAV"} {
		if _, err := p.Find(ctx, org, nobody); !errors.Is(err, ErrNoMember) {
			t.Errorf("%q: %v", nobody, err)
		}
	}
}
