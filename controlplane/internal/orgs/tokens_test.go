package orgs_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/orgs"
	"github.com/fleetban/fleetban/controlplane/internal/scope"
	"github.com/fleetban/fleetban/controlplane/internal/store"
	"github.com/fleetban/fleetban/controlplane/internal/store/redistest"
	optionsv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/options/v1"
)

const person = "01ARZ3NDEKTSV4RRFFQ69G5FAV"

var fleetRead = []optionsv1.Permission{optionsv1.Permission_PERMISSION_FLEET_READ}

func acme(t *testing.T) (*orgs.Orgs, *store.Store, string) {
	t.Helper()
	st := redistest.Start(t).Open()
	o := orgs.New(st, sealer())
	org, err := o.Create(t.Context(), "Acme", watch)
	if err != nil {
		t.Fatal(err)
	}
	return o, st, org.ID
}

func TestPersonalTokens(t *testing.T) {
	t.Parallel()
	o, st, org := acme(t)
	ctx := t.Context()
	tags := scope.Tags{{Key: "team", Value: "web"}}
	made, err := o.AddToken(ctx, org, orgs.NewToken{
		Name: "laptop", Person: person, Email: "ada@example.com", Since: 7, Permissions: fleetRead, Tags: tags, By: "ada@example.com", Life: time.Hour,
	})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(made.Secret, "fbp_") {
		t.Error(made.Secret)
	}
	got, err := o.Token(ctx, made.Secret)
	if err != nil || got.Person != person || got.Since != 7 || !slices.Equal(got.Tags, tags) || got.Expires-got.Created != time.Hour.Milliseconds() || got.Used != 0 {
		t.Fatalf("%+v, %v", got, err)
	}
	// Its use is noted once in a minute, from where it was first.
	for _, from := range []string{"198.51.100.7", "198.51.100.8"} {
		if err := o.NoteUse(ctx, made, netip.MustParseAddr(from), time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	page, next, err := o.PageTokens(ctx, org, person, "", 10)
	if err != nil || next != "" || len(page) != 1 || page[0].UsedFrom != "198.51.100.7" || page[0].Used == 0 || page[0].Secret != "" {
		t.Fatalf("%+v, %v", page, err)
	}
	for range orgs.MaxPersonalTokens - 1 {
		if _, err := o.AddToken(ctx, org, orgs.NewToken{Name: "x", Person: person, Permissions: fleetRead, Life: time.Hour}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := o.AddToken(ctx, org, orgs.NewToken{Name: "x", Person: person, Permissions: fleetRead, Life: time.Hour}); !errors.Is(err, orgs.ErrInvalid) {
		t.Errorf("one too many: %v", err)
	}
	if err := o.RevokePersonal(ctx, org, person); err != nil {
		t.Fatal(err)
	}
	if all, err := o.ListTokens(ctx, org); err != nil || len(all) != 0 {
		t.Errorf("left: %v, %v", all, err)
	}
	if _, err := o.Token(ctx, made.Secret); !errors.Is(err, orgs.ErrUnknownToken) {
		t.Error(err)
	}
	for name, bad := range map[string]orgs.NewToken{
		"too short a life": {Name: "x", Permissions: fleetRead, Life: time.Second},
		"too long a life":  {Name: "x", Permissions: fleetRead, Life: orgs.MaxTokenLife + 1},
		"newline":          {Name: "a\nb", Permissions: fleetRead},
	} {
		if _, err := o.AddToken(ctx, org, bad); !errors.Is(err, orgs.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	assertNoSecrets(t, st, made.Secret)
}

// What is in Redis and isn't signed by this fleet for that place opens nothing.
func TestForgedTokenRecords(t *testing.T) {
	t.Parallel()
	o, st, org := acme(t)
	ctx, client := t.Context(), st.Client()
	reader, err := o.AddToken(ctx, org, orgs.NewToken{Name: "reader", Permissions: fleetRead, Life: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	admin, err := o.AddToken(ctx, org, orgs.NewToken{Name: "admin", Permissions: orgs.AllPermissions(), Life: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	key := store.Key(org, "apitokens")
	stood := client.HGetAll(ctx, key).Val()
	for name, forged := range map[string]string{
		"another's record":  stood[admin.ID],
		"unsigned":          stood[reader.ID][:strings.LastIndex(stood[reader.ID], " ~")],
		"more permissions":  strings.Replace(stood[reader.ID], `"PERMISSION_FLEET_READ"`, `"PERMISSION_FLEET_READ","PERMISSION_BANS_WRITE"`, 1),
		"a seal cut short":  stood[reader.ID][:len(stood[reader.ID])-1],
		"nothing":           "",
		"two seals, one ok": stood[reader.ID] + stood[reader.ID][strings.LastIndex(stood[reader.ID], " ~"):],
	} {
		if err := client.HSet(ctx, key, reader.ID, forged).Err(); err != nil {
			t.Fatal(err)
		}
		if got, err := o.Token(ctx, reader.Secret); !errors.Is(err, orgs.ErrUnknownToken) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	// The list goes on without it, and it can be removed.
	if all, err := o.ListTokens(ctx, org); err != nil || len(all) != 1 {
		t.Errorf("%v, %v", all, err)
	}
	if err := o.RevokeToken(ctx, org, reader.ID); err != nil {
		t.Error(err)
	}
}

// A token that an older release made is good once it is signed, and before that only where it is told to be.
func TestOldTokens(t *testing.T) {
	t.Parallel()
	o, st, org := acme(t)
	ctx, client := t.Context(), st.Client()
	secret, hash := orgs.OldSecret()
	record := map[string]any{"org": org, "id": person, "name": "old", "permissions": []string{"PERMISSION_FLEET_READ"}, "created": 1}
	raw, _ := json.Marshal(record)
	record["hash"] = hash
	listed, _ := json.Marshal(record)
	if err := errors.Join(client.Set(ctx, store.Global("token", hash), raw, 0).Err(), client.HSet(ctx, store.Key(org, "tokens"), person, listed).Err()); err != nil {
		t.Fatal(err)
	}
	if _, err := o.Token(ctx, secret); !errors.Is(err, orgs.ErrUnknownToken) {
		t.Errorf("unsigned: %v", err)
	}
	accepting := orgs.New(st, sealer().Accepting())
	if _, err := accepting.Token(ctx, secret); err != nil {
		t.Error(err)
	}
	if signed, err := o.SignOld(ctx, org); err != nil || len(signed) != 1 || signed[0].Name != "old" {
		t.Fatalf("%v, %v", signed, err)
	}
	if got, err := o.Token(ctx, secret); err != nil || got.Name != "old" || len(got.Permissions) != 1 {
		t.Errorf("signed: %+v, %v", got, err)
	}
	if signed, err := o.SignOld(ctx, org); err != nil || len(signed) != 0 {
		t.Errorf("signed again: %v, %v", signed, err)
	}
	if all, err := o.ListTokens(ctx, org); err != nil || len(all) != 1 {
		t.Errorf("%v, %v", all, err)
	}
	changed := bytes.Replace([]byte(client.Get(ctx, store.Global("token", hash)).Val()), []byte("FLEET_READ"), []byte("BANS_WRITE"), 1)
	if err := client.Set(ctx, store.Global("token", hash), changed, 0).Err(); err != nil {
		t.Fatal(err)
	}
	if _, err := o.Token(ctx, secret); !errors.Is(err, orgs.ErrUnknownToken) {
		t.Errorf("changed: %v", err)
	}
	if err := o.RevokeToken(ctx, org, person); err != nil {
		t.Error(err)
	}
}

// 100,000 tokens: a page and a look cost what they cost with few, and there is no room for more.
func TestManyTokens(t *testing.T) {
	t.Parallel()
	o, st, org := acme(t)
	ctx := t.Context()
	memory := func() int {
		t.Helper()
		var bytes int
		for _, key := range []string{"apitokens", "apitokenids", "apitokenuse"} {
			bytes += int(st.Client().MemoryUsage(ctx, store.Key(org, key), 0).Val())
		}
		return bytes
	}
	secrets, err := o.Seed(ctx, org, orgs.MaxTokens)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := o.AddToken(ctx, org, orgs.NewToken{Name: "one more", Permissions: fleetRead, Life: time.Hour}); !errors.Is(err, orgs.ErrInvalid) {
		t.Errorf("one too many: %v", err)
	}
	best := time.Hour
	for i := 0; i < len(secrets); i += len(secrets) / 200 {
		began := time.Now()
		replica := []*orgs.Orgs{o, orgs.New(st, sealer())}[i%2]
		if got, err := replica.Token(ctx, secrets[i]); err != nil || got.Name != "token "+strconv.Itoa(i) {
			t.Fatal(got, err)
		}
		best = min(best, time.Since(began))
	}
	seen, pages := 0, 0
	last := ""
	for after := ""; ; pages++ {
		page, next, err := o.PageTokens(ctx, org, "", after, 1000)
		if err != nil {
			t.Fatal(err)
		}
		for _, token := range page {
			if token.ID <= last {
				t.Fatalf("%s after %s", token.ID, last)
			}
			last = token.ID
		}
		seen += len(page)
		if after = next; after == "" {
			break
		}
	}
	used := memory()
	if seen != orgs.MaxTokens || used > 100<<20 || best > 20*time.Millisecond {
		t.Errorf("%d listed in %d pages, %d MiB, a look takes %s", seen, pages, used>>20, best)
	}
	t.Logf("%d tokens: %.1f MiB in Redis, a look takes %s at best", seen, float64(used)/(1<<20), best)
}

func FuzzTokenSecret(f *testing.F) {
	for _, s := range []string{"", "fbt_", "fbp_" + strings.Repeat("z", 82), "fbt_" + strings.Repeat("0", 82), orgs.SecretFor(person, person)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		org, id, err := orgs.ParseSecret(s)
		if err == nil && (len(org) != 26 || len(id) != 26) {
			t.Errorf("%q: %q, %q", s, org, id)
		}
		if err != nil && !errors.Is(err, orgs.ErrMalformed) {
			t.Errorf("%q: %v", s, err)
		}
	})
}

func FuzzTokenPage(f *testing.F) {
	for _, s := range []string{"", person, "x", "01ARZ3NDEKTSV4RRFFQ69G5FA\xff"} {
		f.Add(s)
	}
	st := redistest.Start(f).Open()
	o := orgs.New(st, sealer())
	f.Fuzz(func(t *testing.T, s string) {
		if _, _, err := o.PageTokens(context.Background(), person, "", s, 10); err != nil && !errors.Is(err, orgs.ErrPageToken) {
			t.Errorf("%q: %v", s, err)
		}
	})
}
