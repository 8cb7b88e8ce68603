package server_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/agent/stream"
	"github.com/fleetban/fleetban/controlplane/internal/link"
	"github.com/fleetban/fleetban/controlplane/internal/server"
	"github.com/fleetban/fleetban/controlplane/internal/store/redistest"
	"github.com/fleetban/fleetban/controlplane/internal/testwait"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1/operatorv1connect"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/v1/fleetbanv1connect"
)

// maker makes certificates of hosts.
type maker struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	n    atomic.Int64
}

func newMaker(t *testing.T) *maker {
	t.Helper()
	m := &maker{key: newKey(t)}
	m.cert = m.sign(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: "hosts"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}, m.key)
	return m
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (m *maker) sign(t *testing.T, template *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	template.SerialNumber = big.NewInt(m.n.Add(1))
	parent := m.cert
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), m.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// issue makes a certificate for a host's id that ends after life, for usage.
func (m *maker) issue(t *testing.T, id string, life time.Duration, usage x509.ExtKeyUsage) *tls.Certificate {
	t.Helper()
	key := newKey(t)
	cert := m.sign(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: id}, NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(life),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{usage},
	}, key)
	return &tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
}

func (m *maker) write(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: m.cert.Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Where hosts need client certificates, each replica lets in who shows one of its own, tells others what to do, and asks no browser.
func TestHostCertificates(t *testing.T) {
	t.Parallel()
	good, other := newMaker(t), newMaker(t)
	file := filepath.Join(t.TempDir(), "hosts.pem")
	good.write(t, file)
	config := server.Config{
		Backend:       server.Backend{RedisURL: redistest.Start(t).URL(), SecretFile: secretFile(t, secretFill)},
		MetricsListen: "off", AgentClientCA: file,
	}
	token := setup(t, config.Backend)
	for i := range 2 {
		p := serve(t, config)
		p.awaitReady(t)
		base, asked := "https://"+p.addr(), atomic.Int64{}
		plain := pinned(p.Pin())
		plain.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			asked.Add(1)
			return new(tls.Certificate), nil
		}
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: plain, ForceAttemptHTTP2: true}}
		t.Cleanup(client.CloseIdleConnections)
		var join *connect.Response[operatorv1.CreateJoinTokenResponse]
		testwait.Until(t, "there is a join token", func() (err error) {
			join, err = operatorv1connect.NewJoinTokenServiceClient(client, base, bearer(token)).
				CreateJoinToken(t.Context(), connect.NewRequest(operatorv1.CreateJoinTokenRequest_builder{Uses: 2}.Build()))
			return err
		})
		if asked.Load() != 0 {
			t.Error("who is no host is asked for a certificate")
		}
		var shown atomic.Pointer[tls.Certificate]
		shown.Store(new(tls.Certificate))
		secure := pinned(p.Pin())
		secure.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return shown.Load(), nil }
		a := credentialOf(t, base, p.Pin(), join.Msg.GetSecret(), "host"+strconv.Itoa(i))
		for _, c := range []struct {
			show *tls.Certificate
			says string
		}{
			{new(tls.Certificate), "none came"},
			{other.issue(t, a.id, time.Hour, x509.ExtKeyUsageClientAuth), "not good here"},
			{good.issue(t, a.id, -time.Hour, x509.ExtKeyUsageClientAuth), "expired"},
			{good.issue(t, a.id, time.Hour, x509.ExtKeyUsageServerAuth), "incompatible key usage"},
			{good.issue(t, "01ARZ3NDEKTSV4RRFFQ69G5FAV", time.Hour, x509.ExtKeyUsageClientAuth), "another's"},
		} {
			shown.Store(c.show)
			err := a.tryOnce(t, base, secure)
			if connect.CodeOf(err) != connect.CodeUnauthenticated || !strings.Contains(err.Error(), c.says) {
				t.Errorf("replica %d, %q: %v", i, c.says, err)
			}
			if fix := stream.InfoOf(err).GetFix(); !strings.Contains(fix, a.id) || !strings.Contains(fix, "client.crt") {
				t.Errorf("replica %d, %q: it doesn't say what to do: %q", i, c.says, fix)
			}
			if err := a.rotateOnce(t, base, secure); connect.CodeOf(err) != connect.CodeUnauthenticated || !strings.Contains(err.Error(), c.says) {
				t.Errorf("replica %d, %q, a change of the key: %v", i, c.says, err)
			}
		}
		shown.Store(good.issue(t, a.id, time.Hour, x509.ExtKeyUsageClientAuth))
		// Let in, and then refused for what it says, which is nothing.
		if err := a.tryOnce(t, base, secure); connect.CodeOf(err) != connect.CodeInvalidArgument {
			t.Errorf("replica %d: with its own certificate: %v", i, err)
		}
		if err := a.rotateOnce(t, base, secure); connect.CodeOf(err) != connect.CodeInvalidArgument {
			t.Errorf("replica %d: with its own certificate, a change to a key that is nobody's: %v", i, err)
		}
		if i == 0 {
			continue
		}
		// The agent's own stream; and the authority is another from now on.
		running := a.run(t, base, secure)
		testwait.For(t, "the host is connected", func() bool { return running.Status().Connected })
		other.write(t, file)
		shown.Store(other.issue(t, a.id, time.Hour, x509.ExtKeyUsageClientAuth))
		testwait.Until(t, "the new authority's certificates are taken", func() error {
			if err := a.tryOnce(t, base, secure); connect.CodeOf(err) != connect.CodeInvalidArgument {
				return err
			}
			return nil
		})
		shown.Store(good.issue(t, a.id, time.Hour, x509.ExtKeyUsageClientAuth))
		if err := a.tryOnce(t, base, secure); connect.CodeOf(err) != connect.CodeUnauthenticated {
			t.Errorf("the former authority's certificate: %v", err)
		}
	}
}

