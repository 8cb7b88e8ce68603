package identity

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fleetban/fleetban/agent/internal/version"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

// maxAddresses is how many addresses a host tells the fleet.
const maxAddresses = 64

// Facts is what this host says of itself, as of now.
func Facts() *fleetbanv1.HostFacts {
	hostname, _ := os.Hostname()
	var uts unix.Utsname
	_ = unix.Uname(&uts)
	return fleetbanv1.HostFacts_builder{
		Hostname: cut(hostname, 253), Os: cut(osName(), 128), Kernel: cut(unix.ByteSliceToString(uts.Release[:]), 128),
		Arch: runtime.GOARCH, AgentVersion: cut(version.Version, 64), Machine: machine(),
		Boot: cut(firstLine("/proc/sys/kernel/random/boot_id"), 64), Addresses: addresses(),
	}.Build()
}

// machine tells this machine from others without naming it: the id under a constant of ours.
func machine() string {
	id := firstLine("/etc/machine-id")
	if id == "" {
		return ""
	}
	sum := sha256.Sum256([]byte("fleetban host facts 1:" + id))
	return hex.EncodeToString(sum[:])
}

// addresses are this host's own public ones.
func addresses() (out [][]byte) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	for _, a := range all {
		n, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		addr, ok := netip.AddrFromSlice(n.IP)
		if !ok {
			continue
		}
		addr = addr.Unmap()
		if _, reserved := prefix.Reserved(prefix.Single(addr)); reserved || len(out) == maxAddresses {
			continue
		}
		out = append(out, addr.AsSlice())
	}
	return out
}

func osName() string {
	f, err := os.Open("/etc/os-release")
	if err != nil {
		return runtime.GOOS
	}
	defer f.Close() //nolint:errcheck // only read
	s := bufio.NewScanner(f)
	for s.Scan() {
		if v, ok := strings.CutPrefix(s.Text(), "PRETTY_NAME="); ok {
			return strings.Trim(v, `"'`)
		}
	}
	return runtime.GOOS
}

func firstLine(path string) string {
	b, err := os.ReadFile(path) //nolint:gosec // a constant
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(b), "\n")
	return strings.TrimSpace(line)
}

func cut(s string, n int) string {
	if len(s) > n {
		s = s[:n]
	}
	return strings.ToValidUTF8(s, "")
}
