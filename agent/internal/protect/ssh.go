package protect

import (
	"bytes"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// freshFor is how long a look at the connections or at sshd counts. A login takes longer than that, and whoever holds
// bans looks again every few seconds.
const freshFor = 100 * time.Millisecond

// sshPeers finds the peers of live, authenticated SSH sessions.
//
// A session is authenticated if an sshd process that holds its socket says so by its title. Before it has checked the
// password, sshd's titles are "sshd: [accepted]", "sshd: USER [priv]", "sshd: USER [net]" or "… [preauth]"; after it,
// the process that serves the session is "sshd: USER@pts/0", "sshd: USER@notty" or, without a session, "sshd: USER".
// (A monitor "[priv]" stays beside it.) Newer releases call the program sshd-session.
type sshPeers struct {
	root string

	mu       sync.Mutex
	conns    []connection // sorted by peer
	connsAt  time.Time
	peers    map[netip.Addr]bool
	peersAt  time.Time
	problem  string
	problem2 string
}

// connection is an established TCP connection of the host.
type connection struct {
	peer  netip.Addr
	inode uint64
}

// in reports whether a peer of an authenticated session is in b.
func (s *sshPeers) in(b netip.Prefix) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lookFor(b)
}

// known is in without a look at the connections where the last one, however old, found none with b; sure says that the
// answer is in's.
func (s *sshPeers) known(b netip.Prefix) (in, sure bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns != nil && time.Since(s.connsAt) >= freshFor {
		if _, connected := s.firstWith(b); !connected {
			return false, false
		}
	}
	return s.lookFor(b), true
}

// firstWith finds the first connection with an address in b.
func (s *sshPeers) firstWith(b netip.Prefix) (int, bool) {
	i, _ := slices.BinarySearchFunc(s.conns, b.Masked().Addr(), func(c connection, a netip.Addr) int { return c.peer.Compare(a) })
	return i, i < len(s.conns) && b.Contains(s.conns[i].peer)
}

func (s *sshPeers) lookFor(b netip.Prefix) bool {
	s.lookAtConnections()
	i, connected := s.firstWith(b)
	if !connected {
		return false // the common case: no connection with it at all
	}
	s.lookAtSessions()
	for ; i < len(s.conns) && b.Contains(s.conns[i].peer); i++ {
		if s.peers[s.conns[i].peer] {
			return true
		}
	}
	return false
}

func (s *sshPeers) established() []connection {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lookAtConnections()
	return s.conns
}

func (s *sshPeers) problemText() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.problem != "" {
		return s.problem
	}
	return s.problem2
}

func (s *sshPeers) lookAtConnections() {
	now := time.Now()
	if s.conns != nil && now.Sub(s.connsAt) < freshFor {
		return
	}
	s.problem = ""
	var conns []connection
	asked := false
	if s.root == "/" {
		var err error
		conns, err = askKernel(make([]connection, 0, len(s.conns)+8))
		asked = err == nil
	}
	if !asked {
		conns = s.readConnections()
	}
	sort.Slice(conns, func(i, j int) bool { return conns[i].peer.Less(conns[j].peer) })
	s.conns, s.connsAt = conns, now
}

