package server

import (
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	proxyproto "github.com/pires/go-proxyproto"

	"github.com/fleetban/fleetban/controlplane/internal/auth"
)

const (
	// proxyHeaderWithin is how long a proxy may take for the header that it begins a connection with.
	proxyHeaderWithin = 5 * time.Second
	// maxHops bounds how many entries of X-Forwarded-For are looked at.
	maxHops = 32
)

// proxies are the networks whose word is taken for where a request came from.
type proxies []netip.Prefix

// parseProxies parses prefixes and single addresses.
func parseProxies(texts []string) (proxies, error) {
	out := make(proxies, 0, len(texts))
	for _, text := range texts {
		if addr, err := netip.ParseAddr(text); err == nil && addr.Zone() == "" {
			addr = addr.Unmap()
			out = append(out, netip.PrefixFrom(addr, addr.BitLen()))
			continue
		}
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, err
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

func (p proxies) contain(addr netip.Addr) bool {
	return slices.ContainsFunc(p, func(n netip.Prefix) bool { return n.Contains(addr) })
}

// client finds the caller's address: the last hop of X-Forwarded-For that isn't a trusted proxy, where the peer is one. What
// a caller wrote there itself stands before what the first trusted proxy added, and is never reached.
func (p proxies) client(peer connect.Peer, header http.Header) netip.Addr {
	addr := auth.PeerAddr(peer)
	if !addr.IsValid() || !p.contain(addr) {
		return addr
	}
	hops := strings.Split(strings.Join(header.Values("X-Forwarded-For"), ","), ",")
	for i := len(hops) - 1; i >= max(0, len(hops)-maxHops); i-- {
		hop, ok := parseHop(strings.TrimSpace(hops[i]))
		if !ok {
			return addr
		}
		addr = hop
		if !p.contain(addr) {
			return addr
		}
	}
	return addr
}

// parseHop parses an address as proxies write it, some with a port.
func parseHop(text string) (netip.Addr, bool) {
	addr, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(text, "["), "]"))
	if err != nil {
		ap, err := netip.ParseAddrPort(text)
		if err != nil {
			return netip.Addr{}, false
		}
		addr = ap.Addr()
	}
	return addr.Unmap().WithZone(""), true
}

// secure reports whether the client came by HTTPS: to this process, or to a trusted proxy that says so.
func (p proxies) secure(r *http.Request) bool {
	if r.TLS != nil {
		return true
	}
	if len(p) == 0 || !p.contain(auth.PeerAddr(connect.Peer{Addr: r.RemoteAddr})) {
		return false
	}
	said := r.Header.Values("X-Forwarded-Proto")
	return len(said) == 1 && strings.EqualFold(said[0], "https")
}

// behind has connections from these networks begin with a header of the PROXY protocol, version 1 or 2, that names the
// client; one without is closed. From anywhere else such a header is what it is without the protocol: a malformed request.
func (p proxies) behind(l net.Listener) net.Listener {
	if len(p) == 0 {
		return l
	}
	return &proxyproto.Listener{
		Listener: l, ReadHeaderTimeout: proxyHeaderWithin,
		ConnPolicy: func(o proxyproto.ConnPolicyOptions) (proxyproto.Policy, error) {
			if ap, err := netip.ParseAddrPort(o.Upstream.String()); err == nil && p.contain(ap.Addr().Unmap().WithZone("")) {
				return proxyproto.REQUIRE, nil
			}
			return proxyproto.SKIP, nil
		},
	}
}
