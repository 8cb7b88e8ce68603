package protect

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"net/netip"
	"strconv"
	"strings"
)

const routeGateway = 0x2 // RTF_GATEWAY

func readBounded(r io.Reader) ([]byte, error) { return io.ReadAll(io.LimitReader(r, maxFile)) }

// optional reads a file that need not be there.
func optional(name string) ([]byte, error) {
	data, err := readFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return data, err
}

// gateways are the next hops of all routes.
func (p *Protector) gateways() ([]netip.Addr, error) {
	four, err := optional(p.file("proc/net/route"))
	if err != nil {
		return nil, err
	}
	six, err := optional(p.file("proc/net/ipv6_route"))
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	seen := make(map[netip.Addr]bool)
	add := func(a netip.Addr, ok bool) {
		if ok && !a.IsUnspecified() && !seen[a] {
			seen[a] = true
			out = append(out, a)
		}
	}
	// Iface Destination Gateway Flags …, numbers in hexadecimal, addresses in the host's byte order.
	for line := range bytes.Lines(four) {
		f := strings.Fields(string(line))
		if len(f) < 4 || !hasFlag(f[3]) {
			continue
		}
		add(hexAddr4(f[2]))
	}
	// destination length source length next-hop metric references uses flags device
	for line := range bytes.Lines(six) {
		f := strings.Fields(string(line))
		if len(f) < 10 || !hasFlag(f[8]) {
			continue
		}
		raw, err := hex.DecodeString(f[4])
		if err != nil {
			continue
		}
		add(netip.AddrFromSlice(raw))
	}
	return out, nil
}

func hasFlag(hexadecimal string) bool {
	flags, err := strconv.ParseUint(hexadecimal, 16, 32)
	return err == nil && flags&routeGateway != 0
}

// hexAddr4 reads an IPv4 address as /proc writes it: 32 bits of the host's memory as a number.
func hexAddr4(s string) (netip.Addr, bool) {
	n, err := strconv.ParseUint(s, 16, 32)
	if err != nil || len(s) != 8 {
		return netip.Addr{}, false
	}
	var a [4]byte
	binary.NativeEndian.PutUint32(a[:], uint32(n)) //nolint:gosec // parsed as 32 bits
	return netip.AddrFrom4(a), true
}

// hexAddr6 reads an IPv6 address as /proc/net/tcp6 writes it: four numbers of 32 bits of the host's memory.
func hexAddr6(s string) (netip.Addr, bool) {
	if len(s) != 32 {
		return netip.Addr{}, false
	}
	var a [16]byte
	for i := range 4 {
		n, err := strconv.ParseUint(s[i*8:i*8+8], 16, 32)
		if err != nil {
			return netip.Addr{}, false
		}
		binary.NativeEndian.PutUint32(a[i*4:], uint32(n)) //nolint:gosec // parsed as 32 bits
	}
	return netip.AddrFrom16(a), true
}

// resolvers are the DNS servers that the host asks, also those behind systemd-resolved's stub.
func (p *Protector) resolvers() ([]netip.Addr, error) {
	var out []netip.Addr
	for _, name := range []string{"etc/resolv.conf", "run/systemd/resolve/resolv.conf"} {
		data, err := optional(p.file(name))
		if err != nil {
			return nil, err
		}
		for line := range bytes.Lines(data) {
			f := strings.Fields(string(line))
			if len(f) < 2 || f[0] != "nameserver" {
				continue
			}
			if a, err := netip.ParseAddr(f[1]); err == nil {
				out = append(out, a)
			}
		}
	}
	return out, nil
}
