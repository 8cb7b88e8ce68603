package localrpc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/fleetban/fleetban/agent/internal/envelope"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// baseURL is a name only: the transport dials the socket whatever it says.
const baseURL = "http://localhost"

// Client calls the procedures of a Server.
type Client struct {
	path      string
	transport *http.Transport
	http      *http.Client
}

// NewClient makes a client of the socket at path. It dials when it is first used and again whenever it must.
func NewClient(path string) *Client {
	var dialer net.Dialer
	transport := &http.Transport{
		DialContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return dialer.DialContext(ctx, "unix", path) },
		DisableCompression: true,
		MaxIdleConns:       4,
		IdleConnTimeout:    4 * time.Minute, // less than the server's, so that it isn't the one to close
	}
	return &Client{path: path, transport: transport, http: &http.Client{Transport: transport}}
}

// Close drops the idle connections.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// Call asks one procedure. res is filled on success. Errors are connect's.
func (c *Client) Call(ctx context.Context, procedure string, req, res proto.Message) error {
	client := connect.NewClient[envelope.Envelope, envelope.Envelope](c.http, baseURL+procedure, c.options(func() proto.Message { return res })...)
	if _, err := client.CallUnary(ctx, connect.NewRequest(&envelope.Envelope{Message: req})); err != nil {
		return c.explain(err)
	}
	return nil
}

// Stream asks a procedure with many answers and gives each to f until the stream ends, f fails or ctx ends. An orderly
// end is nil.
func Stream[Res proto.Message](ctx context.Context, c *Client, procedure string, req proto.Message, f func(Res) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	client := connect.NewClient[envelope.Envelope, envelope.Envelope](c.http, baseURL+procedure, c.options(maker[Res]())...)
	stream, err := client.CallServerStream(ctx, connect.NewRequest(&envelope.Envelope{Message: req}))
	if err != nil {
		return c.explain(err)
	}
	defer stream.Close() //nolint:errcheck // the stream's own error is returned below
	// Cancelling alone need not end a Receive under way.
	stop := context.AfterFunc(ctx, func() { _ = stream.Close() })
	defer stop()
	for stream.Receive() {
		if err := f(stream.Msg().Message.(Res)); err != nil { //nolint:forcetypeassert // made by the initializer
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := stream.Err(); err != nil {
		return c.explain(err)
	}
	return nil
}

func (c *Client) options(newRes func() proto.Message) []connect.ClientOption {
	return []connect.ClientOption{
		envelope.Responses(newRes),
		connect.WithReadMaxBytes(MaxMessage),
		connect.WithSendMaxBytes(MaxMessage),
		connect.WithAcceptCompression("gzip", nil, nil),
	}
}

func (c *Client) explain(err error) error {
	if connect.CodeOf(err) == connect.CodeUnavailable && !connect.IsWireError(err) {
		return &UnreachableError{Path: c.path, Err: err}
	}
	return err
}

// UnreachableError says that nobody answers at a socket.
type UnreachableError struct {
	Path string
	Err  error
}

func (e *UnreachableError) Error() string {
	return fmt.Sprintf("nobody answers at %s: %v", e.Path, reasonOf(e.Err))
}

// Unwrap gives connect's error.
func (e *UnreachableError) Unwrap() error { return e.Err }

// reasonOf strips what connect and net/http wrap around the system's own word.
func reasonOf(err error) error {
	var op *net.OpError
	if errors.As(err, &op) && op.Err != nil {
		return op.Err
	}
	return err
}

// HTTPClient is what the calls go through, for a generated client.
func (c *Client) HTTPClient() *http.Client { return c.http }

// InfoOf is the detail that says why a call failed; nil where it has none.
func InfoOf(err error) *fleetbanv1.ErrorInfo {
	var e *connect.Error
	if !errors.As(err, &e) {
		return nil
	}
	for _, d := range e.Details() {
		if m, err := d.Value(); err == nil {
			if info, ok := m.(*fleetbanv1.ErrorInfo); ok {
				return info
			}
		}
	}
	return nil
}
