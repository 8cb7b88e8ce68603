package protect

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Of linux/sock_diag.h and linux/inet_diag.h.
const (
	tcpDiagGetSock   = 18 // of all families at once
	sockDiagByFamily = 20
	oldRequestLen    = 60 // struct inet_diag_req
	oldRequestStates = 52 // its idiag_states
	diagRequestLen   = 56 // struct inet_diag_req_v2
	diagMessageLen   = 72 // struct inet_diag_msg
	tcpEstablished   = 1

	diagRoom = 64 << 10
	// diagPatience keeps a kernel that doesn't answer from holding up bans.
	diagPatience = 1 // s
)

// askKernel appends the host's established TCP connections to out. The kernel tells them in a fraction of a millisecond,
// where reading /proc/net/tcp takes five and more on a machine with much memory: it goes through every bucket of a table
// that grows with it. An error leaves /proc to be read: the kernel may lack the module.
func askKernel(out []connection) ([]connection, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return out, err
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: diagPatience}); err != nil {
		return out, err
	}
	buf := make([]byte, diagRoom)
	// The older request has the kernel go through its table once for both families: that, not what it finds, takes the time.
	both := make([]byte, oldRequestLen)
	binary.NativeEndian.PutUint32(both[oldRequestStates:], 1<<tcpEstablished)
	if all, err := dump(fd, tcpDiagGetSock, both, 1, buf, out); err == nil {
		return all, nil
	}
	for i, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		one := make([]byte, diagRequestLen)
		one[0], one[1] = family, unix.IPPROTO_TCP
		binary.NativeEndian.PutUint32(one[4:], 1<<tcpEstablished)
		if out, err = dump(fd, sockDiagByFamily, one, uint32(i)+2, buf, out); err != nil {
			return out, fmt.Errorf("ask for connections: %w", err)
		}
	}
	return out, nil
}

// dump sends one request and appends what it is answered.
func dump(fd int, kind uint16, body []byte, seq uint32, buf []byte, out []connection) ([]connection, error) {
	request := append(make([]byte, unix.NLMSG_HDRLEN), body...)
	binary.NativeEndian.PutUint32(request, uint32(len(request))) //nolint:gosec // 76 at most
	binary.NativeEndian.PutUint16(request[4:], kind)
	binary.NativeEndian.PutUint16(request[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	binary.NativeEndian.PutUint32(request[8:], seq)
	if err := unix.Sendto(fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return out, err
	}
	for {
		n, from, err := unix.Recvfrom(fd, buf, unix.MSG_TRUNC)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return out, err
		}
		if n > len(buf) {
			return out, fmt.Errorf("an answer of %d bytes", n)
		}
		if sender, ok := from.(*unix.SockaddrNetlink); !ok || sender.Pid != 0 {
			continue // not the kernel
		}
		var done bool
		if out, done, err = appendAnswer(out, buf[:n], seq); done || err != nil {
			return out, err
		}
	}
}

// appendAnswer reads one datagram of an answer.
func appendAnswer(out []connection, b []byte, seq uint32) (_ []connection, done bool, err error) {
	for len(b) >= unix.NLMSG_HDRLEN {
		length := int(binary.NativeEndian.Uint32(b))
		if length < unix.NLMSG_HDRLEN || length > len(b) {
			return out, false, errors.New("an answer that is cut off")
		}
		data := b[unix.NLMSG_HDRLEN:length]
		mine := binary.NativeEndian.Uint32(b[8:]) == seq
		switch kind := binary.NativeEndian.Uint16(b[4:]); {
		case !mine:
		case kind == unix.NLMSG_DONE:
			return out, true, nil
		case kind == unix.NLMSG_ERROR:
			if len(data) < 4 {
				return out, false, errors.New("an answer that is cut off")
			}
			return out, false, unix.Errno(-int32(binary.NativeEndian.Uint32(data))) //nolint:gosec // a negative number of 32 bits
		case (kind == sockDiagByFamily || kind == tcpDiagGetSock) && len(data) >= diagMessageLen:
			// The peer's address is in network order from byte 24, the inode's number is the last field.
			peer := netip.AddrFrom16([16]byte(data[24:40]))
			if data[0] == unix.AF_INET {
				peer = netip.AddrFrom4([4]byte(data[24:28]))
			}
			if inode := binary.NativeEndian.Uint32(data[68:]); inode != 0 {
				out = append(out, connection{peer.Unmap(), uint64(inode)})
			}
		}
		b = b[min(len(b), (length+3)&^3):]
	}
	return out, false, nil
}
