package localrpc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/fleetban/fleetban/agent/internal/envelope"
)

// MaxMessage is the largest message that either side reads or sends, in bytes.
const MaxMessage = 4 << 20

// Procedure is one thing a server answers.
type Procedure struct {
	path   string
	allow  Allow
	newReq func() proto.Message
	unary  func(context.Context, proto.Message) (proto.Message, error)
	stream func(context.Context, proto.Message, func(proto.Message) error) error
}

// Unary is a procedure with one answer. path is a constant of the generated hostv1connect.
func Unary[Req, Res proto.Message](path string, allow Allow, f func(context.Context, Req) (Res, error)) Procedure {
	return Procedure{
		path: path, allow: allow,
		newReq: maker[Req](),
		unary: func(ctx context.Context, m proto.Message) (proto.Message, error) {
			return f(ctx, m.(Req)) //nolint:forcetypeassert // made by newReq
		},
	}
}

// ServerStream is a procedure with many answers: it ends when f returns.
func ServerStream[Req, Res proto.Message](path string, allow Allow, f func(context.Context, Req, func(Res) error) error) Procedure {
	return Procedure{
		path: path, allow: allow,
		newReq: maker[Req](),
		stream: func(ctx context.Context, m proto.Message, send func(proto.Message) error) error {
			return f(ctx, m.(Req), func(r Res) error { return send(r) }) //nolint:forcetypeassert // made by newReq
		},
	}
}

// maker makes empty messages of one type. Its type parameter, as those above, is a pointer only: the compiler makes generic
// code once for each layout, and pointers are all alike.
func maker[M proto.Message]() func() proto.Message {
	var none M
	t := none.ProtoReflect().Type()
	return func() proto.Message { return t.New().Interface() }
}

// Server answers procedures on one Unix socket.
type Server struct {
	listener *socket
	http     *http.Server
	cancel   context.CancelFunc
}

// Listen makes the socket, so that its name exists when this returns, and readies a server of the procedures on it.
func Listen(ctx context.Context, path string, o SocketOptions, logger *slog.Logger, procedures ...Procedure) (*Server, error) {
	listener, err := listenUnix(ctx, path, o)
	if err != nil {
		return nil, err
	}
	// Streams outlive http.Server.Shutdown's patience: this ends them.
	base, cancel := context.WithCancel(context.WithoutCancel(ctx))
	return &Server{
		listener: listener,
		cancel:   cancel,
		http: &http.Server{
			Handler:           newHandler(procedures),
			ReadHeaderTimeout: 10 * time.Second,
			IdleTimeout:       5 * time.Minute,
			MaxHeaderBytes:    16 << 10,
			ConnContext:       withPeer,
			BaseContext:       func(net.Listener) context.Context { return base },
			ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
		},
	}, nil
}

// Serve answers until ctx ends, then waits at most two seconds for calls under way.
func (s *Server) Serve(ctx context.Context) error {
	served := make(chan error, 1)
	go func() { served <- s.http.Serve(s.listener) }()
	var err error
	select {
	case err = <-served:
	case <-ctx.Done():
		s.cancel()
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		if s.http.Shutdown(limited) != nil {
			_ = s.http.Close()
		}
		err = <-served
	}
	s.cancel()
	_ = s.listener.Close()
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve %s: %w", s.listener.path, err)
}

func newHandler(procedures []Procedure) http.Handler {
	mux := http.NewServeMux()
	g := guard{allow: map[string]Allow{}}
	for _, p := range procedures {
		g.allow[p.path] = p.allow
		options := []connect.HandlerOption{
			envelope.Requests(p.newReq),
			connect.WithInterceptors(g),
			connect.WithReadMaxBytes(MaxMessage),
			connect.WithSendMaxBytes(MaxMessage),
			connect.WithCompression("gzip", nil, nil), // one machine: compressing costs more than it saves
		}
		if p.unary != nil {
			mux.Handle(p.path, connect.NewUnaryHandlerSimple(p.path, func(ctx context.Context, req *envelope.Envelope) (*envelope.Envelope, error) {
				res, err := p.unary(ctx, req.Message)
				if err != nil {
					return nil, err
				}
				return &envelope.Envelope{Message: res}, nil
			}, options...))
			continue
		}
		mux.Handle(p.path, connect.NewServerStreamHandlerSimple(p.path,
			func(ctx context.Context, req *envelope.Envelope, stream *connect.ServerStream[envelope.Envelope]) error {
				return p.stream(ctx, req.Message, func(m proto.Message) error { return stream.Send(&envelope.Envelope{Message: m}) })
			}, options...))
	}
	return mux
}
