package people

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/fleetban/fleetban/controlplane/internal/keys"
	"github.com/fleetban/fleetban/controlplane/internal/scope"
	"github.com/fleetban/fleetban/controlplane/internal/seal"
)

// Whoever writes to Redis makes nobody a member, nor more than they are, and is heard of.
func TestForgedMembers(t *testing.T) {
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
	viewer, other := invite(t, p, first.Person, "bob@example.com", Viewer), invite(t, p, first.Person, "eve@example.com", Viewer)
	key := membersKey(org)
	stood := client.HGet(ctx, key, viewer.Person).Val()
	owners := client.HGet(ctx, key, first.Person).Val()
	for name, forged := range map[string]string{
		"unsigned":         "1 99999999999999 1 bob@example.com",
		"role changed":     "1" + stood[1:],
		"another's record": owners,
		"nothing":          "",
	} {
		if err := client.HSet(ctx, key, viewer.Person, forged).Err(); err != nil {
			t.Fatal(err)
		}
		if m, err := p.Member(ctx, org, viewer.Person); err == nil {
			t.Errorf("%s: %+v", name, m)
		}
		if _, _, err := p.SetRole(ctx, org, viewer.Person, other.Person, Admin, Restriction{}); err == nil {
			t.Errorf("%s: a forged member changed a role", name)
		}
		if all, err := p.Members(ctx, org); err != nil || len(all) != 2 {
			t.Errorf("%s: %v, %v", name, all, err)
		}
	}
	if alarms.Load() != 1 {
		t.Errorf("%d alarms, of one member within a minute", alarms.Load())
	}
	// A stranger's record in an empty place.
	if err := client.HSet(ctx, key, "01ARZ3NDEKTSV4RRFFQ69G5FAW", stood).Err(); err != nil {
		t.Fatal(err)
	}
	if m, err := p.Member(ctx, org, "01ARZ3NDEKTSV4RRFFQ69G5FAW"); !errors.Is(err, seal.ErrForged) {
		t.Errorf("moved: %+v, %v", m, err)
	}
	// The last owner is one though forged ones stand beside.
	if err := client.HSet(ctx, key, viewer.Person, "1 99999999999999 1 bob@example.com").Err(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := p.Remove(ctx, org, first.Person, first.Person); !errors.Is(err, ErrLastOwner) {
		t.Errorf("the last owner went: %v", err)
	}
	// An invitation in Redis that nobody made.
	secret := invitePrefix + "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
	record := `{"org":"` + org + `","email":"mallory@example.com","role":1,"by":"` + first.Person + `"}`
	if err := client.Set(ctx, inviteKey(secret), record, 0).Err(); err != nil {
		t.Fatal(err)
	}
	if _, m, err := p.Accept(ctx, secret, good, netip.Addr{}, nil); !errors.Is(err, ErrBadInvitation) {
		t.Errorf("a forged invitation: %+v, %v", m, err)
	}
}

// Members of a release that didn't sign: taken where it is told to be, left readable for that release meanwhile, signed
// by Sign once.
func TestUnsignedMembers(t *testing.T) {
	t.Parallel()
	p, server := start(t)
	ctx, client := t.Context(), server.Open().Client()
	strict := p.seal
	p.seal = strict.Accepting()
	first, err := p.FirstOwner(ctx, org, owner, good)
	if err != nil {
		t.Fatal(err)
	}
	if raw := client.HGet(ctx, membersKey(org), first.Person).Val(); len(strings.Split(raw, " ")) != 4 {
		t.Errorf("an older release can't read %q", raw)
	}
	scoped := invite(t, p, first.Person, "bob@example.com", Operator)
	if _, scoped, err = p.SetRole(ctx, org, first.Person, scoped.Person, Operator, Restriction{Tags: scope.Tags{{Key: "team", Value: "web"}}}); err != nil {
		t.Fatal(err)
	}
	p.seal = strict
	if _, err := p.Member(ctx, org, first.Person); !errors.Is(err, seal.ErrForged) {
		t.Errorf("unsigned: %v", err)
	}
	if signed, err := p.Sign(ctx, org); err != nil || len(signed) != 1 || signed[0].Email != owner {
		t.Fatalf("%v, %v", signed, err)
	}
	all, err := p.Members(ctx, org)
	if err != nil || len(all) != 2 || all[0].Version != first.Version || !slices.Equal(all[1].Tags, scoped.Tags) {
		t.Errorf("%+v, %v", all, err)
	}
}

// Tags of members: only of operators and viewers; an invitation carries them.
func TestMemberTags(t *testing.T) {
	t.Parallel()
	p, _ := start(t)
	ctx := t.Context()
	first, err := p.FirstOwner(ctx, org, owner, good)
	if err != nil {
		t.Fatal(err)
	}
	tags, err := scope.Parse([]string{"team=web", "env=prod", "team=web"})
	if err != nil || len(tags) != 2 {
		t.Fatal(tags, err)
	}
	for _, role := range []Role{Owner, Admin} {
		if _, _, err := p.Invite(ctx, org, first.Person, "x@example.com", role, tags); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", role, err)
		}
	}
	secret, _, err := p.Invite(ctx, org, first.Person, "bob@example.com", Operator, tags)
	if err != nil {
		t.Fatal(err)
	}
	_, m, err := p.Accept(ctx, secret, good, netip.Addr{}, nil)
	if err != nil || !slices.Equal(m.Tags, tags) {
		t.Fatalf("%+v, %v", m, err)
	}
	was, is, err := p.SetRole(ctx, org, first.Person, m.Person, Viewer, Restriction{Lift: true})
	if err != nil || !slices.Equal(was.Tags, tags) || !is.Tags.Whole() || is.Version <= was.Version {
		t.Fatalf("%+v, %+v, %v", was, is, err)
	}
}
