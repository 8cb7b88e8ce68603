package lab

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// KernelWatch tells when addresses came into a host's nftables, to some microseconds: it listens to what the kernel
// announces, as `nft monitor` does, and looks for the addresses' bytes.
type KernelWatch struct {
	fd      int
	done    chan struct{}
	mu      sync.Mutex
	changed chan struct{}
	waiting map[netip.Addr]struct{}
	seen    map[netip.Addr]time.Time
	err     error
}

// newElements is NFNL_SUBSYS_NFTABLES<<8 | NFT_MSG_NEWSETELEM.
const (
	newElements = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWSETELEM
	headerLen   = unix.SizeofNlMsghdr
	// watchBuffer holds what the kernel announces while we don't read.
	watchBuffer = 8 << 20
)

// WatchKernel begins to listen. Addresses must be announced with Expect before they can come.
func (n *Node) WatchKernel() (*KernelWatch, error) {
	w := &KernelWatch{
		done: make(chan struct{}), changed: make(chan struct{}), waiting: map[netip.Addr]struct{}{}, seen: map[netip.Addr]time.Time{},
	}
	err := n.within(func() (err error) {
		if w.fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER); err != nil {
			return err
		}
		if err := unix.SetsockoptInt(w.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, watchBuffer); err != nil {
			return err
		}
		// So that Close is noticed.
		if err := unix.SetsockoptTimeval(w.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 200_000}); err != nil {
			return err
		}
		return unix.Bind(w.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)})
	})
	if err != nil {
		return nil, fmt.Errorf("listen to the kernel of %s: %w", n.Name, err)
	}
	go w.listen()
	return w, nil
}

func (w *KernelWatch) listen() {
	buf := make([]byte, 1<<20)
	for {
		select {
		case <-w.done:
			_ = unix.Close(w.fd)
			return
		default:
		}
		n, _, err := unix.Recvfrom(w.fd, buf, 0)
		now := time.Now()
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		}
		w.mu.Lock()
		if err != nil {
			w.err = err
			close(w.changed)
			w.changed = make(chan struct{})
			w.mu.Unlock()
			_ = unix.Close(w.fd)
			return
		}
		w.look(buf[:n], now)
		w.mu.Unlock()
	}
}

// look finds expected addresses in a datagram of messages.
func (w *KernelWatch) look(datagram []byte, now time.Time) {
	for len(datagram) >= headerLen {
		length := int(binary.NativeEndian.Uint32(datagram))
		kind := binary.NativeEndian.Uint16(datagram[4:])
		if length < headerLen || length > len(datagram) {
			return
		}
		if kind == newElements {
			for addr := range w.waiting {
				if bytes.Contains(datagram[headerLen:length], addr.AsSlice()) {
					w.seen[addr] = now
					delete(w.waiting, addr)
					close(w.changed)
					w.changed = make(chan struct{})
				}
			}
		}
		datagram = datagram[min(len(datagram), (length+3)&^3):]
	}
}

// Expect says that an address will come.
func (w *KernelWatch) Expect(addr netip.Addr) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waiting[addr] = struct{}{}
}

// Await waits for an address that was expected and returns when it came.
func (w *KernelWatch) Await(ctx context.Context, addr netip.Addr) (time.Time, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		if at, ok := w.seen[addr]; ok {
			return at, nil
		}
		if w.err != nil {
			return time.Time{}, w.err
		}
		changed := w.changed
		w.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			w.mu.Lock()
			return time.Time{}, fmt.Errorf("%s didn't come into the kernel: %w", addr, ctx.Err())
		}
		w.mu.Lock()
	}
}

// Close ends the watch.
func (w *KernelWatch) Close() { close(w.done) }
