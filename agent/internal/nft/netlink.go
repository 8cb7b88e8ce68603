package nft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// netlink's numbers are in the host's byte order, nftables' in network order.
var (
	native = binary.NativeEndian
	wire   = binary.BigEndian
)

const (
	headerLen  = unix.NLMSG_HDRLEN + 4 // netlink's header and nfnetlink's
	answerTime = 30 * time.Second      // the longest that the kernel may take for one transaction
	wantSend   = 16 << 20              // send buffer that a whole table fits in
	nested     = unix.NLA_F_NESTED
)

// socket is one netlink socket. Not safe for concurrent use.
type socket struct {
	file   *os.File
	portID uint32
	// largest is the most bytes that one message to the kernel, and so one transaction, may have.
	largest int
	seq     uint32
	buf     []byte
}

var socketSeq atomic.Uint32

// openSocket opens a socket in the network namespace at netns, or the caller's if empty.
func openSocket(netns string) (*socket, error) {
	var fd int
	err := inNamespace(netns, func() (err error) {
		fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open netfilter's netlink socket: %w", err)
	}
	s := &socket{seq: socketSeq.Add(1) << 16, buf: make([]byte, 1<<16)}
	if err := s.setUp(fd); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("set up netfilter's netlink socket: %w", err)
	}
	s.file = os.NewFile(uintptr(fd), "netlink")
	return s, nil
}

func (s *socket) setUp(fd int) error {
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return err
	}
	if nl, ok := name.(*unix.SockaddrNetlink); ok {
		s.portID = nl.Pid
	}
	// Without these an error echoes the whole message it answers, and says only its number.
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1)
	// In a user namespace only the plain one works, up to net.core.wmem_max: then a big table takes several transactions.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, wantSend/2) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, wantSend/2)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 1<<20)
	size, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF)
	if err != nil {
		return err
	}
	s.largest = min(size-4096, wantSend/2)
	return nil
}

func (s *socket) close() error { return s.file.Close() }

func (s *socket) nextSeq() uint32 {
	s.seq++
	return s.seq
}

// inNamespace runs f in the network namespace at path.
func inNamespace(path string, f func() error) error {
	if path == "" {
		return f()
	}
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer home.Close() //nolint:errcheck // nothing was written
	target, err := os.Open(path)
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer target.Close() //nolint:errcheck // nothing was written
	if err := unix.Setns(int(target.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return err
	}
	err = f()
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
		// The thread stays locked, so that it dies with its goroutine rather than serve others in the wrong place.
		return errors.Join(err, fmt.Errorf("leave network namespace: %w", back))
	}
	runtime.UnlockOSThread()
	return err
}

// batch is one transaction: the kernel takes all of it or nothing.
type batch struct {
	buf      []byte
	begin    uint32 // sequence number of the frame around it
	message  int    // where the message being written begins
	lastSeq  uint32
	messages int
	s        *socket
}

func (s *socket) newBatch(room int) *batch {
	b := &batch{s: s, buf: make([]byte, 0, max(room, 4096))}
	b.begin = b.start(unix.NFNL_MSG_BATCH_BEGIN, unix.NLM_F_REQUEST, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)
	b.finish()
	return b
}

// start begins a message; finish ends it.
func (b *batch) start(kind int, flags int, family byte, resource uint16) uint32 {
	seq := b.s.nextSeq()
	b.message = len(b.buf)
	b.buf = native.AppendUint32(b.buf, 0)
	b.buf = native.AppendUint16(b.buf, uint16(kind))  //nolint:gosec // a small constant
	b.buf = native.AppendUint16(b.buf, uint16(flags)) //nolint:gosec // a small constant
	b.buf = native.AppendUint32(b.buf, seq)
	b.buf = native.AppendUint32(b.buf, b.s.portID)
	b.buf = append(b.buf, family, unix.NFNETLINK_V0)
	b.buf = wire.AppendUint16(b.buf, resource)
	return seq
}

func (b *batch) finish() {
	native.PutUint32(b.buf[b.message:], uint32(len(b.buf)-b.message)) //nolint:gosec // bounded by the socket's buffer
}

