// Package identity is who this host is to its control plane: an Ed25519 key that is made here and never leaves, and what
// enrolment gave for it.
package identity

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

const (
	keyFile      = "identity.key"
	identityFile = "identity.json"
	caFile       = "ca.pem"
	// maxFile bounds what is read of a file.
	maxFile = 1 << 20
)

// ErrNotEnrolled says that this host has no identity yet.
var ErrNotEnrolled = errors.New("this host is not enrolled: run fleetban-agent enroll --url URL --token-file FILE")

// Identity is what enrolment left on this host.
type Identity struct {
	URL            string `json:"url"`
	HostID         string `json:"host_id"`
	HostName       string `json:"host_name"`
	OrganisationID string `json:"organisation_id"`
	Organisation   string `json:"organisation"`
	Grant          string `json:"grant"`
	Audience       string `json:"audience"`
	// Pin is the server's public key, as Pin parses it; empty for the trust of certificates.
	Pin string `json:"pin,omitempty"`
	// PublicKey is of the key that the grant is for, base64; empty before the key was first changed.
	PublicKey string `json:"public_key,omitempty"`

	Key ed25519.PrivateKey `json:"-"`
	dir string
}

// Load reads the identity in dir.
func Load(dir string) (*Identity, error) {
	b, err := readFile(filepath.Join(dir, identityFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, ErrNotEnrolled
	}
	if err != nil {
		return nil, err
	}
	id := &Identity{dir: dir}
	if err := json.Unmarshal(b, id); err != nil {
		return nil, fmt.Errorf("%s is damaged: %w; enrol again with --force", filepath.Join(dir, identityFile), err)
	}
	if id.Key, err = loadKey(dir, keyFile); err != nil {
		return nil, err
	}
	if id.PublicKey != "" && id.PublicKey != publicOf(id.Key) {
		// Killed after the last change of the key was settled, and before its file was renamed.
		next, err := loadKey(dir, nextFile)
		if err != nil || publicOf(next) != id.PublicKey {
			return nil, fmt.Errorf("the key in %s is not the one of its identity.json; enrol again with --force", dir)
		}
		id.Key = next
		_ = os.Rename(filepath.Join(dir, nextFile), filepath.Join(dir, keyFile))
	}
	if id.HostID == "" || id.Grant == "" || id.Audience == "" {
		return nil, fmt.Errorf("%s lacks what enrolment writes; enrol again with --force", filepath.Join(dir, identityFile))
	}
	if _, err := ParseURL(id.URL); err != nil {
		return nil, err
	}
	return id, nil
}

// save writes the identity for uid and gid to read; -1 leaves the owner.
func (id *Identity) save(uid, gid int) error {
	b, err := json.MarshalIndent(id, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(id.dir, identityFile), append(b, '\n'), uid, gid)
}

// TLS is how the control plane is to be recognised: nil for plain http.
func (id *Identity) TLS() (*tls.Config, error) {
	ca, err := readFile(filepath.Join(id.dir, caFile))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	c, err := tlsConfig(id.URL, id.Pin, ca)
	if c != nil {
		c.GetClientCertificate = id.clientCertificate
	}
	return c, err
}

// ParseURL reads the address of a control plane.
func ParseURL(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("%.200q is not the URL of a control plane; write it like https://fleetban.example.org", s)
	}
	u.Path = strings.TrimRight(u.Path, "/")
	return u, nil
}

// PinPrefix begins a pin; the rest is the base64 of the SHA-256 of the certificate's public key (SPKI), as curl's
// --pinnedpubkey takes it.
const PinPrefix = "sha256//"

// ParsePin checks a pin.
func ParsePin(s string) ([sha256.Size]byte, error) {
	var sum [sha256.Size]byte
	raw, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(s, PinPrefix))
	if !strings.HasPrefix(s, PinPrefix) || err != nil || len(raw) != len(sum) {
		return sum, fmt.Errorf("%.100q is not a pin; it looks like %s followed by 44 characters (the control plane prints its own when it starts)", s, PinPrefix)
	}
	copy(sum[:], raw)
	return sum, nil
}

