package protect

import (
	"net"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// TestKernelTellsWhatProcTells holds the kernel's two ways to tell connections together, for IPv4, IPv6 and IPv4 that an
// IPv6 socket took.
func TestKernelTellsWhatProcTells(t *testing.T) {
	mine := map[uint64]netip.Addr{}
	for _, way := range []struct{ network, listen, dial string }{
		{"tcp4", "127.0.0.1:0", "127.0.0.1"}, {"tcp6", "[::1]:0", "::1"}, {"tcp", "[::]:0", "127.0.0.1"},
	} {
		l, err := net.Listen(way.network, way.listen)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		_, port, _ := net.SplitHostPort(l.Addr().String())
		client, err := net.Dial("tcp", net.JoinHostPort(way.dial, port))
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		server, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		for _, c := range []net.Conn{client, server} {
			mine[inodeOf(t, c)] = netip.MustParseAddr(way.dial)
		}
	}
	asked, err := askKernel(nil)
	if err != nil {
		t.Fatal(err)
	}
	read := (&sshPeers{root: "/"}).readConnections()
	for inode, peer := range mine {
		for name, got := range map[string][]connection{"the kernel": asked, "/proc": read} {
			if !slices.Contains(got, connection{peer, inode}) {
				t.Errorf("%s doesn't tell of the connection with %s", name, peer)
			}
		}
	}
}

func inodeOf(t *testing.T, c net.Conn) uint64 {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := raw.Control(func(fd uintptr) { err = unix.Fstat(int(fd), &st) }); err != nil || st.Ino == 0 {
		t.Fatalf("inode of a socket: %d, %v", st.Ino, err)
	}
	return st.Ino
}

func BenchmarkConnections(b *testing.B) {
	for b.Loop() {
		if _, err := askKernel(nil); err != nil {
			b.Fatal(err)
		}
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add(make([]byte, 16))
	f.Add([]byte{88, 0, 0, 0, 20, 0, 0, 0, 1, 0, 0, 0})
	f.Fuzz(func(_ *testing.T, b []byte) { _, _, _ = appendAnswer(nil, b, 1) })
}
