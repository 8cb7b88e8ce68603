package store

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
)

// tlsFiles name what a connection with TLS trusts and shows; "" where the system's own roots are trusted and nothing is shown.
type tlsFiles struct {
	ca        string // certificates, PEM, in place of the system's
	cert, key string // shown to servers that ask for one, which Redis does unless it is told otherwise
}

func (f *tlsFiles) named(name string) *string {
	switch name {
	case "ca_file":
		return &f.ca
	case "cert_file":
		return &f.cert
	case "key_file":
		return &f.key
	default:
		return nil
	}
}

// cut takes the files out of a URL that the client library parses: it doesn't know them.
func (f *tlsFiles) cut(raw string) (string, error) {
	before, query, ok := strings.Cut(raw, "?")
	if !ok {
		return raw, nil
	}
	var kept []string
	for word := range strings.SplitSeq(query, "&") {
		name, value, _ := strings.Cut(word, "=")
		into := f.named(name)
		if into == nil {
			kept = append(kept, word)
			continue
		}
		if *into != "" {
			return "", fmt.Errorf("it gives %q twice", name)
		}
		var err error
		if *into, err = url.QueryUnescape(value); err != nil || *into == "" {
			return "", fmt.Errorf("its %s isn't percent-encoded", name)
		}
	}
	if len(kept) == 0 {
		return before, nil
	}
	return before + "?" + strings.Join(kept, "&"), nil
}

// tlsConfig is nil for a target without TLS. The files are read now, and the certificate again for each new connection: one that
// was replaced is used without a restart.
func (t *target) tlsConfig() (*tls.Config, error) {
	if !t.tls {
		return nil, nil //nolint:nilnil // as the client library has it
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if t.single != nil {
		config = t.single.TLSConfig
		config.MinVersion = tls.VersionTLS12
	}
	if t.files.ca != "" {
		pem, err := os.ReadFile(t.files.ca)
		if err != nil {
			return nil, fmt.Errorf("redis URL: read ca_file: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("redis URL: ca_file %s holds no certificate in PEM", t.files.ca)
		}
	}
	if (t.files.cert == "") != (t.files.key == "") {
		return nil, errors.New("redis URL: cert_file and key_file belong together: give both or neither")
	}
	if t.files.cert != "" {
		load := func() (*tls.Certificate, error) {
			cert, err := tls.LoadX509KeyPair(t.files.cert, t.files.key)
			if err != nil {
				return nil, fmt.Errorf("redis URL: cert_file and key_file: %w", err)
			}
			return &cert, nil
		}
		if _, err := load(); err != nil {
			return nil, err
		}
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }
	}
	return config, nil
}
