package lab

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"net/netip"
	"strconv"
)

// HTTPClient calls the control plane as the administrator, from the admin's machine, for who speaks HTTP without its clients.
func (l *Lab) HTTPClient() *http.Client { return l.httpClient(l.token) }

// httpClient calls the control plane from the admin's machine, trusting the lab's authority, with a bearer token if it isn't
// empty. Each keeps connections of its own.
func (l *Lab) httpClient(token string) *http.Client {
	return l.httpClientOf(l.Node(Admin), netip.AddrPortFrom(controlPlaneAddr, 443), token)
}

// httpClientOf calls what listens at target, from a machine, by the control plane's name.
func (l *Lab) httpClientOf(from *Node, target netip.AddrPort, token string) *http.Client {
	authorities := x509.NewCertPool()
	authorities.AppendCertsFromPEM([]byte(l.pki.authority))
	return &http.Client{Transport: bearer{token, &http.Transport{
		ForceAttemptHTTP2: true,
		TLSClientConfig:   &tls.Config{RootCAs: authorities, MinVersion: tls.VersionTLS13},
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return from.Dial(ctx, "tcp", target.String(), netip.Addr{})
		},
	}}}
}

type bearer struct {
	token string
	*http.Transport
}

func (b bearer) RoundTrip(request *http.Request) (*http.Response, error) {
	if b.token != "" {
		request = request.Clone(request.Context())
		request.Header.Set("Authorization", "Bearer "+b.token)
	}
	return b.Transport.RoundTrip(request)
}

func addrPort(addr netip.Addr, port int) string {
	return net.JoinHostPort(addr.String(), strconv.Itoa(port))
}
