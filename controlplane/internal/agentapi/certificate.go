package agentapi

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"slices"
	"strings"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/controlplane/internal/apierr"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// certificatesKey finds what the agent showed in its TLS handshake.
type certificatesKey struct{}

func withCertificates(ctx context.Context, state *tls.ConnectionState) context.Context {
	if state == nil || len(state.PeerCertificates) == 0 {
		return ctx
	}
	return context.WithValue(ctx, certificatesKey{}, state.PeerCertificates)
}

// stateOf is of a connection that is TLS; else nil.
func stateOf(conn net.Conn) *tls.ConnectionState {
	secure, ok := conn.(*tls.Conn)
	if !ok {
		return nil
	}
	state := secure.ConnectionState()
	return &state
}

// certified refuses a host that showed no certificate of its own, where hosts need one: issued for clients by an authority that is
// trusted for that, not ended, and with the host's id as its common name or one of its DNS names.
func (s *Service) certified(ctx context.Context, host string) error {
	if s.ClientCAs == nil {
		return nil
	}
	fix := "have a client certificate made whose common name is " + host + ", and put it into the agent's state folder, as client.crt and client.key " +
		"(docs/operations.md, Client certificates of hosts)"
	refuse := func(message string) error {
		return apierr.New(connect.CodeUnauthenticated, fleetbanv1.Reason_REASON_BAD_CREDENTIAL, "", message, fix)
	}
	chain, _ := ctx.Value(certificatesKey{}).([]*x509.Certificate)
	if len(chain) == 0 {
		return refuse("this control plane asks hosts for a client certificate, and none came: the host has none, or a proxy ends its TLS")
	}
	leaf, between := chain[0], x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{
		Roots: s.ClientCAs(), Intermediates: between, CurrentTime: s.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}); err != nil {
		return refuse("the host's client certificate is not good here: " + err.Error())
	}
	if leaf.Subject.CommonName != host && !slices.ContainsFunc(leaf.DNSNames, func(name string) bool { return strings.EqualFold(name, host) }) {
		return refuse("the client certificate is another's: it doesn't name this host's id")
	}
	return nil
}