// do begins a message of nftables in the inet family.
func (b *batch) do(kind int, flags int) {
	b.lastSeq = b.start(unix.NFNL_SUBSYS_NFTABLES<<8|kind, unix.NLM_F_REQUEST|flags, unix.NFPROTO_INET, 0)
	b.messages++
}

func (b *batch) attr(kind int, value []byte) {
	b.buf = appendAttr(b.buf, kind, value)
}

func (b *batch) text(kind int, value string) {
	b.buf = native.AppendUint16(b.buf, uint16(4+len(value)+1)) //nolint:gosec // names are short
	b.buf = native.AppendUint16(b.buf, uint16(kind))           //nolint:gosec // a small constant
	b.buf = append(b.buf, value...)
	b.buf = pad(append(b.buf, 0))
}

func (b *batch) u32(kind int, value uint32) {
	b.buf = native.AppendUint16(b.buf, 8)
	b.buf = native.AppendUint16(b.buf, uint16(kind)) //nolint:gosec // a small constant
	b.buf = wire.AppendUint32(b.buf, value)
}

// nest writes an attribute that holds what f writes.
func (b *batch) nest(kind int, f func()) {
	at := len(b.buf)
	b.buf = native.AppendUint16(b.buf, 0)
	b.buf = native.AppendUint16(b.buf, uint16(kind|nested)) //nolint:gosec // a small constant
	f()
	native.PutUint16(b.buf[at:], uint16(len(b.buf)-at)) //nolint:gosec // f writes little; elements are counted by their writer
}

func appendAttr(buf []byte, kind int, value []byte) []byte {
	buf = native.AppendUint16(buf, uint16(4+len(value))) //nolint:gosec // callers pass short values
	buf = native.AppendUint16(buf, uint16(kind))         //nolint:gosec // a small constant
	return pad(append(buf, value...))
}

func pad(buf []byte) []byte {
	for len(buf)%4 != 0 {
		buf = append(buf, 0)
	}
	return buf
}

// KernelError is the kernel's refusal of a transaction.
type KernelError struct {
	Errno unix.Errno
	// Text is what the kernel says beside the number; mostly empty.
	Text string
}

// Error is the number's meaning, and the text if there is one.
func (e *KernelError) Error() string {
	if e.Text != "" {
		return e.Errno.Error() + " (" + e.Text + ")"
	}
	return e.Errno.Error()
}

// Unwrap makes errors.Is work with the number.
func (e *KernelError) Unwrap() error { return e.Errno }

// commit sends the batch and waits for the kernel's word.
func (b *batch) commit(ctx context.Context) error {
	if b.messages == 0 {
		return nil
	}
	// One acknowledgement, for the last message, says that all are done; refusals come without being asked for.
	flags := native.Uint16(b.buf[b.message+6:])
	native.PutUint16(b.buf[b.message+6:], flags|unix.NLM_F_ACK)
	b.start(unix.NFNL_MSG_BATCH_END, unix.NLM_F_REQUEST, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)
	b.finish()
	if err := ctx.Err(); err != nil {
		return err
	}
	// Once sent it is done or refused: ctx no longer counts, for half-read answers would confuse the next transaction.
	if err := b.s.file.SetDeadline(time.Now().Add(answerTime)); err != nil {
		return err
	}
	if _, err := b.s.file.Write(b.buf); err != nil {
		return fmt.Errorf("send to the kernel: %w", err)
	}
	var first error
	for {
		n, err := b.s.file.Read(b.s.buf)
		if err != nil {
			return fmt.Errorf("read the kernel's answer: %w", err)
		}
		for msg := range messages(b.s.buf[:n]) {
			if msg.kind != unix.NLMSG_ERROR || msg.seq-b.begin > b.lastSeq-b.begin {
				continue // left over from a transaction that failed
			}
			if err := msg.err(); err != nil && first == nil {
				first = err
			}
			if msg.seq == b.lastSeq || (msg.seq == b.begin && first != nil) {
				return first
			}
		}
	}
}

// received is one netlink message of the kernel.
type received struct {
	kind   uint16
	flags  uint16
	seq    uint32
	portID uint32
	data   []byte
}

