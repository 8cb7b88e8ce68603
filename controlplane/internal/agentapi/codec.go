package agentapi

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/fleetban/fleetban/controlplane/internal/link"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// outgoing is one message to an agent: encoded already, with gRPC's prefix, or to be encoded.
type outgoing struct {
	bytes   []byte
	message *fleetbanv1.ConnectResponse
}

// frameCodec is protobuf's binary form, but passes on what is encoded already.
type frameCodec struct{}

// Name implements connect.Codec: on the wire it is protobuf.
func (frameCodec) Name() string { return "proto" }

// Marshal implements connect.Codec.
func (c frameCodec) Marshal(message any) ([]byte, error) { return c.MarshalAppend(nil, message) }

// MarshalAppend spares connect a copy.
func (frameCodec) MarshalAppend(dst []byte, message any) ([]byte, error) {
	switch m := message.(type) {
	case *outgoing:
		if m.message == nil {
			return append(dst, m.bytes[link.PrefixLength:]...), nil
		}
		return proto.MarshalOptions{}.MarshalAppend(dst, m.message)
	case proto.Message:
		return proto.MarshalOptions{}.MarshalAppend(dst, m)
	default:
		return nil, fmt.Errorf("can't encode a %T", message)
	}
}

// Unmarshal implements connect.Codec.
func (frameCodec) Unmarshal(data []byte, message any) error {
	m, ok := message.(proto.Message)
	if !ok {
		return fmt.Errorf("can't decode into a %T", message)
	}
	if err := proto.Unmarshal(data, m); err != nil {
		return fmt.Errorf("decode %T: %w", message, err)
	}
	return nil
}