// PinOf is the pin of a certificate.
func PinOf(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return PinPrefix + base64.StdEncoding.EncodeToString(sum[:])
}

// tlsConfig trusts, by the first of these that is given: the server's very key (a pin); the authorities in ca; the system's.
func tlsConfig(address, pin string, ca []byte) (*tls.Config, error) {
	if strings.HasPrefix(address, "http://") {
		return nil, nil
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if pin != "" {
		want, err := ParsePin(pin)
		if err != nil {
			return nil, err
		}
		// The key is what is trusted: a self-signed certificate has no chain to check, and its name proves nothing more.
		c.InsecureSkipVerify = true
		c.VerifyConnection = func(s tls.ConnectionState) error {
			if len(s.PeerCertificates) > 0 && sha256.Sum256(s.PeerCertificates[0].RawSubjectPublicKeyInfo) == want {
				return nil
			}
			got := "none"
			if len(s.PeerCertificates) > 0 {
				got = PinOf(s.PeerCertificates[0])
			}
			return fmt.Errorf("the server's key is %s, not the pinned one: someone may be in between, or the control plane has a new key (then enrol again with --force and the new --pin)", got)
		}
	}
	if len(ca) > 0 {
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(ca) {
			return nil, errors.New("the --ca-file holds no PEM certificate")
		}
	}
	return c, nil
}

// makeKey reads the key in dir or makes one.
func makeKey(dir string, uid, gid int) (ed25519.PrivateKey, error) {
	key, err := loadKey(dir, keyFile)
	if err == nil || !errors.Is(err, os.ErrNotExist) {
		return key, err
	}
	_, key, err = ed25519.GenerateKey(nil)
	if err != nil {
		return nil, err
	}
	return key, writeFile(filepath.Join(dir, keyFile), encodeKey(key), uid, gid)
}

func loadKey(dir, name string) (ed25519.PrivateKey, error) {
	path := filepath.Join(dir, name)
	b, err := readFile(path)
	if err != nil {
		return nil, err
	}
	if key, ok := decodeKey(b); ok {
		return key, nil
	}
	return nil, fmt.Errorf("%s holds no Ed25519 key; move it away and enrol again", path)
}

// pkcs8 is what stands before the seed in the PKCS #8 encoding of an Ed25519 key (RFC 8410, section 7): all its lengths are
// fixed. crypto/x509 writes the same, and brings 100 kB for the keys of all other kinds.
const pkcs8 = "\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20"

func encodeKey(key ed25519.PrivateKey) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: append([]byte(pkcs8), key.Seed()...)})
}

func decodeKey(b []byte) (ed25519.PrivateKey, bool) {
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, false
	}
	seed, ok := bytes.CutPrefix(block.Bytes, []byte(pkcs8))
	if !ok || len(seed) != ed25519.SeedSize {
		return nil, false
	}
	return ed25519.NewKeyFromSeed(seed), true
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path) //nolint:gosec // our own path
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // only read
	b := make([]byte, 0, 4096)
	for len(b) < maxFile {
		if len(b) == cap(b) {
			b = append(b, 0)[:len(b)]
		}
		n, err := f.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		if n == 0 || err != nil {
			return b, nil
		}
	}
	return nil, fmt.Errorf("%s is larger than %d bytes", path, maxFile)
}

// writeFile replaces a file with mode 0600: old or new, never half, and never readable by others in between.
func writeFile(path string, b []byte, uid, gid int) error {
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600) //nolint:gosec // our own path
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil && (uid != -1 || gid != -1) {
		err = f.Chown(uid, gid)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// SameURL reports whether two addresses name the same control plane.
func SameURL(a, b string) bool {
	ua, errA := ParseURL(a)
	ub, errB := ParseURL(b)
	return errA == nil && errB == nil && ua.String() == ub.String()
}
