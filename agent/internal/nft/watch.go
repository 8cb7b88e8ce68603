package nft

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Watch returns a channel that gets a value whenever somebody else has changed our table, or may have: the caller then
// compares. It is closed when ctx ends or the kernel's socket fails. Values that aren't taken yet are not doubled.
func (e *Enforcer) Watch(ctx context.Context) (<-chan struct{}, error) {
	s, err := openSocket(e.cfg.NetNS)
	if err != nil {
		return nil, err
	}
	if err := e.join(s); err != nil {
		_ = s.close()
		return nil, fmt.Errorf("watch nftables: %w", err)
	}
	out := make(chan struct{}, 1)
	stop := context.AfterFunc(ctx, func() { _ = s.file.SetReadDeadline(time.Unix(1, 0)) })
	go func() {
		defer close(out)
		defer stop()
		defer s.close() //nolint:errcheck // nothing was written
		for ctx.Err() == nil {
			n, err := s.file.Read(s.buf)
			hit := errors.Is(err, unix.ENOBUFS) // some events are lost: one may have been ours
			if err != nil && !hit {
				if !errors.Is(err, os.ErrDeadlineExceeded) || ctx.Err() != nil {
					return
				}
				continue
			}
			for m := range messages(s.buf[:max(n, 0)]) {
				hit = hit || e.concerns(m)
			}
			if hit {
				select {
				case out <- struct{}{}:
				default:
				}
			}
		}
	}()
	return out, nil
}

// join subscribes s to nftables' events, less those of our own changes: a filter in the kernel keeps 100,000 additions
// of ours from waking us. A transaction's events come from one port, so the first message of a datagram tells.
func (e *Enforcer) join(s *socket) error {
	conn, err := s.file.SyscallConn()
	if err != nil {
		return err
	}
	e.mu.Lock()
	ours := e.sock.portID
	e.mu.Unlock()
	var swapped [4]byte
	native.PutUint32(swapped[:], ours)
	const portOffset = 12 // of nlmsg_pid
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: portOffset},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: wire.Uint32(swapped[:]), Jt: 0, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0xffffffff},
	}
	var set error
	if err := conn.Control(func(fd uintptr) {
		program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]} //nolint:gosec // 4
		if set = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &program); set == nil {
			set = unix.SetsockoptInt(int(fd), unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, unix.NFNLGRP_NFTABLES)
		}
	}); err != nil {
		return err
	}
	return set
}

// concerns tells whether an event is about our table. In each kind of event the table's name is attribute 1.
func (e *Enforcer) concerns(m received) bool {
	if m.kind>>8 != unix.NFNL_SUBSYS_NFTABLES || len(m.data) < 4 {
		return false
	}
	if m.kind&0xff == unix.NFT_MSG_NEWGEN {
		return false
	}
	for kind, value := range attributes(m.data[4:]) {
		if kind == 1 {
			return cString(value) == e.cfg.Table
		}
	}
	return false
}
