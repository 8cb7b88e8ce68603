package agentapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/fleetban/fleetban/controlplane/internal/apierr"
	"github.com/fleetban/fleetban/controlplane/internal/auth"
	"github.com/fleetban/fleetban/controlplane/internal/link"
	"github.com/fleetban/fleetban/controlplane/internal/requestid"
	"github.com/fleetban/fleetban/controlplane/internal/sets"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/v1/fleetbanv1connect"
)

// duplex is what carries a stream's messages: connect over net/http, or a link.
type duplex interface {
	// Receive gives the next message. A plain acknowledgement, most of what comes, it may hand to st instead, and give nil.
	Receive(st *stream) (*fleetbanv1.ConnectRequest, error)
	// Send sends one message. On a link it never blocks.
	Send(m *outgoing) error
}

// served is a stream's messages over net/http.
type served struct {
	*connect.BidiStream[fleetbanv1.ConnectRequest, outgoing]
}

// Receive implements duplex.
func (s served) Receive(*stream) (*fleetbanv1.ConnectRequest, error) { return s.BidiStream.Receive() }

// control is what unblocks a Receive, and bounds a Send; nil where the transport has nothing for it.
type control interface {
	SetReadDeadline(t time.Time) error
	SetWriteDeadline(t time.Time) error
}

// linked is a stream's messages over a link, through the interceptors.
type linked struct {
	received connect.StreamingHandlerConn // what interceptors made of raw
	raw      *linkConn
}

// Receive implements duplex.
func (l linked) Receive(st *stream) (*fleetbanv1.ConnectRequest, error) {
	m := l.raw.ahead(st)
	if m == nil {
		return nil, nil
	}
	if err := l.received.Receive(m); err != nil {
		return nil, err
	}
	return m, nil
}

// Send implements duplex.
func (l linked) Send(m *outgoing) error { return l.raw.Send(m) }

// linkConn is a link as interceptors know streams.
type linkConn struct {
	*link.Stream

	service  *Service
	response http.Header
	trailer  http.Header

	// What ahead has decoded, and whether it could; for the Receive that follows.
	decoded    *fleetbanv1.ConnectRequest
	decodedErr error
}

var _ connect.StreamingHandlerConn = (*linkConn)(nil)

// Spec implements connect.StreamingHandlerConn.
func (c *linkConn) Spec() connect.Spec {
	return connect.Spec{
		StreamType: connect.StreamTypeBidi, Schema: c.service.connectSchema, Procedure: fleetbanv1connect.AgentServiceConnectProcedure,
	}
}

// Peer implements connect.StreamingHandlerConn.
func (c *linkConn) Peer() connect.Peer {
	return connect.Peer{Addr: c.RemoteAddr().String(), Protocol: connect.ProtocolGRPC}
}

// RequestHeader implements connect.StreamingHandlerConn.
func (c *linkConn) RequestHeader() http.Header { return c.Header }

// ResponseHeader implements connect.StreamingHandlerConn.
func (c *linkConn) ResponseHeader() http.Header { return c.response }

// ResponseTrailer implements connect.StreamingHandlerConn.
func (c *linkConn) ResponseTrailer() http.Header { return c.trailer }

// ahead receives a message, nil where it was a plain acknowledgement, which st has then; st may be nil. Of any other the Receive that
// follows says what became of it, through the interceptors, which check it.
func (c *linkConn) ahead(st *stream) (m *fleetbanv1.ConnectRequest) {
	plain := false
	c.decodedErr = c.Stream.Receive(func(b []byte) error {
		if st != nil {
			var few [plainCursors]sets.Cursor
			var cursors []sets.Cursor
			var inert fleetbanv1.Inert
			if cursors, inert, plain = plainAck(b, st.sets, few[:0]); plain {
				st.acknowledge(cursors, inert, nil)
				return nil
			}
		}
		m = new(fleetbanv1.ConnectRequest)
		if err := proto.Unmarshal(b, m); err != nil {
			return connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("decode %T: %w", m, err))
		}
		return nil
	})
	if plain {
		return nil
	}
	if m == nil {
		m = new(fleetbanv1.ConnectRequest)
	}
	c.decoded = m
	return m
}

