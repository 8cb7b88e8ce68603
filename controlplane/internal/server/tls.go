package server

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/acmecert"
)

// tls makes what the listener shakes hands by, nil without TLS, and the pin that hosts are told.
func (s *Server) tls(ctx context.Context) (*tls.Config, error) {
	c := s.config
	s.pin = c.Pin
	if c.TLSOff {
		return nil, nil //nolint:nilnil // no TLS
	}
	var certs *certificates
	var err error
	if c.TLSCert != "" {
		certs, err = loadCertificates(c.TLSCert, c.TLSKey, s.logger)
	} else {
		certs, err = selfSigned(s.base.keys, c.PublicURL)
	}
	if err != nil {
		return nil, err
	}
	get := certs.get
	if len(c.ACMEDomains) > 0 {
		if get, err = s.byACME(ctx, certs); err != nil {
			return nil, err
		}
	}
	s.certificate = get
	if s.pin == "" && (s.acme == nil || !s.publicACME()) {
		if s.pin, err = certs.pin(c.PublicURL); err != nil {
			return nil, err
		}
	}
	return serverTLS(get), nil
}

// certificateEnds is when the certificate ends that is served now, and how long it lives as a whole; zero without TLS.
func (s *Server) certificateEnds() (ends time.Time, life time.Duration) {
	if s.certificate == nil {
		return time.Time{}, 0
	}
	if c, err := s.certificate(&tls.ClientHelloInfo{}); err == nil && c.Leaf != nil {
		return c.Leaf.NotAfter, c.Leaf.NotAfter.Sub(c.Leaf.NotBefore)
	}
	return time.Time{}, 0
}

// byACME has an authority make the certificate. Until there is one, the replica's own is served, whose key is the same: hosts that
// pinned it come in, and others are told that it isn't trusted.
func (s *Server) byACME(ctx context.Context, own *certificates) (func(*tls.ClientHelloInfo) (*tls.Certificate, error), error) {
	var err error
	s.acme, err = acmecert.New(acmecert.Options{
		Store: s.base.store, Seal: s.base.seal, Keys: s.base.keys, Replica: s.config.Replica, Domains: s.config.ACMEDomains, Email: s.config.ACMEEmail,
		Directory: s.config.ACMEDirectory, CAFile: s.config.ACMECAFile, HTTP: s.config.ACMEHTTPListen != "", Logger: s.logger,
	})
	if err != nil {
		return nil, err
	}
	if err := s.acme.Load(ctx); err != nil {
		s.logger.WarnContext(ctx, "the certificate can't be read, trying again", slog.Any("error", err))
	}
	return func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		if c := s.acme.Certificate(); c != nil {
			return c, nil
		}
		return own.get(hello)
	}, nil
}

// publicACME reports whether everyone trusts the authority. Of others that isn't known: hosts pin the key, which stays.
func (s *Server) publicACME() bool {
	return s.config.ACMEDirectory == "" || s.config.ACMEDirectory == acmecert.LetsEncrypt
}

// plainHTTP answers without TLS, where an authority looks whether names lead here that way.
type plainHTTP struct {
	server   *http.Server
	listener net.Listener
}

func (s *Server) listenPlain(ctx context.Context) error {
	if s.config.ACMEHTTPListen == "" {
		return nil
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", s.config.ACMEHTTPListen)
	if err != nil {
		return fmt.Errorf("--acme-http-listen %s: %w", s.config.ACMEHTTPListen, err)
	}
	s.plain = plainHTTP{listener: l, server: &http.Server{
		Handler: s.acme.HTTPHandler(), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 5 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: 10 * time.Second,
		MaxHeaderBytes: 8 << 10, ErrorLog: slog.NewLogLogger(s.logger.Handler(), slog.LevelDebug),
	}}
	return nil
}

// close closes both; a listener that was served is closed twice, which is no error worth telling.
func (p plainHTTP) close() error {
	if p.server == nil {
		return nil
	}
	_ = p.listener.Close()
	return p.server.Close()
}

// ACMEHTTPAddr is where challenges are answered without TLS; nil where they aren't.
func (s *Server) ACMEHTTPAddr() net.Addr {
	if s.plain.listener == nil {
		return nil
	}
	return s.plain.listener.Addr()
}
