package redistest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Secure is what servers and clients that trust nobody else share: an authority, a certificate and a password, each made for
// one test. A nil one asks for nothing.
type Secure struct {
	// User and Password that the servers ask for, CA, Cert and Key the files of a client.
	User, Password, CA, Cert, Key string
	config                        *tls.Config
}

// NewSecure makes them.
func NewSecure(t testing.TB) *Secure {
	t.Helper()
	dir := t.TempDir()
	s := &Secure{
		User: "default", Password: rand.Text(), CA: filepath.Join(dir, "ca.pem"), Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem"),
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	write := func(name, kind string, der []byte) {
		t.Helper()
		must(os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
	}
	authority, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, authority.Public(), authority)
	must(err)
	write(s.CA, "CERTIFICATE", der)
	ca, err = x509.ParseCertificate(der)
	must(err)
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "redis"}, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err = x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), authority)
	must(err)
	write(s.Cert, "CERTIFICATE", der)
	der, err = x509.MarshalPKCS8PrivateKey(key)
	must(err)
	write(s.Key, "PRIVATE KEY", der)
	cert, err := tls.LoadX509KeyPair(s.Cert, s.Key)
	must(err)
	s.config = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: x509.NewCertPool(), Certificates: []tls.Certificate{cert}}
	s.config.RootCAs.AddCert(ca)
	return s
}

// arguments of a redis-server on a port.
func (s *Secure) arguments(port int) []string {
	if s == nil {
		return []string{"--port", strconv.Itoa(port)}
	}
	return []string{
		"--port", "0", "--tls-port", strconv.Itoa(port), "--tls-cert-file", s.Cert, "--tls-key-file", s.Key, "--tls-ca-cert-file", s.CA,
		"--tls-replication", "yes", "--tls-cluster", "yes", "--requirepass", s.Password, "--masterauth", s.Password,
	}
}

// sentinel is the same as lines of a Sentinel's configuration.
func (s *Secure) sentinel(port int) string {
	if s == nil {
		return "port " + strconv.Itoa(port) + "\n"
	}
	var out strings.Builder
	args := s.arguments(port)
	for i := 0; i < len(args); i += 2 {
		if name := strings.TrimPrefix(args[i], "--"); name != "masterauth" && name != "tls-cluster" {
			out.WriteString(name + " " + args[i+1] + "\n")
		}
	}
	return out.String() + "sentinel sentinel-pass " + s.Password + "\n"
}

// url is what store.Open takes: rest is what follows the user.
func (s *Secure) url(scheme, rest string) string {
	if s == nil {
		return scheme + "://" + rest
	}
	query := url.Values{"ca_file": {s.CA}, "cert_file": {s.Cert}, "key_file": {s.Key}}
	if strings.HasSuffix(scheme, "sentinel") {
		query.Set("sentinel_password", s.Password)
	}
	return strings.Replace(scheme, "redis", "rediss", 1) + "://" + url.UserPassword(s.User, s.Password).String() + "@" + rest + "?" + query.Encode()
}

// StartSecure starts one server on a port that asks for TLS, a certificate of the client and a password.
func StartSecure(t testing.TB, secure *Secure) *Server {
	t.Helper()
	n := newNode(t)
	n.secure, n.port = secure, FreePort(t)
	n.args = append(append(secure.arguments(n.port), "--bind", "127.0.0.1"), durable...)
	s := &Server{t: t, url: secure.url("redis", n.Addr()), nodes: []*Node{n}}
	s.Start()
	return s
}
