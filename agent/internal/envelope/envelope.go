// Package envelope lets connect carry any protobuf message through one type.
//
// Connect's clients and handlers are generic in their messages, and the compiler makes each anew for each pair of
// message types: for the agent's procedures that is 600 kB of a binary that is to stay under 10 MB. An Envelope is one type for
// all; on the wire it is what generated code speaks.
package envelope

import (
	"errors"
	"fmt"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
)

// Envelope holds one message on its way through connect.
type Envelope struct {
	Message proto.Message
}

var errEmpty = errors.New("not an envelope with a message")

// Codec is connect's "proto" codec for envelopes.
type Codec struct{}

// Name is the codec's name on the wire.
func (Codec) Name() string { return "proto" }

// Marshal encodes what is in an *Envelope.
func (Codec) Marshal(v any) ([]byte, error) { return Codec{}.MarshalAppend(nil, v) }

// MarshalAppend appends a message's encoding.
func (Codec) MarshalAppend(dst []byte, v any) ([]byte, error) {
	m, err := messageOf(v)
	if err != nil {
		return nil, fmt.Errorf("marshal %T: %w", v, err)
	}
	return proto.MarshalOptions{}.MarshalAppend(dst, m)
}

// Unmarshal decodes into an *Envelope that an initializer has readied.
func (Codec) Unmarshal(data []byte, v any) error {
	m, err := messageOf(v)
	if err != nil {
		return fmt.Errorf("unmarshal %T: %w", v, err)
	}
	return proto.Unmarshal(data, m)
}

// messageOf takes plain messages too: connect has its own, the details of errors in the gRPC protocol.
func messageOf(v any) (proto.Message, error) {
	switch v := v.(type) {
	case *Envelope:
		if v.Message != nil {
			return v.Message, nil
		}
	case proto.Message:
		return v, nil
	}
	return nil, errEmpty
}

// Responses are the options of a client whose answers are what newMessage makes.
func Responses(newMessage func() proto.Message) connect.ClientOption {
	return connect.WithClientOptions(connect.WithCodec(Codec{}), connect.WithResponseInitializer(initializer(newMessage)))
}

// Requests are the options of a handler whose requests are what newMessage makes.
func Requests(newMessage func() proto.Message) connect.HandlerOption {
	return connect.WithHandlerOptions(connect.WithCodec(Codec{}), connect.WithRequestInitializer(initializer(newMessage)))
}

func initializer(newMessage func() proto.Message) func(connect.Spec, any) error {
	return func(_ connect.Spec, m any) error {
		if e, ok := m.(*Envelope); ok {
			e.Message = newMessage()
		}
		return nil
	}
}
