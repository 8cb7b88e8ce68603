package plane

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1/operatorv1connect"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/v1/fleetbanv1connect"
)

// API is what the administrator calls.
type API struct {
	Bans       operatorv1connect.BanServiceClient
	Fleet      operatorv1connect.FleetServiceClient
	Hosts      operatorv1connect.HostServiceClient
	JoinTokens operatorv1connect.JoinTokenServiceClient
	Agents     fleetbanv1connect.AgentServiceClient
	client     *http.Client
}

// API opens connections of its own.
func (p *Plane) API() *API {
	client := &http.Client{Transport: bearer{p.token, p.transport(p.Dial)}}
	u := p.URL().String()
	return &API{
		Bans:       operatorv1connect.NewBanServiceClient(client, u),
		Fleet:      operatorv1connect.NewFleetServiceClient(client, u),
		Hosts:      operatorv1connect.NewHostServiceClient(client, u),
		JoinTokens: operatorv1connect.NewJoinTokenServiceClient(client, u),
		Agents:     fleetbanv1connect.NewAgentServiceClient(&http.Client{Transport: p.transport(p.Dial)}, u, connect.WithGRPC()),
		client:     client,
	}
}

// Close closes the connections that are idle.
func (a *API) Close() { a.client.CloseIdleConnections() }

func (p *Plane) transport(dial func(context.Context, string, string) (net.Conn, error)) *http.Transport {
	protocols := new(http.Protocols)
	t := &http.Transport{Protocols: protocols, DialContext: dial}
	if p.o.TLS {
		protocols.SetHTTP2(true)
		t.TLSClientConfig = p.tls.Clone()
	} else {
		protocols.SetUnencryptedHTTP2(true)
	}
	return t
}

type bearer struct {
	token string
	*http.Transport
}

func (b bearer) RoundTrip(request *http.Request) (*http.Response, error) {
	request = request.Clone(request.Context())
	request.Header.Set("Authorization", "Bearer "+b.token)
	return b.Transport.RoundTrip(request)
}

// Certificate makes a key and a certificate of that name that signs itself, writes them into files, and returns what trusts it: as those
// who connect to this control plane do.
func Certificate(name, certFile, keyFile string) (*tls.Config, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(48 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	rawKey, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := os.WriteFile(certFile, cert, 0o600); err != nil {
		return nil, err
	}
	if err := os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: rawKey}), 0o600); err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(cert)
	return &tls.Config{RootCAs: pool, ServerName: name, MinVersion: tls.VersionTLS13}, nil
}

// RedisInfo is a section of Redis' INFO.
func (p *Plane) RedisInfo(ctx context.Context, section string) (map[string]string, error) {
	text, err := p.redisCommand(ctx, "INFO", section)
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for line := range strings.Lines(text) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			out[key] = value
		}
	}
	return out, nil
}

// redisCommand sends one command whose answer is a bulk string.
func (p *Plane) redisCommand(ctx context.Context, words ...string) (string, error) {
	conn, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "unix", p.Socket())
	if err != nil {
		return "", err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(conn, Command(words...)); err != nil {
		return "", err
	}
	r := bufio.NewReader(conn)
	head, err := r.ReadString('\n')
	if err != nil {
		return "", err
	}
	n, err := strconv.Atoi(strings.TrimSpace(strings.TrimPrefix(head, "$")))
	if err != nil || n < 0 {
		return "", fmt.Errorf("answer of Redis to %s: %q", words[0], head)
	}
	body := make([]byte, n)
	_, err = io.ReadFull(r, body)
	return string(body), err
}

// Command is a command in Redis' protocol.
func Command(words ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "*%d\r\n", len(words))
	for _, w := range words {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(w), w)
	}
	return b.String()
}
