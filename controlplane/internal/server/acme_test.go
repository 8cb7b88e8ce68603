package server_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/fleetban/fleetban/controlplane/internal/link"
	"github.com/fleetban/fleetban/controlplane/internal/server"
	"github.com/fleetban/fleetban/controlplane/internal/store/redistest"
	"github.com/fleetban/fleetban/controlplane/internal/testwait"
)

// acmeName leads, by the test's own name server, to this machine.
const acmeName = "fleet.example.com"

// authority is Pebble, Let's Encrypt's small ACME server, as a process.
type authority struct {
	directory, management string
	caFile                string         // that its own certificate is checked by
	roots                 *x509.CertPool // of what it makes
}

var authorities atomic.Int64

// startAuthority starts one that looks for names at these ports of this machine, and whose certificates live for life.
func startAuthority(t *testing.T, tlsPort, httpPort string, life time.Duration) *authority {
	t.Helper()
	dir := t.TempDir()
	// An address of this process alone: nothing else can have its ports.
	host := fmt.Sprintf("127.%d.%d.%d", 100+os.Getpid()>>16&63, os.Getpid()>>8&255, os.Getpid()&255)
	port := 14000 + int(authorities.Add(2))
	addrs := []string{net.JoinHostPort(host, strconv.Itoa(port)), net.JoinHostPort(host, strconv.Itoa(port+1))}
	writeCertificate(t, dir, host)
	config, err := json.Marshal(map[string]any{"pebble": map[string]any{
		"listenAddress": addrs[0], "managementListenAddress": addrs[1], "certificate": filepath.Join(dir, "cert.pem"), "privateKey": filepath.Join(dir, "key.pem"),
		"httpPort": number(t, httpPort), "tlsPort": number(t, tlsPort), "keyAlgorithm": "ecdsa", "retryAfter": map[string]int{"authz": 1, "order": 1},
		"profiles": map[string]any{"default": map[string]any{"description": "of this test", "validityPeriod": int(life.Seconds())}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "config.json")
	if err := os.WriteFile(path, config, 0o600); err != nil {
		t.Fatal(err)
	}
	binary, err := exec.CommandContext(t.Context(), "go", "tool", "-n", "pebble").Output()
	if err != nil {
		t.Fatal("build pebble: ", err)
	}
	command := exec.Command(strings.TrimSpace(string(binary)), "-config", path, "-dnsserver", nameServer(t)) //nolint:gosec // of this test
	// It fails requests and lingers on purpose unless it is told not to.
	command.Env = append(os.Environ(), "PEBBLE_WFE_NONCEREJECT=0", "PEBBLE_VA_NOSLEEP=1", "PEBBLE_AUTHZREUSE=0")
	command.Stdout, command.Stderr = t.Output(), t.Output()
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = command.Process.Kill()
		_ = command.Wait()
	})
	a := &authority{directory: "https://" + addrs[0] + "/dir", management: "https://" + addrs[1], caFile: filepath.Join(dir, "cert.pem"), roots: x509.NewCertPool()}
	text, err := os.ReadFile(a.caFile)
	if err != nil {
		t.Fatal(err)
	}
	own := x509.NewCertPool()
	own.AppendCertsFromPEM(text)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: own}}} //nolint:gosec // of this test
	t.Cleanup(client.CloseIdleConnections)
	testwait.Until(t, "pebble answers", func() error {
		res, err := client.Get(a.management + "/roots/0")
		if err != nil {
			return err
		}
		defer func() { _ = res.Body.Close() }()
		root, err := io.ReadAll(res.Body)
		if err != nil || !a.roots.AppendCertsFromPEM(root) {
			return fmt.Errorf("no root: %w", err)
		}
		return nil
	})
	return a
}

func number(t *testing.T, port string) int {
	t.Helper()
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// nameServer says of every name that it is this machine, over TCP.
func nameServer(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var done sync.WaitGroup
	done.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			done.Go(func() {
				defer func() { _ = conn.Close() }()
				_ = conn.SetDeadline(time.Now().Add(within))
				for {
					if err := answerName(conn); err != nil {
						return
					}
				}
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		done.Wait()
	})
	return l.Addr().String()
}

func answerName(conn net.Conn) error {
	var length [2]byte
	if _, err := io.ReadFull(conn, length[:]); err != nil {
		return err
	}
	question := make([]byte, binary.BigEndian.Uint16(length[:]))
	if _, err := io.ReadFull(conn, question); err != nil {
		return err
	}
	var m dnsmessage.Message
	if err := m.Unpack(question); err != nil {
		return err
	}
	m.Response, m.Additionals = true, nil
	for _, q := range m.Questions {
		if q.Type == dnsmessage.TypeA {
			m.Answers = append(m.Answers, dnsmessage.Resource{
				Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 1}, Body: &dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}},
			})
		}
	}
	answer, err := m.Pack()
	if err != nil {
		return err
	}
	_, err = conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...)) //nolint:gosec // a few dozen bytes
	return err
}

