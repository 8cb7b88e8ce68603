package identity

import (
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

const (
	// certificateFile, PEM, is this host's client certificate with its chain, and certificateKeyFile its Ed25519 key, PKCS #8 in PEM, where the
	// control plane asks for one. Whoever makes them puts them here, and new ones in their place: they are read for each connection.
	certificateFile    = "client.crt"
	certificateKeyFile = "client.key"
)

// clientCertificate implements tls.Config.GetClientCertificate: it is asked for by control planes that want one. Keys of other kinds
// aren't read, for the code for them is 100 kB.
func (id *Identity) clientCertificate(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	text, err := readFile(filepath.Join(id.dir, certificateFile))
	if errors.Is(err, os.ErrNotExist) {
		return new(tls.Certificate), nil // none; the control plane says that it wants one, and for which name
	}
	if err != nil {
		return nil, fmt.Errorf("the client certificate can't be read: %w", err)
	}
	b, err := readFile(filepath.Join(id.dir, certificateKeyFile))
	if err != nil {
		return nil, fmt.Errorf("the client certificate's key can't be read: %w", err)
	}
	key, ok := decodeKey(b)
	if !ok {
		return nil, fmt.Errorf("%s holds no Ed25519 key in PKCS #8; openssl genpkey -algorithm ed25519 makes one", filepath.Join(id.dir, certificateKeyFile))
	}
	c := &tls.Certificate{PrivateKey: key}
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		c.Certificate = append(c.Certificate, block.Bytes)
	}
	if len(c.Certificate) > 0 {
		if c.Leaf, err = x509.ParseCertificate(c.Certificate[0]); err == nil {
			if public, ok := c.Leaf.PublicKey.(ed25519.PublicKey); ok && public.Equal(key.Public()) {
				return c, nil
			}
		}
	}
	return nil, fmt.Errorf("%s is not the certificate of the key in %s beside it", filepath.Join(id.dir, certificateFile), certificateKeyFile)
}
