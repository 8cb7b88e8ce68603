package identity

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A host shows the certificate that is in its folder at that moment, none where there is none, and says what is wrong with one that can't be used.
func TestClientCertificate(t *testing.T) {
	t.Parallel()
	shown := make(chan []*x509.Certificate, 1)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { shown <- r.TLS.PeerCertificates }))
	s.TLS = &tls.Config{ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS12}
	s.StartTLS()
	t.Cleanup(s.Close)
	id := &Identity{URL: s.URL, Pin: PinOf(s.Certificate()), dir: t.TempDir()}
	config, err := id.TLS()
	if err != nil {
		t.Fatal(err)
	}
	connect := func() ([]*x509.Certificate, error) {
		t.Helper()
		transport := &http.Transport{TLSClientConfig: config.Clone()}
		defer transport.CloseIdleConnections()
		res, err := (&http.Client{Transport: transport}).Get(s.URL)
		if err != nil {
			return nil, err
		}
		_ = res.Body.Close()
		return <-shown, nil
	}
	write := func(name string, b []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(id.dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := connect(); err != nil || len(got) != 0 {
		t.Fatalf("without a certificate: %v, %v", got, err)
	}
	for n := range int64(2) {
		_, key, err := ed25519.GenerateKey(nil)
		if err != nil {
			t.Fatal(err)
		}
		template := &x509.Certificate{SerialNumber: big.NewInt(n + 1), Subject: pkix.Name{CommonName: "H1"}, NotAfter: time.Now().Add(time.Hour)}
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		write(certificateFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
		if _, err := connect(); err == nil || !strings.Contains(err.Error(), certificateKeyFile) {
			t.Fatalf("with a certificate whose key isn't there: %v", err)
		}
		write(certificateKeyFile, encodeKey(key))
		if got, err := connect(); err != nil || len(got) != 1 || got[0].SerialNumber.Int64() != n+1 {
			t.Fatalf("with certificate %d: %v, %v", n+1, got, err)
		}
	}
	write(certificateKeyFile, []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"))
	if _, err := connect(); err == nil || !strings.Contains(err.Error(), "openssl genpkey") {
		t.Errorf("with a key of another kind: %v", err)
	}
	write(certificateFile, []byte("nonsense"))
	if _, err := connect(); err == nil {
		t.Error("nonsense is shown")
	}
}