// readConnections reads them from /proc.
func (s *sshPeers) readConnections() []connection {
	conns := make([]connection, 0, len(s.conns))
	for _, name := range []string{"proc/net/tcp", "proc/net/tcp6"} {
		data, err := os.ReadFile(filepath.Join(s.root, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // IPv6 may be off
		}
		if err != nil {
			s.problem = "peers of SSH sessions can't be recognised: " + err.Error()
			continue
		}
		conns = appendConnections(conns, data)
	}
	return conns
}

// appendConnections reads /proc/net/tcp or tcp6: "sl local:port remote:port state … inode …".
func appendConnections(out []connection, data []byte) []connection {
	const established = "01"
	for line := range bytes.Lines(data) {
		var f [10][]byte
		n := 0
		for field := range bytes.FieldsSeq(line) {
			if f[n] = field; n == 9 {
				n++
				break
			}
			n++
			if n == 4 && string(f[3]) != established {
				break
			}
		}
		if n != 10 {
			continue
		}
		address, _, ok := strings.Cut(string(f[2]), ":")
		if !ok {
			continue
		}
		peer, ok := hexAddr4(address)
		if !ok {
			if peer, ok = hexAddr6(address); !ok {
				continue
			}
		}
		inode, err := strconv.ParseUint(string(f[9]), 10, 64)
		if err != nil || inode == 0 {
			continue
		}
		out = append(out, connection{peer.Unmap(), inode})
	}
	return out
}

func (s *sshPeers) lookAtSessions() {
	now := time.Now()
	if s.peers != nil && now.Sub(s.peersAt) < freshFor {
		return
	}
	inodes, problem := s.sessionInodes()
	peers := make(map[netip.Addr]bool)
	for _, c := range s.conns {
		if inodes[c.inode] {
			peers[c.peer] = true
		}
	}
	s.peers, s.peersAt, s.problem2 = peers, now, problem
}

// sessionInodes are the sockets of sshd processes that serve an authenticated session.
func (s *sshPeers) sessionInodes() (map[uint64]bool, string) {
	out := make(map[uint64]bool)
	proc := filepath.Join(s.root, "proc")
	dir, err := os.Open(proc)
	if err != nil {
		return out, "peers of SSH sessions can't be recognised: " + err.Error()
	}
	defer dir.Close() //nolint:errcheck // only read
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return out, "peers of SSH sessions can't be recognised: " + err.Error()
	}
	problem := ""
	var buf [512]byte
	for _, name := range names {
		if name[0] < '1' || name[0] > '9' {
			continue
		}
		base := filepath.Join(proc, name)
		comm, ok := readInto(filepath.Join(base, "comm"), buf[:])
		if !ok || !isSSHD(strings.TrimSpace(string(comm))) {
			continue
		}
		title, ok := readInto(filepath.Join(base, "cmdline"), buf[:])
		if !ok || !authenticated(string(title)) || !rootsProgram(filepath.Join(base, "exe")) {
			continue
		}
		fds, err := os.ReadDir(filepath.Join(base, "fd"))
		if err != nil {
			if errors.Is(err, fs.ErrPermission) {
				problem = "peers of SSH sessions can't be recognised: the helper may not look at sshd's sockets; " +
					"give it CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH"
			}
			continue
		}
		for _, fd := range fds {
			link, err := os.Readlink(filepath.Join(base, "fd", fd.Name()))
			if err != nil {
				continue
			}
			if inner, ok := strings.CutPrefix(link, "socket:["); ok {
				if inode, err := strconv.ParseUint(strings.TrimSuffix(inner, "]"), 10, 64); err == nil {
					out[inode] = true
				}
			}
		}
	}
	return out, problem
}

func isSSHD(name string) bool { return name == "sshd" || name == "sshd-session" }

// authenticated tells by a process's title whether it serves a session whose user has proved who they are.
func authenticated(title string) bool {
	title, _, _ = strings.Cut(title, "\x00")
	program, who, ok := strings.Cut(strings.TrimSpace(title), ": ")
	if !ok || !isSSHD(program) || who == "" || strings.HasPrefix(who, "/") {
		return false
	}
	return !strings.Contains(who, "[")
}

// rootsProgram keeps a user of the host from protecting an address with a program that calls itself sshd.
func rootsProgram(exe string) bool {
	info, err := os.Stat(exe)
	if err != nil {
		// Not ours to look at, or replaced by an upgrade while it ran: the socket decides.
		return true
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return !ok || (st.Uid == 0 && info.Mode().Perm()&0o022 == 0)
}

// readInto reads the beginning of a small file without allocating for each of a machine's processes.
func readInto(name string, buf []byte) ([]byte, bool) {
	fd, err := syscall.Open(name, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, false
	}
	defer syscall.Close(fd) //nolint:errcheck // only read
	n, err := syscall.Read(fd, buf)
	if err != nil || n <= 0 {
		return nil, false
	}
	return buf[:n], true
}