// credential is what a host proves itself by.
type credential struct {
	id, audience, grant, name string
	key                       ed25519.PrivateKey
}

func credentialOf(t *testing.T, base, pin, token, name string) *credential {
	t.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	// Repeated with the same key it is the same host.
	var res *connect.Response[fleetbanv1.EnrollResponse]
	testwait.Until(t, "the host is enrolled", func() (err error) {
		res, err = fleetbanv1connect.NewAgentServiceClient(httpClient(t, pin), base, connect.WithGRPC()).
			Enroll(t.Context(), connect.NewRequest(fleetbanv1.EnrollRequest_builder{JoinToken: token, PublicKey: public, Name: name}.Build()))
		return err
	})
	return &credential{id: res.Msg.GetHostId(), audience: res.Msg.GetAudience(), grant: res.Msg.GetGrant(), name: name, key: private}
}

func (c *credential) sign(t *testing.T, header http.Header) {
	t.Helper()
	assertion, err := stream.Assertion(c.key, c.id, c.audience, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	header.Set("Authorization", "Bearer "+assertion)
	header.Set(stream.GrantHeader, c.grant)
}

// offering is a client that offers these protocols.
func offering(t *testing.T, base string, secure *tls.Config, protocols ...string) fleetbanv1connect.AgentServiceClient {
	t.Helper()
	secure = secure.Clone()
	secure.NextProtos = protocols
	transport := &http.Transport{TLSClientConfig: secure, ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	return fleetbanv1connect.NewAgentServiceClient(&http.Client{Transport: transport}, base, connect.WithGRPC())
}

// tryOnce opens a stream as agents do, says nothing of use, and returns what it is told.
func (c *credential) tryOnce(t *testing.T, base string, secure *tls.Config) error {
	t.Helper()
	s := offering(t, base, secure, "h2", link.Protocol).Connect(t.Context())
	defer func() { _, _ = s.CloseRequest(), s.CloseResponse() }()
	c.sign(t, s.RequestHeader())
	_ = s.Send(&fleetbanv1.ConnectRequest{})
	_, err := s.Receive()
	return err
}

// rotateOnce asks for another key, without its proof.
func (c *credential) rotateOnce(t *testing.T, base string, secure *tls.Config) error {
	t.Helper()
	req := connect.NewRequest(fleetbanv1.RotateKeyRequest_builder{PublicKey: make([]byte, ed25519.PublicKeySize), Proof: make([]byte, ed25519.SignatureSize)}.Build())
	c.sign(t, req.Header())
	_, err := offering(t, base, secure, "h2", "http/1.1", link.Call).RotateKey(t.Context(), req)
	return err
}

// run has an agent's own stream until the test ends.
func (c *credential) run(t *testing.T, base string, secure *tls.Config) *stream.Client {
	t.Helper()
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	client := stream.New(stream.Config{
		URL: u, TLS: secure, Key: c.key, HostID: c.id, Audience: c.audience, Grant: c.grant,
		Instance: c.name, Facts: func() *fleetbanv1.HostFacts { return &fleetbanv1.HostFacts{} }, Health: func() *fleetbanv1.Health { return &fleetbanv1.Health{} },
		Sink: newSink(), Source: newSource(), Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = client.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return client
}
