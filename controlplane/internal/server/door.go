package server

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/acmecert"
	"github.com/fleetban/fleetban/controlplane/internal/link"
)

// handshakeWithin bounds a TLS handshake, with the wait before it.
const handshakeWithin = 15 * time.Second

// door is the listener of the control plane where it ends TLS itself. It shakes hands, and tells agents' own connections, which
// package link serves, from all others, which net/http does. Agents wait at it for their turn: see admission.
//
//	TCP ─▶ ClientHello ─┬─ an agent's ─▶ admission ─┬─▶ handshake ─▶ link
//	                    │                           └─▶ "come again in N s"
//	                    ├─ an authority's that looks whether a name leads here ─▶ handshake, which is the proof
//	                    └─ any other ────────────────▶ handshake ─▶ Accept ─▶ net/http
type door struct {
	net.Listener

	links     func(net.Conn, *link.Wire)
	admission *admission
	logger    *slog.Logger
	first     *tls.Config // until it is known who comes; has the keys of sessions that are resumed
	others    *tls.Config
	agents    *tls.Config
	calls     *tls.Config // of hosts, that are no streams; nil where they are asked for nothing
	// challenge answers authorities that make certificates by ACME; nil where none is asked. To be set before begin.
	challenge func(*tls.ClientHelloInfo) (*tls.Certificate, error)

	accepted chan net.Conn
	gone     chan struct{} // closed with the listener
	done     sync.WaitGroup
	once     sync.Once
	err      error
}

var errBusy = errors.New("too many agents come at once: this one is told when to come again")

func newDoor(l net.Listener, config *tls.Config, links func(net.Conn, *link.Wire), logger *slog.Logger) *door {
	d := &door{
		Listener: l, links: links, logger: logger, admission: newAdmission(), accepted: make(chan net.Conn), gone: make(chan struct{}),
		first: config.Clone(), others: config.Clone(), agents: config.Clone(),
	}
	d.first.GetConfigForClient = d.choose
	d.others.NextProtos = []string{"h2", "http/1.1"}
	d.agents.NextProtos = []string{link.Agreed, "h2"}
	// What agents are sent is a message at a time, or many: records as large as they may be are the fewest.
	d.agents.DynamicRecordSizingDisabled = true
	return d
}

// askHosts has hosts show client certificates. Whether they are good is for who serves them to say, in words; and others, browsers
// above all, aren't asked. To be called before begin.
func (d *door) askHosts() {
	d.calls = d.others.Clone()
	for _, c := range []*tls.Config{d.agents, d.calls} {
		// A session that is resumed would show what the host had, or hadn't, when it began.
		c.ClientAuth, c.SessionTicketsDisabled = tls.RequestClientCert, true
	}
}

// begin opens it.
func (d *door) begin() *door {
	d.done.Go(d.open)
	return d
}

// open takes connections until the listener is closed.
func (d *door) open() {
	defer d.shut()
	pause := time.Duration(0)
	for {
		conn, err := d.Listener.Accept()
		switch {
		case err == nil:
			pause = 0
			go d.greet(conn)
		case errors.Is(err, net.ErrClosed):
			return
		default:
			// No file is left, most likely. It passes.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			d.logger.Warn("a connection can't be accepted, trying again", slog.Any("error", err))
			select {
			case <-d.gone:
				return
			case <-time.After(pause):
			}
		}
	}
}

// comer is a connection that shakes hands.
type comer struct {
	*link.Wire

	place *place // an agent's that was let in; else nil
}

// choose is called when a ClientHello has come. It lets agents in, or sends them away.
func (d *door) choose(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	if d.challenge != nil && slices.Equal(hello.SupportedProtos, []string{acmecert.ALPN}) {
		return &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{acmecert.ALPN}, GetCertificate: d.challenge, SessionTicketsDisabled: true}, nil
	}
	if d.calls != nil && slices.Contains(hello.SupportedProtos, link.Call) {
		return d.calls, nil
	}
	c, ok := hello.Conn.(*comer)
	if !ok || !slices.Contains(hello.SupportedProtos, link.Protocol) || !slices.Contains(hello.SupportedProtos, "h2") {
		return d.others, nil
	}
	place, after := d.admission.admit(hello.Context(), sourceOf(c.RemoteAddr()))
	if after > 0 {
		_, _ = c.Write(link.Busy(after))
		return nil, errBusy
	}
	c.place = place
	return d.agents, nil
}

// greet shakes hands and passes the connection on.
func (d *door) greet(conn net.Conn) {
	c := &comer{Wire: link.NewWire(conn)}
	secure := tls.Server(c, d.first)
	ctx, cancel := context.WithTimeout(context.Background(), handshakeWithin)
	err := secure.HandshakeContext(ctx)
	cancel()
	place := c.place
	c.place = nil
	switch {
	case err != nil:
		if place != nil {
			place.leave()
		}
		_ = conn.Close()
		d.logger.Debug("TLS handshake failed", slog.String("peer", conn.RemoteAddr().String()), slog.Any("error", err))
	case secure.ConnectionState().NegotiatedProtocol == acmecert.ALPN:
		_ = secure.Close()
	case place != nil:
		c.Asked, c.Welcomed = place.asked, place.leave
		// A new goroutine, for handshakes leave large stacks behind.
		go d.links(secure, c.Wire)
	default:
		select {
		case d.accepted <- secure:
		case <-d.gone:
			_ = conn.Close()
		}
	}
}

// Accept implements net.Listener: of connections that aren't agents' own, with TLS.
func (d *door) Accept() (net.Conn, error) {
	select {
	case c := <-d.accepted:
		return c, nil
	case <-d.gone:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (d *door) Close() error {
	d.shut()
	return d.err
}

func (d *door) shut() {
	d.once.Do(func() {
		d.err = d.Listener.Close()
		close(d.gone)
	})
}
