package orgs_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/keys"
	"github.com/fleetban/fleetban/controlplane/internal/orgs"
	"github.com/fleetban/fleetban/controlplane/internal/seal"
	"github.com/fleetban/fleetban/controlplane/internal/store"
	"github.com/fleetban/fleetban/controlplane/internal/store/redistest"
	optionsv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/options/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

const watch, enforce = fleetbanv1.Mode_MODE_WATCH, fleetbanv1.Mode_MODE_ENFORCE

// Replicas that start at once on an empty Redis: one organisation, and its token once.
func sealer() *seal.Sealer {
	return seal.New(keys.New([keys.SecretLen]byte{7}), seal.Options{Logger: slog.New(slog.DiscardHandler)})
}

func TestFirstStartIsWonOnce(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	const replicas = 8
	var wg sync.WaitGroup
	starts := make([]orgs.FirstStart, replicas)
	for i := range starts {
		o := orgs.New(server.Open(), sealer())
		wg.Go(func() {
			var err error
			if starts[i], err = o.First(context.Background(), "Acme", enforce); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	o := orgs.New(server.Open(), sealer())
	tokens := 0
	for _, s := range starts {
		if s.Organisation.ID != starts[0].Organisation.ID || s.Organisation.Name != "Acme" || s.Organisation.Mode != enforce {
			t.Fatalf("one start made %+v, another %+v", starts[0].Organisation, s.Organisation)
		}
		if s.AdminToken != "" {
			tokens++
			token, err := o.Token(context.Background(), s.AdminToken)
			if err != nil || token.Org != s.Organisation.ID || len(token.Permissions) != len(orgs.AllPermissions()) {
				t.Fatalf("the winner's token is %+v, %v", token, err)
			}
		}
	}
	if tokens != 1 {
		t.Fatalf("%d starts were given the administrator's token, want 1", tokens)
	}
	if listed, err := o.ListTokens(context.Background(), starts[0].Organisation.ID); err != nil || len(listed) != 1 {
		t.Fatalf("tokens after the race: %v, %v", listed, err)
	}
	if again, err := o.First(context.Background(), "Other", watch); err != nil || again.AdminToken != "" || again.Organisation.Name != "Acme" {
		t.Fatalf("a later start: %+v, %v", again, err)
	}
}

// A start that died after claiming the first organisation leaves it to the next one.
func TestFirstStartIsCompleted(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	st := redistest.Start(t).Open()
	if err := st.Client().Set(ctx, store.Global("first"), "01ARZ3NDEKTSV4RRFFQ69G5FAV", 0).Err(); err != nil {
		t.Fatal(err)
	}
	got, err := orgs.New(st, sealer()).First(ctx, "Acme", watch)
	if err != nil || got.AdminToken == "" || got.Organisation.ID != "01ARZ3NDEKTSV4RRFFQ69G5FAV" {
		t.Fatalf("%+v, %v", got, err)
	}
}

func TestSettings(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	st := redistest.Start(t).Open()
	o := orgs.New(st, sealer())
	org, err := o.Create(ctx, "Acme", watch)
	if err != nil || org.SettingsVersion != 1 {
		t.Fatal(org, err)
	}
	bell := st.Client().SSubscribe(ctx, store.Key(org.ID, "bell"))
	defer func() { _ = bell.Close() }()
	if _, err := bell.Receive(ctx); err != nil { // the subscription itself
		t.Fatal(err)
	}
	rang := func(want bool) {
		t.Helper()
		timeout := 5 * time.Second
		if !want {
			timeout = 50 * time.Millisecond
		}
		if _, err := bell.ReceiveTimeout(ctx, timeout); (err == nil) != want {
			t.Fatalf("the doorbell rang: %v, want %v", err == nil, want)
		}
	}
	changed, did, err := o.SetMode(ctx, org.ID, enforce)
	if err != nil || !did || changed.Mode != enforce || changed.SettingsVersion != 2 {
		t.Fatal(changed, did, err)
	}
	rang(true)
	if same, did, err := o.SetMode(ctx, org.ID, enforce); err != nil || did || same.SettingsVersion != 2 {
		t.Fatal("the same mode again is a change", same, did, err)
	}
	rang(false)
	before := time.Now().UnixMilli()
	paused, err := o.Pause(ctx, org.ID, time.Hour)
	if err != nil || paused.PausedUntil < before+3_600_000 || paused.PausedUntil > time.Now().UnixMilli()+3_600_000 || paused.SettingsVersion != 3 {
		t.Fatal(paused, err)
	}
	rang(true)
	resumed, did, err := o.Resume(ctx, org.ID)
	if err != nil || !did || resumed.PausedUntil != 0 || resumed.SettingsVersion != 4 {
		t.Fatal(resumed, did, err)
	}
	rang(true)
	if s := resumed.Settings(); s.GetVersion() != 4 || s.GetMode() != enforce || s.GetPausedUntilUnixMs() != 0 {
		t.Fatal(s)
	}
	if _, did, err := o.Resume(ctx, org.ID); err != nil || did {
		t.Fatal("resumed twice", err)
	}
	for name, err := range map[string]error{
		"unknown organisation": func() error { _, _, err := o.SetMode(ctx, "01ARZ3NDEKTSV4RRFFQ69G5FAV", watch); return err }(),
		"get":                  func() error { _, err := o.Get(ctx, "01ARZ3NDEKTSV4RRFFQ69G5FAV"); return err }(),
	} {
		if !errors.Is(err, orgs.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, err := range map[string]error{
		"no mode":      func() error { _, _, err := o.SetMode(ctx, org.ID, 0); return err }(),
		"long pause":   func() error { _, err := o.Pause(ctx, org.ID, 8*24*time.Hour); return err }(),
		"no pause":     func() error { _, err := o.Pause(ctx, org.ID, 0); return err }(),
		"no name":      func() error { _, err := o.Create(ctx, "", watch); return err }(),
		"hostile name": func() error { _, err := o.Create(ctx, "a\x1b[2Jb", watch); return err }(),
	} {
		if !errors.Is(err, orgs.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTokens(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	st := redistest.Start(t).Open()
	o := orgs.New(st, sealer())
	org, err := o.Create(ctx, "Acme", watch)
	if err != nil {
		t.Fatal(err)
	}
	read := []optionsv1.Permission{optionsv1.Permission_PERMISSION_FLEET_READ}
	token, err := o.CreateToken(ctx, org.ID, "grafana", read)
	if err != nil {
		t.Fatal(err)
	}
	got, err := o.Token(ctx, token.Secret)
	if err != nil || got.ID != token.ID || got.Org != org.ID || got.Name != "grafana" || len(got.Permissions) != 1 || got.Permissions[0] != read[0] {
		t.Fatal(got, err)
	}
	// Each single wrong character is seen as a typing error, without asking Redis.
	for i := range token.Secret {
		wrong := []byte(token.Secret)
		if wrong[i]++; wrong[i] > 'z' {
			wrong[i] = 'A'
		}
		if _, err := o.Token(ctx, string(wrong)); !errors.Is(err, orgs.ErrMalformed) {
			t.Fatalf("character %d wrong: %v", i, err)
		}
	}
	for _, wrong := range []string{"", "fbt_", "x", token.Secret + "0", strings.Repeat("a", 10_000)} {
		if _, err := o.Token(ctx, wrong); !errors.Is(err, orgs.ErrMalformed) {
			t.Errorf("%.20q: %v", wrong, err)
		}
	}
	join, err := o.CreateJoinToken(ctx, org.ID, orgs.NewJoinToken{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := o.Token(ctx, join.Secret); !errors.Is(err, orgs.ErrMalformed) || !strings.Contains(err.Error(), "join token") {
		t.Errorf("a join token as API token: %v", err)
	}
	other, err := o.Create(ctx, "Other", watch)
	if err != nil {
		t.Fatal(err)
	}
	if err := o.RevokeToken(ctx, other.ID, token.ID); !errors.Is(err, orgs.ErrNotFound) {
		t.Fatalf("another organisation revoked it: %v", err)
	}
	if err := o.RevokeToken(ctx, org.ID, token.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := o.Token(ctx, token.Secret); !errors.Is(err, orgs.ErrUnknownToken) {
		t.Fatalf("after revoking: %v", err)
	}
	for _, bad := range [][]optionsv1.Permission{nil, {optionsv1.Permission_PERMISSION_HOST}, {optionsv1.Permission_PERMISSION_NONE}, {99}} {
		if _, err := o.CreateToken(ctx, org.ID, "x", bad); !errors.Is(err, orgs.ErrInvalid) {
			t.Errorf("permissions %v: %v", bad, err)
		}
	}
	assertNoSecrets(t, st, token.Secret, join.Secret)
}

// What is in Redis is of no use to whoever reads it.
func assertNoSecrets(t *testing.T, st *store.Store, secrets ...string) {
	t.Helper()
	ctx, client := context.Background(), st.Client()
	keys := redistest.Keys(t, client, "*")
	if len(keys) == 0 {
		t.Fatal("nothing is stored")
	}
	for _, key := range keys {
		raw, err := client.Dump(ctx, key).Result()
		if err != nil {
			t.Fatal(err)
		}
		for _, secret := range secrets {
			if strings.Contains(key+raw, secret) || strings.Contains(key+raw, secret[len(secret)-20:]) {
				t.Errorf("the secret stands in %s", key)
			}
		}
	}
}

func key(i int) []byte {
	sum := sha256.Sum256([]byte{byte(i)})
	return sum[:]
}

// Two replicas, twenty hosts, five uses.
func TestJoinTokenRace(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	server := redistest.Start(t)
	a, b := orgs.New(server.Open(), sealer()), orgs.New(server.Open(), sealer())
	org, err := a.Create(ctx, "Acme", watch)
	if err != nil {
		t.Fatal(err)
	}
	token, err := a.CreateJoinToken(ctx, org.ID, orgs.NewJoinToken{Uses: 5, Tags: map[string]string{"role": "web"}, Note: "race", Actor: "test"})
	if err != nil {
		t.Fatal(err)
	}
	const hosts = 20
	results := make([]error, hosts*2)
	var wg sync.WaitGroup
	for i := range results {
		// Each host tries at both replicas at once, as a retry through a balancer does.
		o := a
		if i%2 == 1 {
			o = b
		}
		wg.Go(func() {
			var join orgs.Join
			join, results[i] = o.UseJoinToken(ctx, token.Secret, key(i/2))
			if results[i] == nil && (join.Org != org.ID || join.Tags["role"] != "web" || join.ID != token.ID) {
				t.Errorf("joined %+v", join)
			}
		})
	}
	wg.Wait()
	joined := 0
	for i := 0; i < len(results); i += 2 {
		first, second := results[i], results[i+1]
		if (first == nil) != (second == nil) {
			t.Errorf("host %d: %v at one replica, %v at the other", i/2, first, second)
		}
		if first == nil {
			joined++
			if again, err := b.UseJoinToken(ctx, token.Secret, key(i/2)); err != nil || !again.Again {
				t.Errorf("host %d again, with the token used up: %+v, %v", i/2, again, err)
			}
		} else if !errors.Is(first, orgs.ErrTokenUsedUp) {
			t.Errorf("host %d: %v", i/2, first)
		}
	}
	if joined != 5 {
		t.Fatalf("%d hosts joined with 5 uses", joined)
	}
	if list, err := b.ListJoinTokens(ctx, org.ID); err != nil || len(list) != 1 || list[0].UsesLeft != 0 || list[0].Uses != 5 || list[0].Note != "race" || list[0].Actor != "test" {
		t.Fatal(list, err)
	}
}

func TestJoinTokenEnds(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	st := redistest.Start(t).Open()
	o := orgs.New(st, sealer())
	org, err := o.Create(ctx, "Acme", watch)
	if err != nil {
		t.Fatal(err)
	}
	create := func(n orgs.NewJoinToken) orgs.JoinToken {
		t.Helper()
		token, err := o.CreateJoinToken(ctx, org.ID, n)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	expired := create(orgs.NewJoinToken{Life: time.Minute, Uses: 10})
	if _, err := o.UseJoinToken(ctx, expired.Secret, key(1)); err != nil {
		t.Fatal(err)
	}
	// A minute passes: its recorded end is moved, the one clock that counts is Redis'.
	past := time.Now().Add(-time.Second).UnixMilli()
	if err := st.Client().HSet(ctx, store.Key(org.ID, "join", expired.ID), "expires", past).Err(); err != nil {
		t.Fatal(err)
	}
	for i := 1; i <= 2; i++ {
		if _, err := o.UseJoinToken(ctx, expired.Secret, key(i)); !errors.Is(err, orgs.ErrTokenExpired) {
			t.Fatalf("host %d with an expired token: %v", i, err)
		}
	}
	ttl, err := st.Client().PTTL(ctx, store.Key(org.ID, "join", expired.ID)).Result()
	if err != nil || ttl <= 0 || ttl > 9*24*time.Hour {
		t.Fatalf("an expired token stays for %s, %v", ttl, err)
	}
	revoked, other := create(orgs.NewJoinToken{Uses: 2}), create(orgs.NewJoinToken{})
	if list, err := o.ListJoinTokens(ctx, org.ID); err != nil || len(list) != 2 {
		t.Fatalf("the expired one is listed, or one is missing: %v, %v", list, err)
	}
	if !strings.HasPrefix(revoked.Secret, revoked.ID) || len(revoked.ID) > 16 {
		t.Fatalf("id %s of %s", revoked.ID, revoked.Secret)
	}
	stranger, err := o.Create(ctx, "Stranger", watch)
	if err != nil {
		t.Fatal(err)
	}
	if err := o.RevokeJoinToken(ctx, stranger.ID, revoked.ID); !errors.Is(err, orgs.ErrNotFound) {
		t.Fatalf("another organisation revoked it: %v", err)
	}
	if err := o.RevokeJoinToken(ctx, org.ID, revoked.ID[:9]); err != nil {
		t.Fatal(err)
	}
	if _, err := o.UseJoinToken(ctx, revoked.Secret, key(1)); !errors.Is(err, orgs.ErrUnknownToken) {
		t.Fatalf("revoked: %v", err)
	}
	if err := o.RevokeJoinToken(ctx, org.ID, revoked.ID); !errors.Is(err, orgs.ErrNotFound) {
		t.Fatalf("revoked twice: %v", err)
	}
	if err := o.RevokeJoinToken(ctx, org.ID, "fbj_"); !errors.Is(err, orgs.ErrNotFound) {
		t.Fatalf("revoked by a beginning that all have: %v", err)
	}
	if err := o.RevokeJoinToken(ctx, org.ID, other.Secret); err != nil {
		t.Fatalf("revoked by its secret: %v", err)
	}
	for name, n := range map[string]orgs.NewJoinToken{
		"short life":  {Life: time.Second},
		"long life":   {Life: 400 * 24 * time.Hour},
		"many uses":   {Uses: 100_001},
		"tag name":    {Tags: map[string]string{"Role!": "web"}},
		"tag value":   {Tags: map[string]string{"role": "a b"}},
		"note":        {Note: "x\x00y"},
		"note length": {Note: strings.Repeat("x", 201)},
	} {
		if _, err := o.CreateJoinToken(ctx, org.ID, n); !errors.Is(err, orgs.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestStoreAway(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	server := redistest.Start(t)
	o := orgs.New(server.Open(), sealer())
	org, err := o.Create(ctx, "Acme", watch)
	if err != nil {
		t.Fatal(err)
	}
	token, err := o.CreateToken(ctx, org.ID, "x", orgs.AllPermissions())
	if err != nil {
		t.Fatal(err)
	}
	server.Kill()
	if _, err := o.Token(ctx, token.Secret); !errors.Is(err, store.ErrUnavailable) && !errors.Is(err, store.ErrOutcomeUnknown) {
		t.Fatalf("a token with Redis away: %v", err)
	}
}

// Whoever writes to Redis makes no join token, and gives none more uses, time, tags or another host.
func TestForgedJoinTokens(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	st := redistest.Start(t).Open()
	o := orgs.New(st, sealer())
	org, err := o.Create(ctx, "Acme", watch)
	if err != nil {
		t.Fatal(err)
	}
	made, err := o.CreateJoinToken(ctx, org.ID, orgs.NewJoinToken{Uses: 100, Tags: map[string]string{"team": "web"}})
	if err != nil {
		t.Fatal(err)
	}
	field := store.Key(org.ID, "join", made.ID)
	stood := st.Client().HGetAll(ctx, field).Val()
	other, err := o.CreateJoinToken(ctx, org.ID, orgs.NewJoinToken{Uses: 100})
	if err != nil {
		t.Fatal(err)
	}
	for name, forged := range map[string]map[string]string{
		"more uses": {"uses": "1000", "left": "1000"}, "more time": {"expires": "99999999999999"}, "other tags": {"tags": `{"team":"db"}`}, "no tags": {"tags": `{}`},
		"a host": {"host": "01ARZ3NDEKTSV4RRFFQ69G5FAV"}, "ephemeral": {"ephemeral": "60000"}, "no seal": {"seal": ""}, "another's seal": {"seal": st.Client().HGet(ctx, store.Key(org.ID, "join", other.ID), "seal").Val()},
	} {
		if err := st.Client().HSet(ctx, field, forged).Err(); err != nil {
			t.Fatal(err)
		}
		if join, err := o.UseJoinToken(ctx, made.Secret, key(1)); !errors.Is(err, orgs.ErrUnknownToken) {
			t.Errorf("%s: %+v, %v", name, join, err)
		}
		if list, err := o.ListJoinTokens(ctx, org.ID); err != nil || len(list) != 1 || list[0].ID != other.ID {
			t.Errorf("%s: listed %v, %v", name, list, err)
		}
		if err := st.Client().HSet(ctx, field, stood).Err(); err != nil {
			t.Fatal(err)
		}
	}
	// A record of another token in the place of one whose secret somebody has.
	if err := st.Client().HSet(ctx, store.Key(org.ID, "join", other.ID), "tags", stood["tags"], "seal", stood["seal"]).Err(); err != nil {
		t.Fatal(err)
	}
	if join, err := o.UseJoinToken(ctx, other.Secret, key(1)); !errors.Is(err, orgs.ErrUnknownToken) {
		t.Errorf("moved: %+v, %v", join, err)
	}
	if join, err := o.UseJoinToken(ctx, made.Secret, key(2)); err != nil || join.Tags["team"] != "web" {
		t.Errorf("as it was: %+v, %v", join, err)
	}
	// One of a release that didn't sign is good once who runs the control plane has signed it.
	if err := st.Client().HDel(ctx, field, "seal").Err(); err != nil {
		t.Fatal(err)
	}
	if signed, err := o.SignJoins(ctx, org.ID); err != nil || len(signed) != 1 || signed[0] != made.ID {
		t.Errorf("%v, %v", signed, err)
	}
	if _, err := o.UseJoinToken(ctx, made.Secret, key(3)); err != nil {
		t.Error(err)
	}
}