// Receive implements connect.StreamingHandlerConn.
func (c *linkConn) Receive(message any) error {
	if message != c.decoded {
		return fmt.Errorf("can't receive a %T: it wasn't received ahead", message)
	}
	err := c.decodedErr
	c.decoded = nil
	switch {
	case err == nil, errors.Is(err, io.EOF):
		return err
	case errors.Is(err, link.ErrTooLarge):
		return connect.NewError(connect.CodeResourceExhausted, err)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return connect.NewError(connect.CodeDeadlineExceeded, err)
	case connect.CodeOf(err) != connect.CodeUnknown:
		return err
	default:
		return connect.NewError(connect.CodeCanceled, err) // the connection broke, or the agent left
	}
}

// Send implements connect.StreamingHandlerConn.
func (c *linkConn) Send(message any) error {
	m, ok := message.(*outgoing)
	if !ok {
		return fmt.Errorf("can't encode a %T", message)
	}
	b, err := m.prefixed()
	if err != nil {
		return err
	}
	if err := c.Respond(c.response); err != nil {
		return err
	}
	return c.Stream.Send(b)
}

// prefixed is the message as gRPC has it on the wire.
func (m *outgoing) prefixed() ([]byte, error) {
	if m.message == nil {
		return m.bytes, nil
	}
	b := make([]byte, link.PrefixLength, link.PrefixLength+64)
	b, err := proto.MarshalOptions{}.MarshalAppend(b, m.message)
	if err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	link.PutPrefix(b)
	return b, nil
}

// ServeLink serves a connection of an agent that has nothing but its stream on it: see package link. conn is TLS over wire, or
// wire. It closes the connection, calls wire.Asked and wire.Welcomed, and returns when the stream is over.
func (s *Service) ServeLink(conn net.Conn, wire *link.Wire) {
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		_ = wire.Close()
		return
	}
	s.wg.Add(1)
	s.mu.Unlock()
	defer s.wg.Done()
	// As in net/http, what one connection makes go wrong ends no other.
	defer func() {
		if r := recover(); r != nil {
			s.Logger.Error("serving a stream panicked", slog.Any("panic", r), slog.String("stack", string(debug.Stack())))
			_ = wire.Close()
		}
	}()
	pushed := pushedStream{welcomed: wire.Welcomed}
	if wire.Welcomed != nil {
		defer wire.Welcomed()
	}
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	// Who closes the service waits for nobody's request.
	defer context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })()
	accepting, accepted := context.WithTimeout(ctx, helloWithin)
	l, err := link.Accept(accepting, conn, wire, pushed.drained)
	accepted()
	defer l.Close()
	if err != nil {
		return
	}
	if wire.Asked != nil {
		wire.Asked()
	}
	id := requestid.Of(l.Header)
	c := &linkConn{Stream: l, service: s, response: http.Header{requestid.Header: {id}}, trailer: http.Header{}}
	ctx = withCertificates(auth.WithAnswer(requestid.With(ctx, id), c.response), stateOf(conn))
	if l.Path != fleetbanv1connect.AgentServiceConnectProcedure {
		l.Finish(c.response, connect.NewError(connect.CodeUnimplemented, errors.New("this connection is for an agent's stream")))
		return
	}
	serve := func(ctx context.Context, received connect.StreamingHandlerConn) error {
		return s.connect(ctx, linked{received, c}, l, &pushed)
	}
	for i := len(s.interceptors) - 1; i >= 0; i-- {
		serve = s.interceptors[i].WrapStreamingHandler(serve)
	}
	err = serve(ctx, c)
	var status *connect.Error
	if err != nil && !errors.As(err, &status) {
		status = apierr.From(ctx, err)
	}
	l.Finish(c.response, status)
}
