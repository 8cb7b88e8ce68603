package acmecert

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/acme"

	"github.com/fleetban/fleetban/controlplane/internal/store"
)

const (
	// tokenLife is how long a challenge can be answered, at most.
	tokenLife = 10 * time.Minute
	// challengeWithin bounds looking one up.
	challengeWithin = 5 * time.Second

	viaTLS  = "tls-alpn-01"
	viaHTTP = "http-01"

	wellKnown = "/.well-known/acme-challenge/"
)

// ALPN is what an authority offers alone in its handshake when it looks whether a name leads here.
const ALPN = acme.ALPNProto

// order has the names proven and a certificate made.
func (k *Keeper) order(ctx context.Context) (*tls.Certificate, error) {
	account := &acme.Account{}
	if k.o.Email != "" {
		account.Contact = []string{"mailto:" + k.o.Email}
	}
	// Who configured ACME accepted the authority's terms by name.
	if _, err := k.client.Register(ctx, account, acme.AcceptTOS); err != nil && !errors.Is(err, acme.ErrAccountAlreadyExists) {
		return nil, fmt.Errorf("register with the authority: %w", err)
	}
	order, err := k.client.AuthorizeOrder(ctx, acme.DomainIDs(k.o.Domains...))
	if err != nil {
		return nil, fmt.Errorf("order a certificate: %w", err)
	}
	for _, url := range order.AuthzURLs {
		if err := k.prove(ctx, url); err != nil {
			return nil, err
		}
	}
	if order, err = k.client.WaitOrder(ctx, order.URI); err != nil {
		return nil, fmt.Errorf("wait until the order is ready: %w", err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{}, DNSNames: k.o.Domains}, k.key)
	if err != nil {
		return nil, fmt.Errorf("make the certificate request: %w", err)
	}
	chain, _, err := k.client.CreateCertFromOrder(ctx, order, csr, true)
	if err != nil {
		return nil, fmt.Errorf("have the certificate made: %w", err)
	}
	return k.certificate(chain)
}

// prove shows that one name leads here. Whichever replica the authority comes to finds the token in Redis.
func (k *Keeper) prove(ctx context.Context, url string) error {
	authorization, err := k.client.GetAuthorization(ctx, url)
	if err != nil {
		return fmt.Errorf("ask how a name is to be proven: %w", err)
	}
	if authorization.Status == acme.StatusValid {
		return nil
	}
	name, kind := authorization.Identifier.Value, viaTLS
	if k.o.HTTP {
		kind = viaHTTP
	}
	at := slices.IndexFunc(authorization.Challenges, func(c *acme.Challenge) bool { return c.Type == kind })
	if at < 0 {
		return fmt.Errorf("the authority doesn't take %s as a proof for %s", kind, name)
	}
	challenge := authorization.Challenges[at]
	sealed := k.o.Seal.Seal("acme challenge", "", name, challenge.Token)
	if err := k.o.Store.Client().Set(ctx, store.Global("acme", "challenge", name), sealed, tokenLife).Err(); err != nil {
		return fmt.Errorf("keep the challenge for %s: %w", name, store.Classify(err))
	}
	if _, err := k.client.Accept(ctx, challenge); err != nil {
		return fmt.Errorf("have %s looked at: %w", name, err)
	}
	if _, err := k.client.WaitAuthorization(ctx, authorization.URI); err != nil {
		return fmt.Errorf("prove %s by %s: %w", name, kind, err)
	}
	return nil
}

// token is that of the challenge for a name, which must be one of ours.
func (k *Keeper) token(ctx context.Context, name string) (string, error) {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if !slices.Contains(k.o.Domains, name) {
		return "", fmt.Errorf("%.60q is no name of this control plane", name)
	}
	ctx, cancel := context.WithTimeout(ctx, challengeWithin)
	defer cancel()
	sealed, err := k.o.Store.Client().Get(ctx, store.Global("acme", "challenge", name)).Result()
	if isMissing(err) {
		return "", fmt.Errorf("nobody asked for a proof of %s", name)
	}
	if err != nil {
		return "", fmt.Errorf("read the challenge of %s: %w", name, store.Classify(err))
	}
	return k.o.Seal.Open(ctx, "acme challenge", "", name, sealed)
}

// Challenge implements tls.Config.GetCertificate for connections that offer ALPN: RFC 8737.
func (k *Keeper) Challenge(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	token, err := k.token(hello.Context(), hello.ServerName)
	if err != nil {
		return nil, err
	}
	c, err := k.client.TLSALPN01ChallengeCert(token, strings.ToLower(hello.ServerName), acme.WithKey(k.key))
	if err != nil {
		return nil, fmt.Errorf("answer the challenge: %w", err)
	}
	return &c, nil
}

// HTTPHandler answers challenges over plain HTTP, port 80 to the authority, and sends all others to the same place by HTTPS.
func (k *Keeper) HTTPHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := r.Host
		if host, _, err := net.SplitHostPort(name); err == nil {
			name = host
		}
		w.Header().Set("X-Content-Type-Options", "nosniff")
		asked, challenge := strings.CutPrefix(r.URL.Path, wellKnown)
		if !challenge {
			if !slices.Contains(k.o.Domains, strings.ToLower(name)) || r.Method != http.MethodGet && r.Method != http.MethodHead {
				http.Error(w, "come by HTTPS", http.StatusBadRequest)
				return
			}
			// Put together from its parts: what was asked for need not begin with a slash, and would go on with the name.
			to := url.URL{Scheme: "https", Host: strings.ToLower(name), Path: r.URL.Path, RawPath: r.URL.RawPath, RawQuery: r.URL.RawQuery}
			http.Redirect(w, r, to.String(), http.StatusMovedPermanently) //nolint:gosec // the name is one of ours
			return
		}
		token, err := k.token(r.Context(), name)
		if err != nil || asked != token {
			http.NotFound(w, r)
			return
		}
		answer, err := k.client.HTTP01ChallengeResponse(token)
		if err != nil {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		_, _ = w.Write([]byte(answer)) //nolint:gosec // made of the authority's token, which is what was asked for, and our key
	})
}