// messages goes through the messages of one datagram. What is cut off is left out.
func messages(b []byte) func(func(received) bool) {
	return func(yield func(received) bool) {
		for len(b) >= unix.NLMSG_HDRLEN {
			n := int(native.Uint32(b))
			if n < unix.NLMSG_HDRLEN || n > len(b) {
				return
			}
			m := received{
				kind: native.Uint16(b[4:]), flags: native.Uint16(b[6:]), seq: native.Uint32(b[8:]), portID: native.Uint32(b[12:]),
				data: b[unix.NLMSG_HDRLEN:n],
			}
			if !yield(m) {
				return
			}
			b = b[min(len(b), (n+3)&^3):]
		}
	}
}

// Flags and attributes of an error message: linux/netlink.h.
const (
	flagCapped   = 0x100
	flagAckTLVs  = 0x200
	attrErrorMsg = 1
)

// err is the error that an NLMSG_ERROR carries; nil for an acknowledgement.
func (m received) err() error {
	if len(m.data) < 4+unix.NLMSG_HDRLEN {
		return errors.New("kernel's answer is cut off")
	}
	errno := -int32(native.Uint32(m.data)) //nolint:gosec // a negative number of 32 bits
	if errno == 0 {
		return nil
	}
	e := &KernelError{Errno: unix.Errno(errno)} //nolint:gosec // positive
	rest := m.data[4+unix.NLMSG_HDRLEN:]
	if m.flags&flagCapped == 0 {
		echoed := int(native.Uint32(m.data[4:])) - unix.NLMSG_HDRLEN
		rest = rest[min(len(rest), max(0, echoed)):]
	}
	if m.flags&flagAckTLVs != 0 {
		for kind, value := range attributes(rest) {
			if kind == attrErrorMsg {
				e.Text = cString(value)
			}
		}
	}
	return e
}

// attributes goes through the attributes in b, without the flags of their kinds.
func attributes(b []byte) func(func(int, []byte) bool) {
	return func(yield func(int, []byte) bool) {
		for len(b) >= 4 {
			n := int(native.Uint16(b))
			if n < 4 || n > len(b) {
				return
			}
			if !yield(int(native.Uint16(b[2:]))&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[4:n]) {
				return
			}
			b = b[min(len(b), (n+3)&^3):]
		}
	}
}

func cString(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}

// errInterrupted: something changed what was being read; read again.
var errInterrupted = errors.New("changed while it was read")

// dump asks for everything of a kind and calls f with each message's attributes.
func (s *socket) dump(ctx context.Context, kind int, attrs []byte, f func(attrs []byte) error) error {
	return s.ask(ctx, kind, unix.NLM_F_REQUEST|unix.NLM_F_DUMP, attrs, f)
}

// get asks for one thing.
func (s *socket) get(ctx context.Context, kind int, attrs []byte, f func(attrs []byte) error) error {
	return s.ask(ctx, kind, unix.NLM_F_REQUEST|unix.NLM_F_ACK, attrs, f)
}

func (s *socket) ask(ctx context.Context, kind, flags int, attrs []byte, f func(attrs []byte) error) error {
	b := &batch{s: s}
	seq := b.start(unix.NFNL_SUBSYS_NFTABLES<<8|kind, flags, unix.NFPROTO_INET, 0)
	b.buf = append(b.buf, attrs...)
	b.finish()
	deadline := time.Now().Add(answerTime)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := s.file.SetDeadline(deadline); err != nil {
		return err
	}
	if _, err := s.file.Write(b.buf); err != nil {
		return fmt.Errorf("ask the kernel: %w", err)
	}
	var result error
	for {
		n, err := s.file.Read(s.buf)
		if err != nil {
			return fmt.Errorf("read the kernel's answer: %w", err)
		}
		for m := range messages(s.buf[:n]) {
			if m.seq != seq {
				continue
			}
			if m.flags&unix.NLM_F_DUMP_INTR != 0 {
				result = errors.Join(result, errInterrupted)
			}
			switch {
			case m.kind == unix.NLMSG_DONE:
				return result
			case m.kind == unix.NLMSG_ERROR:
				if err := m.err(); err != nil {
					return err
				}
				return result
			case len(m.data) < 4 || result != nil:
			default:
				// Read to the end even if f fails, so that the next question meets a clean socket.
				result = f(m.data[4:])
			}
		}
	}
}
