package sso

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"syscall"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
)

const (
	// askWithin bounds one request to a provider, answerMost what is read of its answer, bytes.
	askWithin  = 10 * time.Second
	answerMost = 1 << 20
	// knownFor is how long what a provider said of itself is taken; its keys are looked up when one is new.
	knownFor  = 10 * time.Minute
	maxKnown  = 1000
	redirects = 3
)

// known is what a provider said of itself.
type known struct {
	provider *oidc.Provider
	at       time.Time
	// namesItself: it says in its answers who it is (RFC 9207).
	namesItself bool
}

// discover asks a provider what it is; fresh: not what it said before.
func (s *SSO) discover(ctx context.Context, issuer string, fresh bool) (known, error) {
	s.mu.Lock()
	k, ok := s.known[issuer]
	s.mu.Unlock()
	if ok && !fresh && s.o.Now().Sub(k.at) < knownFor {
		return k, nil
	}
	ctx, cancel := context.WithTimeout(oidc.ClientContext(ctx, s.client()), askWithin)
	defer cancel()
	provider, err := oidc.NewProvider(ctx, issuer)
	if err != nil {
		return known{}, fmt.Errorf("%w %s: %w", ErrProvider, issuer, brief{err})
	}
	var more struct {
		NamesItself bool `json:"authorization_response_iss_parameter_supported"`
	}
	if err := provider.Claims(&more); err != nil {
		return known{}, fmt.Errorf("%w %s: %w", ErrProvider, issuer, brief{err})
	}
	k = known{provider: provider, at: s.o.Now(), namesItself: more.NamesItself}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.known) >= maxKnown {
		clear(s.known)
	}
	s.known[issuer] = k
	return k, nil
}

// Endpoints are where a provider says that it is asked: for TestSso.
func (s *SSO) Endpoints(ctx context.Context, org string) (authorisation, token string, err error) {
	p, err := s.Get(ctx, org)
	if err != nil {
		return "", "", err
	}
	k, err := s.discover(ctx, p.Issuer, true)
	if err != nil {
		return "", "", err
	}
	e := k.provider.Endpoint()
	return e.AuthURL, e.TokenURL, nil
}

// client asks providers: over TLS, at public addresses, a few redirects far, and for so long and so much.
func (s *SSO) client() *http.Client {
	dialer := &net.Dialer{Timeout: 5 * time.Second, Control: s.mayDial}
	transport := &http.Transport{
		// No proxy: what it would dial isn't seen here.
		DialContext: dialer.DialContext, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: s.o.RootCAs},
		TLSHandshakeTimeout: 5 * time.Second, ResponseHeaderTimeout: askWithin, MaxResponseHeaderBytes: 64 << 10,
		ForceAttemptHTTP2: true, DisableKeepAlives: true,
	}
	return &http.Client{Timeout: askWithin, Transport: bounded{transport}, CheckRedirect: func(_ *http.Request, via []*http.Request) error {
		if len(via) > redirects {
			return errors.New("too many redirects")
		}
		return nil
	}}
}

// mayDial sees each address that is about to be dialled, after names are resolved and redirects followed.
func (s *SSO) mayDial(_, address string, _ syscall.RawConn) error {
	if s.o.AllowPrivate {
		return nil
	}
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("%s is no address", address)
	}
	if !public(at.Addr()) {
		return fmt.Errorf("%s is no public address; the operator of this control plane allows them with --sso-allow-private", at.Addr())
	}
	return nil
}

// special are networks that aren't everyone's, beside those that package netip knows.
var special = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("192.0.0.0/24"), netip.MustParsePrefix("192.0.2.0/24"),
	netip.MustParsePrefix("198.18.0.0/15"), netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("240.0.0.0/4"),
	// IPv6 that leads to IPv4.
	netip.MustParsePrefix("64:ff9b::/96"), netip.MustParsePrefix("64:ff9b:1::/48"), netip.MustParsePrefix("2002::/16"), netip.MustParsePrefix("2001::/32"),
	netip.MustParsePrefix("2001:db8::/32"), netip.MustParsePrefix("fec0::/10"), netip.MustParsePrefix("::/96"),
}

func public(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	if !a.IsGlobalUnicast() || a.IsPrivate() {
		return false
	}
	for _, p := range special {
		if p.Contains(a) {
			return false
		}
	}
	return true
}

// bounded refuses anything but HTTPS, and reads no more than answerMost.
type bounded struct{ next http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (b bounded) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" {
		return nil, errors.New(req.URL.Redacted() + " is not https")
	}
	res, err := b.next.RoundTrip(req)
	if err != nil {
		return nil, err //nolint:wrapcheck // a RoundTripper's
	}
	res.Body = &limited{Reader: io.LimitReader(res.Body, answerMost), Closer: res.Body}
	return res, nil
}

type limited struct {
	io.Reader
	io.Closer
}

// brief is an error of a library that has the provider's whole answer in its text: as much as an answer may have, for logs
// and for who asks what is wrong.
type brief struct{ error }

// Error implements error.
func (b brief) Error() string { return plain(b.error.Error()) }

// Unwrap is for package errors.
func (b brief) Unwrap() error { return b.error }
