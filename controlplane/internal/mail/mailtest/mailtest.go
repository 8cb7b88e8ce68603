// Package mailtest runs a real SMTP server for a test: with STARTTLS, TLS or none, with passwords or none.
package mailtest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"math/big"
	"mime/quotedprintable"
	"net"
	"net/mail"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
)

// How the server speaks TLS.
type How int

// The ways.
const (
	StartTLS How = iota
	TLS
	Plain
)

// Name is whom the server's certificate is of, beside 127.0.0.1.
const Name = "mail.example.com"

// Options make a Server.
type Options struct {
	How How
	// User and Password are asked for where they are given.
	User, Password string
	// Fail refuses that many letters, with a temporary error, before it takes one.
	Fail int
}

// Letter is one that the server took.
type Letter struct {
	From, To, Subject, Text string
	Header                  mail.Header
	// Secure: it came over TLS. User is who had signed in.
	Secure bool
	User   string
}

// Server keeps what it is sent.
type Server struct {
	t testing.TB
	o Options
	// Port is where it listens, on 127.0.0.1.
	Port string
	// Roots trust its certificate.
	Roots *x509.CertPool

	mu      sync.Mutex
	fail    int
	tries   int
	letters []Letter
	came    chan struct{}
}

// Start starts a server and stops it when the test ends.
func Start(t testing.TB, o Options) *Server {
	t.Helper()
	s := &Server{t: t, o: o, fail: o.Fail, came: make(chan struct{})}
	certificate := s.certificate()
	server := smtp.NewServer(smtp.BackendFunc(func(c *smtp.Conn) (smtp.Session, error) { return &session{server: s, conn: c}, nil }))
	server.Domain, server.AllowInsecureAuth = Name, o.How == Plain
	server.ReadTimeout, server.WriteTimeout = 10*time.Second, 10*time.Second
	server.ErrorLog = log.New(t.Output(), "smtp: ", 0)
	listener, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, s.Port, _ = net.SplitHostPort(listener.Addr().String())
	config := &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12}
	switch o.How {
	case StartTLS:
		server.TLSConfig = config
	case TLS:
		listener = tls.NewListener(listener, config)
	case Plain:
	}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(listener) })
	t.Cleanup(func() {
		_ = server.Close()
		serving.Wait()
	})
	return s
}

func (s *Server) certificate() tls.Certificate {
	s.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{Name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		s.t.Fatal(err)
	}
	made, err := x509.ParseCertificate(der)
	if err != nil {
		s.t.Fatal(err)
	}
	s.Roots = x509.NewCertPool()
	s.Roots.AddCert(made)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// Tries is how many letters it was offered.
func (s *Server) Tries() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tries
}

// Letters are what it has taken so far.
func (s *Server) Letters() []Letter {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Letter(nil), s.letters...)
}

// Wait waits for a letter to an address with words in its subject, and takes it out.
func (s *Server) Wait(to, subject string) Letter {
	s.t.Helper()
	deadline := time.After(30 * time.Second)
	for {
		s.mu.Lock()
		came := s.came
		for i, l := range s.letters {
			if l.To == to && strings.Contains(l.Subject, subject) {
				s.letters = append(s.letters[:i:i], s.letters[i+1:]...)
				s.mu.Unlock()
				return l
			}
		}
		s.mu.Unlock()
		select {
		case <-came:
		case <-deadline:
			s.t.Fatalf("no letter %q to %s; there are %+v", subject, to, s.Letters())
		}
	}
}

type session struct {
	server   *Server
	conn     *smtp.Conn
	user     string
	from, to string
}

var _ smtp.AuthSession = (*session)(nil)

// AuthMechanisms implements smtp.AuthSession.
func (s *session) AuthMechanisms() []string {
	if s.server.o.User == "" {
		return nil
	}
	return []string{sasl.Plain}
}

// Auth implements smtp.AuthSession.
func (s *session) Auth(string) (sasl.Server, error) {
	return sasl.NewPlainServer(func(_, user, password string) error {
		if user != s.server.o.User || password != s.server.o.Password {
			return errors.New("wrong user or password")
		}
		s.user = user
		return nil
	}), nil
}

// Mail implements smtp.Session.
func (s *session) Mail(from string, _ *smtp.MailOptions) error {
	if s.user != s.server.o.User {
		return smtp.ErrAuthRequired
	}
	s.from = from
	return nil
}

// Rcpt implements smtp.Session.
func (s *session) Rcpt(to string, _ *smtp.RcptOptions) error {
	s.to = to
	return nil
}

// Data implements smtp.Session.
func (s *session) Data(r io.Reader) error {
	message, err := mail.ReadMessage(r)
	if err != nil {
		return err
	}
	body := message.Body
	if message.Header.Get("Content-Transfer-Encoding") == "quoted-printable" {
		body = quotedprintable.NewReader(body)
	}
	text, err := io.ReadAll(body)
	if err != nil {
		return err
	}
	_, secure := s.conn.TLSConnectionState()
	s.server.mu.Lock()
	defer s.server.mu.Unlock()
	s.server.tries++
	if s.server.fail > 0 {
		s.server.fail--
		return &smtp.SMTPError{Code: 451, EnhancedCode: smtp.EnhancedCode{4, 3, 0}, Message: "try again"}
	}
	s.server.letters = append(s.server.letters, Letter{
		From: s.from, To: s.to, Subject: message.Header.Get("Subject"), Text: strings.ReplaceAll(string(text), "\r\n", "\n"), Header: message.Header,
		Secure: secure, User: s.user,
	})
	close(s.server.came)
	s.server.came = make(chan struct{})
	return nil
}

// Reset implements smtp.Session.
func (s *session) Reset() { s.from, s.to = "", "" }

// Logout implements smtp.Session.
func (*session) Logout() error { return nil }
