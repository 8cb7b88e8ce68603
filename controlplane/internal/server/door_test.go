package server

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/keys"
	"github.com/fleetban/fleetban/controlplane/internal/link"
)

// TestDoor: agents' own connections are told from others, and both are let in.
func TestDoor(t *testing.T) {
	t.Parallel()
	certs, err := selfSigned(keys.New([keys.SecretLen]byte{1}), "https://localhost")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	agents := make(chan net.Conn, 1)
	d := newDoor(l, &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: certs.get}, func(c net.Conn, w *link.Wire) {
		w.Welcomed()
		agents <- c
	}, slog.New(slog.DiscardHandler)).begin()
	web := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS == nil {
			t.Error("a request over TLS isn't known to be")
		}
		_, _ = io.WriteString(w, r.Proto)
	})}
	served := make(chan error, 1)
	go func() { served <- web.Serve(d) }()
	dial := func(protocols ...string) *tls.Conn {
		t.Helper()
		c, err := (&tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, NextProtos: protocols}}).DialContext(t.Context(), "tcp", l.Addr().String()) //nolint:gosec // of this test
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c.(*tls.Conn) //nolint:forcetypeassert // a tls.Dialer's
	}
	agent := dial("h2", link.Protocol)
	if got := agent.ConnectionState().NegotiatedProtocol; got != "h2" {
		t.Errorf("an agent was agreed with on %q", got)
	}
	select {
	case c := <-agents:
		_ = c.Close()
	case <-time.After(time.Minute):
		t.Fatal("an agent's connection didn't come to the links")
	}
	agent = dial(link.Agreed, "h2", link.Protocol)
	if got := agent.ConnectionState().NegotiatedProtocol; got != link.Agreed {
		t.Errorf("an agent that makes links was agreed with on %q", got)
	}
	_ = (<-agents).Close()
	for offered, want := range map[string]string{"http/1.1": "HTTP/1.1", "h2": "HTTP/2.0"} {
		transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, Protocols: new(http.Protocols)} //nolint:gosec // of this test
		transport.Protocols.SetHTTP1(offered != "h2")
		transport.Protocols.SetHTTP2(offered == "h2")
		t.Cleanup(transport.CloseIdleConnections)
		request, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+l.Addr().String(), nil)
		response, err := (&http.Client{Transport: transport}).Do(request)
		if err != nil {
			t.Fatal(err)
		}
		got, _ := io.ReadAll(bufio.NewReader(response.Body))
		_ = response.Body.Close()
		if string(got) != want {
			t.Errorf("one that offers %s was served %s", offered, got)
		}
	}
	// A browser that comes again spares both sides half of the handshake.
	sessions := tls.NewLRUClientSessionCache(1)
	for _, resumed := range []bool{false, true} {
		c, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{InsecureSkipVerify: true, ServerName: "localhost", ClientSessionCache: sessions}) //nolint:gosec // of this test
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
		_, _ = io.Copy(io.Discard, c)
		_ = c.Close()
		if got := c.ConnectionState().DidResume; got != resumed {
			t.Errorf("resumed: %t, want %t", got, resumed)
		}
	}
	if err := web.Close(); err != nil {
		t.Error(err)
	}
	<-served
	d.done.Wait()
	if _, err := net.Dial("tcp", l.Addr().String()); err == nil {
		t.Error("it listens still")
	}
}

// TestAdmission: of ten thousand that come in one moment some wait, in order, and the others are told when to come again; who
// obeys is let in, and all are in after as long as so many arrivals take. Be it from one address or from a thousand.
func TestAdmission(t *testing.T) {
	t.Parallel()
	for _, addresses := range []int{1, 1000} {
		t.Run(fmt.Sprintf("%d addresses", addresses), func(t *testing.T) { admitAll(t, addresses) })
	}
}

func admitAll(t *testing.T, addresses int) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		const (
			agents  = 10_000
			arrival = 4 * time.Millisecond // what one takes of the machine
		)
		a := newAdmission()
		a.places = 8
		machine := make(chan struct{}, 1)
		began, in, deterred := time.Now(), make(chan time.Duration, agents), make(chan time.Duration, 100*agents)
		for i := range agents {
			from := sourceOf(&net.TCPAddr{IP: net.IPv4(192, 0, byte(i%addresses>>8), byte(i%addresses)), Port: i}) //nolint:gosec // small
			go func() {
				for {
					// An agent's patience.
					ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
					asked := time.Now()
					leave, after := a.enter(ctx, from)
					cancel()
					if time.Since(asked) > 14*time.Second {
						t.Error("one waited for longer than it has patience")
					}
					if after == 0 {
						machine <- struct{}{}
						time.Sleep(arrival)
						<-machine
						leave()
						leave()
						in <- time.Since(began)
						return
					}
					deterred <- after
					time.Sleep(after)
				}
			}()
		}
		var last time.Duration
		for range agents {
			last = max(last, <-in)
		}
		if least := agents * arrival; last > least*3/2 {
			t.Errorf("all are in after %s, the machine needs %s", last, least)
		}
		if n := len(deterred); n < agents/2 || n > 4*agents {
			t.Errorf("%d were told to come again", n)
		}
		for range len(deterred) {
			if after := <-deterred; after < time.Second || after > link.MaxBusy {
				t.Fatalf("one was told to come again after %s", after)
			}
		}
	})
}