// rounds passes each connection on to the next of several, as a balancer does.
type rounds struct {
	net.Listener

	to    []string
	ready chan struct{} // closed when to is known
	next  int
}

func newRounds(t *testing.T) *rounds {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &rounds{Listener: l, ready: make(chan struct{})}
	var done sync.WaitGroup
	gone := make(chan struct{})
	done.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			select {
			case <-r.ready:
			case <-gone:
				_ = in.Close()
				return
			}
			r.next++
			out, err := net.Dial("tcp", r.to[r.next%len(r.to)])
			if err != nil {
				_ = in.Close()
				continue
			}
			done.Go(func() {
				done.Go(func() {
					_, _ = io.Copy(out, in)
					_ = out.Close()
				})
				_, _ = io.Copy(in, out)
				_, _ = in.Close(), out.Close()
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		close(gone)
		done.Wait()
	})
	return r
}

// send has connections passed on from now on, those that wait included.
func (r *rounds) send(to ...string) {
	r.to = to
	close(r.ready)
}

func (r *rounds) port(t *testing.T) string {
	t.Helper()
	_, port, err := net.SplitHostPort(r.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// trusts shakes hands as a host does that trusts authorities and the name, and no key.
func trusts(addr string, roots *x509.CertPool) (*x509.Certificate, error) {
	return handshake(addr, &tls.Config{RootCAs: roots, ServerName: acmeName, MinVersion: tls.VersionTLS12})
}

// handshake shakes hands as agents do, and returns the server's certificate.
func handshake(addr string, c *tls.Config) (*x509.Certificate, error) {
	c.NextProtos = []string{"h2", link.Protocol}
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: within}, "tcp", addr, c)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	return conn.ConnectionState().PeerCertificates[0], nil
}

// awaitMade waits until these replicas had so many certificates made, and fails where it is more.
func awaitMade(t *testing.T, n int, replicas ...*process) {
	t.Helper()
	got := 0
	testwait.For(t, "certificates are made", func() bool {
		got = 0
		for _, p := range replicas {
			got += strings.Count(p.log.String(), `"a certificate was made"`)
		}
		return got >= n
	})
	if got != n {
		t.Errorf("%d certificates were ordered, not %d", got, n)
	}
}

// Two replicas have one certificate made, whichever of them the authority comes to, and renewed; hosts that pinned the key that
// the control plane had before come in all the time.
func TestACME(t *testing.T) {
	t.Parallel()
	front, plain := newRounds(t), newRounds(t)
	ca := startAuthority(t, front.port(t), plain.port(t), 24*time.Second)
	backend := server.Backend{RedisURL: redistest.Start(t).URL(), SecretFile: secretFile(t, secretFill), PublicURL: "https://" + acmeName}
	setup(t, backend)
	// A control plane that makes its certificate itself, before.
	before := serve(t, server.Config{Backend: backend, MetricsListen: "off"})
	pin := before.Pin()
	config := server.Config{
		Backend: backend, MetricsListen: "off", ACMEDomains: []string{acmeName, "also." + acmeName}, ACMEAcceptTerms: true, ACMEEmail: "fleet@example.com",
		ACMEDirectory: ca.directory, ACMECAFile: ca.caFile,
	}
	replicas := []*process{serve(t, config), serve(t, config)}
	addrs := []string{replicas[0].addr(), replicas[1].addr()}
	front.send(addrs...)
	same := func(what string, made int, good func(*x509.Certificate) bool) *x509.Certificate {
		t.Helper()
		awaitMade(t, made, replicas...)
		var first *x509.Certificate
		testwait.Until(t, what, func() error {
			for i, addr := range addrs {
				if _, err := handshake(addr, pinned(pin)); err != nil {
					t.Fatal("a host that pinned the key: ", err)
				}
				leaf, err := trusts(addr, ca.roots)
				switch {
				case err != nil:
					return err
				case !good(leaf):
					return fmt.Errorf("replica %d serves %s", i, leaf.SerialNumber)
				case i == 0:
					first = leaf
				case !leaf.Equal(first):
					return errors.New("they serve different ones")
				}
			}
			return nil
		})
		return first
	}
	first := same("both serve what the authority made", 1, func(*x509.Certificate) bool { return true })
	if err := first.VerifyHostname("also." + acmeName); err != nil {
		t.Error(err)
	}
	if replicas[0].Pin() != pin {
		t.Error("of a private authority hosts don't know, and nothing is pinned")
	}
	// Strangers who offer what authorities do learn nothing, and get nowhere.
	for _, name := range []string{acmeName, "other.example.com", ""} {
		conn, err := tls.Dial("tcp", addrs[0], &tls.Config{ServerName: name, NextProtos: []string{"acme-tls/1"}, InsecureSkipVerify: true}) //nolint:gosec // of this test
		if err != nil {
			continue
		}
		if n, err := conn.Read(make([]byte, 1)); err == nil {
			t.Errorf("%q: %d bytes after a challenge's handshake", name, n)
		}
		_ = conn.Close()
	}
	for i, addr := range addrs {
		_, report := ready(t, replicas[i])
		if l := report.ACME; l == nil || l.Name != "acme" || len(l.Runs) != 1 || l.Runs[0].Name != "certificate" || l.Runs[0].Problem != "" || l.Holder == "" && len(l.History) == 0 {
			t.Errorf("%s says of who orders: %+v", addr, l)
		}
	}
	renewed := same("both serve the renewed one", 2, func(c *x509.Certificate) bool { return !c.Equal(first) })
	if !renewed.NotBefore.Before(first.NotAfter) {
		t.Errorf("renewed at %s, after the end of the former at %s", renewed.NotBefore, first.NotAfter)
	}
	// A replica that comes later serves it from its first handshake on.
	later := serve(t, config)
	if got, err := trusts(later.addr(), ca.roots); err != nil || got.NotAfter.Before(renewed.NotAfter) {
		t.Errorf("a replica that comes later serves %v, %v", got, err)
	}
}

