package sso

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/fleetban/fleetban/controlplane/internal/keys"
	"github.com/fleetban/fleetban/controlplane/internal/people"
	"github.com/fleetban/fleetban/controlplane/internal/scope"
	"github.com/fleetban/fleetban/controlplane/internal/seal"
	"github.com/fleetban/fleetban/controlplane/internal/store/redistest"
)

const org = "01ARZ3NDEKTSV4RRFFQ69G5FAV"

func start(t *testing.T, o Options) *SSO {
	t.Helper()
	k := keys.New([keys.SecretLen]byte{7})
	o.Store, o.Keys, o.PublicURL = redistest.Start(t).Open(), k, "https://fleet.example.com"
	o.Seal = seal.New(k, seal.Options{Logger: slog.New(slog.DiscardHandler)})
	o.People = people.New(o.Store, o.Seal)
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func tags(t *testing.T, texts ...string) scope.Tags {
	t.Helper()
	out, err := scope.Parse(texts)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestRoleOfGroups(t *testing.T) {
	t.Parallel()
	p := Provider{Roles: []Mapping{
		{Group: "web", Role: people.Operator, Tags: tags(t, "team=web")},
		{Group: "shop", Role: people.Operator, Tags: tags(t, "team=shop")},
		{Group: "ops", Role: people.Operator},
		{Group: "fleet", Role: people.Admin},
		{Group: "guests", Role: people.Viewer, Tags: tags(t, "team=web")},
	}}
	for groups, want := range map[string]string{
		"": "none", "unknown": "none", "WEB": "none", "web": "ROLE_OPERATOR [team=web]", "web shop": "ROLE_OPERATOR [team=shop team=web]", "web ops": "ROLE_OPERATOR []",
		"guests web": "ROLE_OPERATOR [team=web]", "guests": "ROLE_VIEWER [team=web]", "guests web shop ops fleet": "ROLE_ADMIN []",
	} {
		role, got, ok := p.role(strings.Fields(groups))
		text := "none"
		if ok {
			text = fmt.Sprint(role, got.Strings())
		}
		if text != want {
			t.Errorf("%q: %s, want %s", groups, text, want)
		}
	}
	p.Roles = append(p.Roles, Mapping{Role: people.Viewer})
	if role, _, ok := p.role(nil); !ok || role != people.Viewer {
		t.Error("everyone is nobody")
	}
}

// What stands beside the control plane isn't asked on behalf of who may set a provider: also not by a redirect, or a name
// that leads there.
func TestPrivateAddressesAreNotAsked(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]bool{
		"127.0.0.1": false, "10.1.2.3": false, "172.16.0.1": false, "192.168.1.1": false, "169.254.169.254": false, "100.64.0.1": false, "0.0.0.0": false,
		"224.0.0.1": false, "255.255.255.255": false, "::1": false, "::": false, "fe80::1": false, "fd00:ec2::254": false, "::ffff:127.0.0.1": false,
		"::ffff:169.254.169.254": false, "64:ff9b::a9fe:a9fe": false, "2002:7f00:1::": false, "::7f00:1": false, "ff02::1": false,
		"8.8.8.8": true, "2606:4700::1111": true, "::ffff:8.8.8.8": true,
	} {
		if got := public(netip.MustParseAddr(text)); got != want {
			t.Errorf("%s: %v", text, got)
		}
	}
	asked := make(chan string, 10)
	inside := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { asked <- r.URL.Path }))
	t.Cleanup(inside.Close)
	s := start(t, Options{})
	for _, issuer := range []string{inside.URL, strings.Replace(inside.URL, "127.0.0.1", "localhost", 1), strings.Replace(inside.URL, "127.0.0.1", "[::ffff:127.0.0.1]", 1)} {
		err := s.Set(t.Context(), org, Provider{Issuer: issuer, ClientID: "x", ClientSecret: "y", Domains: []string{"example.com"}, Roles: []Mapping{{Role: people.Viewer}}})
		if !errors.Is(err, ErrProvider) || !strings.Contains(err.Error(), "no public address") {
			t.Errorf("%s: %v", issuer, err)
		}
	}
	if len(asked) > 0 {
		t.Errorf("it was asked for %s", <-asked)
	}
	// With leave, too, nothing but HTTPS, not forever, and no more than a little.
	allowed := start(t, Options{AllowPrivate: true})
	plain := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { asked <- r.URL.Path }))
	t.Cleanup(plain.Close)
	if _, err := allowed.client().Get(plain.URL); err == nil || !strings.Contains(err.Error(), "not https") || len(asked) > 0 {
		t.Errorf("plain HTTP: %v", err)
	}
}

// What a stranger's server answers instead of what was asked for stands in logs and errors as a short line.
func TestLongAnswersAreCut(t *testing.T) {
	t.Parallel()
	chatty := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusTeapot)
		_, _ = w.Write([]byte(strings.Repeat("a line\n\x1b[31m", 50_000)))
	}))
	t.Cleanup(chatty.Close)
	roots := x509.NewCertPool()
	roots.AddCert(chatty.Certificate())
	s := start(t, Options{AllowPrivate: true, RootCAs: roots})
	_, err := s.discover(t.Context(), chatty.URL, true)
	if !errors.Is(err, ErrProvider) || !strings.Contains(err.Error(), "418") || len(err.Error()) > 400 || strings.ContainsAny(err.Error(), "\n\x1b") {
		t.Errorf("%d bytes: %.500q", len(fmt.Sprint(err)), fmt.Sprint(err))
	}
}

// Who reads Redis has no secret of a client, and who writes to it has no provider of theirs taken.
func TestSettingsAreSealed(t *testing.T) {
	t.Parallel()
	s := start(t, Options{})
	ctx := context.Background()
	raw := s.aead.Seal(nil, nil, []byte(`{"issuer":"https://idp.example.com","client_id":"x","client_secret":"the secret"}`), []byte(org))
	client := s.o.Store.Client()
	if err := client.Set(ctx, settingKey(org), raw, 0).Err(); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(raw), "secret") {
		t.Error("the client's secret can be read")
	}
	if p, err := s.Get(ctx, org); err != nil || p.ClientSecret != "the secret" {
		t.Fatal(p, err)
	}
	// Of another organisation, changed, made up.
	const other = "01BX5ZZKBKACTAV9WEVGEMMVRZ"
	if err := client.Set(ctx, settingKey(other), raw, 0).Err(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(ctx, other); err == nil {
		t.Error("another organisation's is taken")
	}
	raw[len(raw)-1] ^= 1
	for what, value := range map[string]string{"changed": string(raw), "made up": `{"issuer":"https://evil.example"}`, "empty": ""} {
		if err := client.Set(ctx, settingKey(org), value, 0).Err(); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Get(ctx, org); err == nil || errors.Is(err, ErrNone) {
			t.Errorf("%s: %v", what, err)
		}
		// What can't be read lets nobody in by another way.
		if may, _, err := s.MayUsePassword(ctx, org, "01BX5ZZKBKACTAV9WEVGEMMVRA"); may || err == nil {
			t.Errorf("%s: a password may be used: %v", what, err)
		}
	}
}
