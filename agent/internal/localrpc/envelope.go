package localrpc

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"
)

// MaxMessage is the largest message that either side reads or sends, in bytes.
const MaxMessage = 4 << 20

// Envelope holds one protobuf message on its way through connect.
type Envelope struct {
	Message proto.Message
}

var errEmptyEnvelope = errors.New("envelope without a message")

// codec is connect's "proto" codec for envelopes.
type codec struct{}

func (codec) Name() string { return "proto" }

func (codec) Marshal(v any) ([]byte, error) { return codec{}.MarshalAppend(nil, v) }

func (codec) MarshalAppend(dst []byte, v any) ([]byte, error) {
	e, ok := v.(*Envelope)
	if !ok || e.Message == nil {
		return nil, fmt.Errorf("marshal %T: %w", v, errEmptyEnvelope)
	}
	return proto.MarshalOptions{}.MarshalAppend(dst, e.Message)
}

func (codec) Unmarshal(data []byte, v any) error {
	e, ok := v.(*Envelope)
	if !ok || e.Message == nil {
		return fmt.Errorf("unmarshal %T: %w", v, errEmptyEnvelope)
	}
	return proto.Unmarshal(data, e.Message)
}
