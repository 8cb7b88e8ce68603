package stream

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// connection is one TCP connection of its own, with HTTP/2 over it: a stream that is to move to another replica must
// not be given the old replica's connection.
type connection struct {
	transport *http.Transport
	client    *http.Client

	mu     sync.Mutex
	conns  []net.Conn
	closed bool
}

func dial(cfg *Config) *connection {
	c := &connection{}
	dialing := cfg.Dial
	if dialing == nil {
		dialing = (&net.Dialer{Timeout: cfg.Patience, KeepAlive: 30 * time.Second}).DialContext
	}
	protocols := new(http.Protocols)
	c.transport = &http.Transport{
		Proxy:                  cfg.Proxy,
		Protocols:              protocols,
		TLSHandshakeTimeout:    cfg.Patience,
		MaxResponseHeaderBytes: 64 << 10,
		DisableCompression:     true,
		// What a server may send before we read: enough for a page of a snapshot, little enough for a small host.
		HTTP2: &http.HTTP2Config{MaxReceiveBufferPerStream: 512 << 10, MaxReceiveBufferPerConnection: 1 << 20},
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dialing(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return c.keep(conn)
		},
	}
	if cfg.URL.Scheme == "http" {
		protocols.SetUnencryptedHTTP2(true)
	} else {
		protocols.SetHTTP2(true)
		if cfg.TLS != nil {
			c.transport.TLSClientConfig = cfg.TLS.Clone()
		}
	}
	c.client = &http.Client{Transport: c.transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return c
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
	conns := c.conns
	c.conns = nil
	c.mu.Unlock()
	for _, conn := range conns {
		_ = conn.Close()
	}
	c.transport.CloseIdleConnections()
}
