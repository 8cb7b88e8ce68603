package localrpc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// Peer is the process at the other end of a connection, as the kernel knows it.
type Peer struct {
	UID uint32
	PID int32
}

type peerKey struct{}

// PeerFrom returns who calls. The second result is false outside a call that came through a Server.
func PeerFrom(ctx context.Context) (Peer, bool) {
	p, ok := ctx.Value(peerKey{}).(Peer)
	return p, ok
}

// withPeer is an http.Server.ConnContext. A connection whose peer can't be told gets a context without one, and every
// procedure refuses it.
func withPeer(ctx context.Context, conn net.Conn) context.Context {
	p, err := peerOf(conn)
	if err != nil {
		return ctx
	}
	return context.WithValue(ctx, peerKey{}, p)
}

func peerOf(conn net.Conn) (Peer, error) {
	if c, ok := conn.(*counted); ok {
		conn = c.UnixConn
	}
	uc, ok := conn.(*net.UnixConn)
	if !ok {
		return Peer{}, fmt.Errorf("peer of %T: not a Unix socket", conn)
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return Peer{}, fmt.Errorf("peer: %w", err)
	}
	var cred *unix.Ucred
	var optErr error
	if err := raw.Control(func(fd uintptr) {
		cred, optErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) //nolint:gosec // a descriptor fits
	}); err != nil {
		return Peer{}, fmt.Errorf("peer: %w", err)
	}
	if optErr != nil {
		return Peer{}, fmt.Errorf("peer: SO_PEERCRED: %w", optErr)
	}
	return Peer{UID: cred.Uid, PID: cred.Pid}, nil
}

// Allow is the users that may call a procedure.
type Allow []uint32

func (a Allow) has(uid uint32) bool {
	for _, u := range a {
		if u == uid {
			return true
		}
	}
	return false
}

// guard refuses callers that a procedure doesn't list. A procedure it doesn't know is refused for everyone.
type guard struct {
	allow map[string]Allow
}

func (g guard) check(ctx context.Context, procedure string) error {
	peer, ok := PeerFrom(ctx)
	if !ok {
		return NewError(connect.CodePermissionDenied, fleetbanv1.Reason_REASON_PERMISSION_DENIED,
			errors.New("the kernel doesn't say who calls"), "Call through the Unix socket.")
	}
	if !g.allow[procedure].has(peer.UID) {
		return NewError(connect.CodePermissionDenied, fleetbanv1.Reason_REASON_PERMISSION_DENIED,
			errors.New("user "+strconv.FormatUint(uint64(peer.UID), 10)+" may not call "+procedure), "Run the command as root.")
	}
	return nil
}

func (g guard) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		if err := g.check(ctx, req.Spec().Procedure); err != nil {
			return nil, err
		}
		return next(ctx, req)
	}
}

func (g guard) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (g guard) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		if err := g.check(ctx, conn.Spec().Procedure); err != nil {
			return err
		}
		return next(ctx, conn)
	}
}

// NewError makes an error of the API: a code, a reason for programs and what to do for people.
func NewError(code connect.Code, reason fleetbanv1.Reason, err error, fix string) *connect.Error {
	e := connect.NewError(code, err)
	if detail, detailErr := connect.NewErrorDetail(fleetbanv1.ErrorInfo_builder{Reason: reason, Fix: fix}.Build()); detailErr == nil {
		e.AddDetail(detail)
	}
	return e
}
