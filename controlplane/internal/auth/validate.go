package auth

import (
	"context"
	"fmt"

	"buf.build/go/protovalidate"
	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
)

// Validation refuses messages that break the rules of their proto, before a handler sees them, on unary calls and in
// both directions' streams alike. apierr maps the refusal to INVALID_FIELD with the field's path.
type Validation struct{ validator protovalidate.Validator }

var _ connect.Interceptor = (*Validation)(nil)

// NewValidation makes a Validation.
func NewValidation() (*Validation, error) {
	validator, err := protovalidate.New()
	if err != nil {
		return nil, fmt.Errorf("prepare the rules of the protos: %w", err)
	}
	return &Validation{validator: validator}, nil
}

// WrapUnary implements connect.Interceptor.
func (v *Validation) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		if err := v.check(req.Any()); err != nil {
			return nil, err
		}
		return next(ctx, req)
	}
}

// WrapStreamingHandler implements connect.Interceptor.
func (v *Validation) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		return next(ctx, &validConn{StreamingHandlerConn: conn, validation: v})
	}
}

// WrapStreamingClient implements connect.Interceptor.
func (*Validation) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (v *Validation) check(message any) error {
	m, ok := message.(proto.Message)
	if !ok {
		return fmt.Errorf("can't check a message of type %T", message)
	}
	return v.validator.Validate(m)
}

type validConn struct {
	connect.StreamingHandlerConn

	validation *Validation
}

func (c *validConn) Receive(message any) error {
	if err := c.StreamingHandlerConn.Receive(message); err != nil {
		return err
	}
	return c.validation.check(message)
}