// Names are proven over plain HTTP where that is configured.
func TestACMEOverHTTP(t *testing.T) {
	t.Parallel()
	front, plain := newRounds(t), newRounds(t)
	ca := startAuthority(t, front.port(t), plain.port(t), time.Hour)
	backend := server.Backend{RedisURL: redistest.Start(t).URL(), SecretFile: secretFile(t, secretFill)}
	setup(t, backend)
	config := server.Config{
		Backend: backend, MetricsListen: "off", ACMEDomains: []string{acmeName}, ACMEAcceptTerms: true,
		ACMEDirectory: ca.directory, ACMECAFile: ca.caFile, ACMEHTTPListen: "127.0.0.1:0",
	}
	replicas := []*process{serve(t, config), serve(t, config)}
	to := []string{replicas[0].ACMEHTTPAddr().String(), replicas[1].ACMEHTTPAddr().String()}
	plain.send(to...)
	awaitMade(t, 1, replicas...)
	for _, p := range replicas {
		testwait.Until(t, "it serves what the authority made", func() error {
			_, err := trusts(p.addr(), ca.roots)
			return err
		})
	}
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	t.Cleanup(client.CloseIdleConnections)
	for _, c := range []struct {
		method, host, path string
		status             int
		location           string
	}{
		{http.MethodGet, acmeName, "/hosts?x=1", http.StatusMovedPermanently, "https://" + acmeName + "/hosts?x=1"},
		{http.MethodGet, acmeName, "//evil.example/", http.StatusMovedPermanently, "https://" + acmeName + "//evil.example/"},
		{http.MethodGet, "evil.example", "/", http.StatusBadRequest, ""},
		{http.MethodPost, acmeName, "/fleetban.v1.AgentService/Enroll", http.StatusBadRequest, ""},
		{http.MethodGet, acmeName, "/.well-known/acme-challenge/guess", http.StatusNotFound, ""},
		{http.MethodGet, "evil.example", "/.well-known/acme-challenge/guess", http.StatusNotFound, ""},
	} {
		req, err := http.NewRequestWithContext(t.Context(), c.method, "http://"+to[0]+c.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = c.host
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if res.StatusCode != c.status || res.Header.Get("Location") != c.location {
			t.Errorf("%s %s of %s: %s to %q", c.method, c.path, c.host, res.Status, res.Header.Get("Location"))
		}
	}
}

// Hosts are told to pin the key, unless everyone trusts the authority.
func TestACMEPin(t *testing.T) {
	t.Parallel()
	backend := server.Backend{RedisURL: redistest.Start(t).URL(), SecretFile: secretFile(t, secretFill)}
	for directory, pins := range map[string]bool{"": false, "https://127.0.0.1:1/directory": true} {
		c := server.Config{
			Backend: backend, Listen: "127.0.0.1:0", MetricsListen: "off", ACMEDomains: []string{acmeName}, ACMEAcceptTerms: true, ACMEDirectory: directory,
			Organisation: "test", Mode: "enforce",
		}
		c.DataDir = t.TempDir()
		if err := c.Complete(); err != nil {
			t.Fatal(err)
		}
		// It asks nobody before it runs.
		s, err := server.New(t.Context(), c, slog.New(slog.DiscardHandler), io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		if (s.Pin() != "") != pins || !strings.HasPrefix(c.PublicURL, "https://"+acmeName) {
			t.Errorf("directory %q: pin %q, public URL %s", directory, s.Pin(), c.PublicURL)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// writeCertificate makes a certificate for an address that vouches for itself: cert.pem and key.pem.
func writeCertificate(t *testing.T, dir, host string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: host}, IPAddresses: []net.IP{net.ParseIP(host)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"cert.pem": {Type: "CERTIFICATE", Bytes: der}, "key.pem": {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