// TestAdmissionOfSilentPeers: who takes a place and says nothing more keeps nobody out for long.
func TestAdmissionOfSilentPeers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAdmission()
		a.places = 2
		for range 2 {
			if _, after := a.enter(t.Context(), netip.Prefix{}); after != 0 {
				t.Fatal("not let into an empty room")
			}
		}
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		if _, after := a.enter(gone, netip.Prefix{}); after == 0 {
			t.Error("one that is gone was let in")
		}
		began := time.Now()
		leave, after := a.enter(t.Context(), netip.Prefix{})
		if waited := time.Since(began); after != 0 || waited != arrivingFor {
			t.Errorf("the third waited for %s and was told %s", waited, after)
		}
		leave()
		time.Sleep(2 * arrivingFor)
		synctest.Wait()
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.inside != 0 {
			t.Errorf("%d places are held by nobody", a.inside)
		}
	})
}

// TestAdmissionShares: one address that takes all places, silent, and comes thousands of times more keeps no other out: those
// that come meanwhile, each from an address of its own, are in as soon as a few places were free.
func TestAdmissionShares(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const flood, others = 20_000, 40
		a := newAdmission()
		a.places = 8
		ctx, cancel := context.WithCancel(t.Context())
		var gone sync.WaitGroup
		attacker := sourceOf(&net.TCPAddr{IP: net.ParseIP("2001:db8::1"), Port: 1})
		for i := range flood {
			// Anywhere in a /64: that is one.
			from := sourceOf(&net.TCPAddr{IP: net.ParseIP(fmt.Sprintf("2001:db8::%x", i+1)), Port: 1})
			if from != attacker {
				t.Fatalf("%s and %s are told apart", from, attacker)
			}
			gone.Go(func() {
				for ctx.Err() == nil {
					_, after := a.enter(ctx, from) // and never leaves
					select {
					case <-ctx.Done():
					case <-time.After(after):
					}
				}
			})
		}
		time.Sleep(2 * time.Second)
		began, in := time.Now(), make(chan time.Duration, others)
		for i := range others {
			go func() {
				leave, after := a.enter(ctx, sourceOf(&net.TCPAddr{IP: net.IPv4(192, 0, 2, byte(i)), Port: 1})) //nolint:gosec // small
				if after != 0 {
					t.Errorf("one of the others was sent away for %s", after)
					in <- 0
					return
				}
				in <- time.Since(began)
				leave()
			}()
		}
		var last time.Duration
		for range others {
			last = max(last, <-in)
		}
		// One of each eight places that get free in half a second at worst is the attacker's, as long as others wait.
		if last > 2*arrivingFor {
			t.Errorf("the last of the others was in after %s", last)
		}
		t.Logf("the last of the others was in after %s", last)
		cancel()
		gone.Wait()
	})
}

// TestDoorBehindProxy: an agent's own connection that a balancer passes on is known by the agent's address.
func TestDoorBehindProxy(t *testing.T) {
	t.Parallel()
	certs, err := selfSigned(keys.New([keys.SecretLen]byte{1}), "https://localhost")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	balancers, err := parseProxies([]string{"127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	agents := make(chan string, 1)
	d := newDoor(balancers.behind(l), &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: certs.get}, func(c net.Conn, w *link.Wire) {
		w.Welcomed()
		agents <- c.RemoteAddr().String()
		_ = c.Close()
	}, slog.New(slog.DiscardHandler)).begin()
	t.Cleanup(func() {
		_ = d.Close()
		d.done.Wait()
	})
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	_, _ = io.WriteString(conn, "PROXY TCP4 203.0.113.9 127.0.0.1 1234 443\r\n")
	if err := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2", link.Protocol}}).HandshakeContext(t.Context()); err != nil { //nolint:gosec // of this test
		t.Fatal(err)
	}
	select {
	case got := <-agents:
		if got != "203.0.113.9:1234" {
			t.Errorf("the agent is known by %s", got)
		}
	case <-time.After(time.Minute):
		t.Fatal("the agent didn't come to the links")
	}
}
