package stream

import (
	"context"
	"crypto/tls"
	"errors"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// linkProtocol is offered beside HTTP/2, and never agreed on: it says that this connection is for one stream and ends here. A
// control plane that ends TLS itself serves such a connection with less than HTTP/2 needs for everybody, and in its turn. One that
// doesn't know linkAgreed is known by it still.
const linkProtocol = "fleetban-agent"

// unlinkedFor is how long it is remembered that what ends TLS at the other end makes no links, a balancer or an older control plane.
const unlinkedFor = 10 * time.Minute

// busyFor is how long the control plane asked to stay away, when it refused this host for having too many at once: it sends an alert
// of TLS, before anything costly is done, whose number is 200 and the seconds. Spread a little, so that those of one second don't
// come in one moment. 0: it asked for nothing.
func busyFor(err error) time.Duration {
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "remote error" {
		return 0
	}
	const before, after = "tls: alert(", ")"
	text := op.Err.Error()
	if !strings.HasPrefix(text, before) || !strings.HasSuffix(text, after) {
		return 0
	}
	n, err := strconv.Atoi(text[len(before) : len(text)-len(after)])
	if err != nil || n <= 200 || n > 255 {
		return 0
	}
	return time.Duration(n-200)*time.Second - time.Duration(rand.Int64N(int64(time.Second))) //nolint:gosec // no secret
}

// askedLongest bounds what a control plane can ask for.
const askedLongest = 5 * time.Minute

// askedFor is busyFor of an error that says it, which hosts get whose streams come by a proxy that ends TLS.
func askedFor(info *fleetbanv1.ErrorInfo) time.Duration {
	after := time.Duration(info.GetRetryAfterMs()) * time.Millisecond
	if info.GetReason() != fleetbanv1.Reason_REASON_RATE_LIMITED || after == 0 {
		return 0
	}
	return min(after, askedLongest) + time.Duration(rand.Int64N(int64(time.Second))) //nolint:gosec // no secret
}

// connection is one TCP connection of its own, with a link or HTTP/2 over it: a stream that is to move to another replica must
// not be given the old replica's connection.
type connection struct {
	dialing func(ctx context.Context, network, address string) (net.Conn, error) // kept until close

	mu        sync.Mutex
	conns     []net.Conn
	closed    bool
	transport *http.Transport // nil where none was needed
}

func dial(cfg *Config) *connection {
	c := &connection{}
	dialing := cfg.Dial
	if dialing == nil {
		dialing = (&net.Dialer{Timeout: cfg.Patience, KeepAlive: 30 * time.Second}).DialContext
	}
	c.dialing = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dialing(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return c.keep(conn)
	}
	return c
}

// client speaks HTTP/2 over it.
func (c *connection) client(cfg *Config) *http.Client {
	protocols := new(http.Protocols)
	transport := &http.Transport{
		Proxy:                  cfg.Proxy,
		Protocols:              protocols,
		TLSHandshakeTimeout:    cfg.Patience,
		MaxResponseHeaderBytes: 64 << 10,
		DisableCompression:     true,
		// What a server may send before we read: enough for a page of a snapshot, little enough for a small host.
		HTTP2:       &http.HTTP2Config{MaxReceiveBufferPerStream: 512 << 10, MaxReceiveBufferPerConnection: 1 << 20},
		DialContext: c.dialing,
	}
	if cfg.URL.Scheme == "http" {
		protocols.SetUnencryptedHTTP2(true)
	} else {
		protocols.SetHTTP2(true)
		transport.TLSClientConfig = tlsConfig(cfg, "h2", linkProtocol)
	}
	c.mu.Lock()
	c.transport = transport
	c.mu.Unlock()
	return &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func tlsConfig(cfg *Config, protocols ...string) *tls.Config {
	out := &tls.Config{MinVersion: tls.VersionTLS12}
	if cfg.TLS != nil {
		out = cfg.TLS.Clone()
	}
	out.NextProtos = protocols
	return out
}

// direct reports whether the control plane's own TLS may be at the other end: there is no proxy on the way that this side knows of.
func direct(cfg *Config) bool {
	if cfg.URL.Scheme != "https" {
		return false
	}
	if cfg.Proxy == nil {
		return true
	}
	proxy, err := cfg.Proxy(&http.Request{Method: http.MethodPost, URL: cfg.URL})
	return proxy == nil && err == nil
}

// link connects, and returns the connection if the control plane at its end agrees on a link; nil if something else is there.
func (c *connection) link(ctx context.Context, cfg *Config, sessions tls.ClientSessionCache) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, cfg.Patience)
	defer cancel()
	port := cfg.URL.Port()
	if port == "" {
		port = "443"
	}
	conn, err := c.dialing(ctx, "tcp", net.JoinHostPort(cfg.URL.Hostname(), port))
	if err != nil {
		return nil, err
	}
	config := tlsConfig(cfg, linkAgreed, "h2", linkProtocol)
	if config.ServerName == "" {
		config.ServerName = cfg.URL.Hostname()
	}
	if config.ClientSessionCache == nil {
		config.ClientSessionCache = sessions
	}
	session, _ := config.ClientSessionCache.Get(config.ServerName)
	secure := tls.Client(conn, config)
	if err := secure.HandshakeContext(ctx); err != nil {
		// A handshake that fails forgets its session. This one didn't fail for that: the next needs no certificate again.
		if busyFor(err) > 0 {
			config.ClientSessionCache.Put(config.ServerName, session)
		}
		return nil, err
	}
	if secure.ConnectionState().NegotiatedProtocol == linkAgreed {
		return secure, nil
	}
	return nil, secure.Close()
}

func (c *connection) keep(conn net.Conn) (net.Conn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		_ = conn.Close()
		return nil, net.ErrClosed
	}
	c.conns = append(c.conns, conn)
	return conn, nil
}

// peers is the addresses at the other end.
func (c *connection) peers() (out []netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.conns {
		if a, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
			out = append(out, a.AddrPort().Addr().Unmap().WithZone(""))
		}
	}
	return out
}

// close cuts the TCP connection: that ends every read and write on it, whatever the layers above wait for.
func (c *connection) close() {
	c.mu.Lock()
	c.closed = true
	conns, transport := c.conns, c.transport
	c.conns = nil
	c.mu.Unlock()
	for _, conn := range conns {
		_ = conn.Close()
	}
	if transport != nil {
		transport.CloseIdleConnections()
	}
}
