// Package idptest runs an OpenID Connect provider for tests, over TLS: real discovery, keys, codes and tokens, and a page where
// people give their passwords.
package idptest

import (
	"context"
	"encoding/pem"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"

	"github.com/zitadel/oidc/v3/example/server/exampleop"
	"github.com/zitadel/oidc/v3/example/server/storage"
	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"
)

// The only client, and how it proves itself.
const (
	ClientID     = "fleetban"
	ClientSecret = "the client's secret" //nolint:gosec // a test's
)

// Password is a person's.
func Password(name string) string { return "idp " + name }

// Provider knows people, and which groups they are in.
type Provider struct {
	*storage.Storage

	// URL is its issuer.
	URL string

	server *httptest.Server
	mu     sync.Mutex
	users  map[string]*storage.User // by name, which is the id too
	groups map[string][]string
}

// Start starts a provider that sends browsers back to redirect; on l, or anywhere if that is nil. Its certificate, which is no
// authority's, is for 127.0.0.1.
func Start(l net.Listener, redirect string) *Provider {
	p := &Provider{users: map[string]*storage.User{}, groups: map[string][]string{}}
	var handler http.Handler
	p.server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { handler.ServeHTTP(w, r) }))
	if l != nil {
		_ = p.server.Listener.Close()
		p.server.Listener = l
	}
	p.URL = "https://" + p.server.Listener.Addr().String()
	p.Storage = storage.NewStorageWithClients(p, map[string]*storage.Client{ClientID: storage.WebClient(ClientID, ClientSecret, redirect)})
	handler = exampleop.SetupServer(p.URL, p, nil, false, op.WithAllowInsecure())
	p.server.StartTLS()
	return p
}

// Close ends it.
func (p *Provider) Close() { p.server.Close() }

// Certificate is what it shows, in PEM.
func (p *Provider) Certificate() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.server.Certificate().Raw})
}

// Person adds a person, or changes what is known of one.
func (p *Provider) Person(name, email string, verified bool, groups ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.users[name] = &storage.User{ID: name, Username: name, Password: Password(name), Email: email, EmailVerified: verified}
	p.groups[name] = groups
}

// GetUserByID implements storage.UserStore.
func (p *Provider) GetUserByID(id string) *storage.User {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.users[id]
}

// GetUserByUsername implements storage.UserStore.
func (p *Provider) GetUserByUsername(name string) *storage.User { return p.GetUserByID(name) }

// ExampleClientID implements storage.UserStore.
func (*Provider) ExampleClientID() string { return "none" }

// SetUserinfoFromToken adds the person's groups to what the provider says when it is asked.
func (p *Provider) SetUserinfoFromToken(ctx context.Context, info *oidc.UserInfo, token, subject, origin string) error {
	if err := p.Storage.SetUserinfoFromToken(ctx, info, token, subject, origin); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	info.AppendClaims("groups", p.groups[subject])
	return nil
}
