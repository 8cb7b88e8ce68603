package stream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
	"time"
)

// TestBusyFor: the delay that a control plane names in a TLS alert is obeyed; other alerts name none.
func TestBusyFor(t *testing.T) {
	for alert, want := range map[byte]time.Duration{80: 0, 112: 0, 201: time.Second, 207: 7 * time.Second, 255: 55 * time.Second} {
		server, client := net.Pipe()
		go func() {
			hello := make([]byte, 4096)
			_, _ = server.Read(hello)
			_, _ = server.Write([]byte{21, 3, 3, 0, 2, 2, alert})
			_ = server.Close()
		}()
		err := tls.Client(client, &tls.Config{ServerName: "test", MinVersion: tls.VersionTLS12}).HandshakeContext(t.Context())
		if got := busyFor(fmt.Errorf("dial: %w", err)); got > want || want > 0 && got <= want-time.Second {
			t.Errorf("alert %d: %s, want up to a second less than %s", alert, got, want)
		}
	}
	if got := busyFor(errors.New("tls: alert(207)")); got != 0 {
		t.Errorf("an error that is no alert names %s", got)
	}
}

// TestBusyKeepsTheSession: who is told to come again resumes its session then; any other failure forgets it, as it must.
func TestBusyKeepsTheSession(t *testing.T) {
	t.Parallel()
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.StartTLS() // it has a certificate
	t.Cleanup(server.Close)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	alerts := make(chan byte, 1) // of the next connection; 0: it is served
	go func() {
		config := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: server.TLS.Certificates, NextProtos: []string{linkAgreed}}
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if alert := <-alerts; alert != 0 {
				_, _ = conn.Read(make([]byte, 16<<10))
				_, _ = conn.Write([]byte{21, 3, 3, 0, 2, 2, alert})
				_ = conn.Close()
				continue
			}
			secure := tls.Server(conn, config)
			_, _ = secure.Write([]byte{1})
			_, _ = secure.Read(make([]byte, 1))
			_ = conn.Close()
		}
	}()
	u := &url.URL{Scheme: "https", Host: l.Addr().String()}
	cfg := &Config{URL: u, Patience: time.Minute, TLS: &tls.Config{InsecureSkipVerify: true}} //nolint:gosec // of this test
	sessions := tls.NewLRUClientSessionCache(1)
	connect := func(alert byte) (resumed bool, err error) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		alerts <- alert
		c := dial(cfg)
		defer c.close()
		conn, err := c.link(ctx, cfg, sessions)
		if err != nil {
			return false, err
		}
		secure := conn.(*tls.Conn)                              //nolint:forcetypeassert // as link makes it
		if _, err := secure.Read(make([]byte, 1)); err != nil { // the ticket comes before it
			t.Fatal(err)
		}
		return secure.ConnectionState().DidResume, nil
	}
	for i, step := range []struct {
		alert   byte
		resumed bool
	}{{0, false}, {0, true}, {203, false}, {203, false}, {0, true}, {40, false}, {0, false}} {
		resumed, err := connect(step.alert)
		if (err != nil) != (step.alert != 0) || resumed != step.resumed {
			t.Errorf("connection %d, alert %d: resumed is %t, %v", i, step.alert, resumed, err)
		}
		if step.alert > 200 && busyFor(err) == 0 {
			t.Errorf("connection %d: %v doesn't say that it is busy", i, err)
		}
	}
}
