package audit

import (
	"google.golang.org/protobuf/encoding/protowire"

	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
)

// Numbers of the fields of AuditEntry, AuditActor and AuditDetail that an entry is stored with. TestEncode holds them against
// the protos.
const (
	fieldID, fieldPhase, fieldOutcome, fieldReason, fieldActor    = 4, 5, 6, 7, 8
	fieldAddress, fieldUserAgent, fieldRequestID, fieldAction     = 9, 10, 11, 12
	fieldProcedure, fieldTargets, fieldTargetsTotal, fieldDetails = 13, 14, 15, 16
	fieldKnownNumber, fieldKnownHash                              = 17, 18
	fieldKind, fieldActorID, fieldActorName                       = 1, 2, 3
	fieldName, fieldBefore, fieldAfter                            = 1, 2, 3
)

// encode makes the entry as an AuditEntry on the wire. By hand, for one is made for each ban, and through the message it
// would cost several times as much.
func encode(r Record, id string, phase operatorv1.AuditPhase, known Head) []byte {
	b := make([]byte, 0, 384)
	b = appendString(b, fieldID, id, maxName)
	b = appendNumber(b, fieldPhase, uint64(phase))       //nolint:gosec // an enum of few
	b = appendNumber(b, fieldOutcome, uint64(r.Outcome)) //nolint:gosec // an enum of few
	b = appendString(b, fieldReason, r.Reason, maxText)
	var inner [1 << 10]byte
	actor := appendNumber(inner[:0], fieldKind, uint64(r.Actor.Kind)) //nolint:gosec // an enum of few
	actor = appendString(actor, fieldActorID, r.Actor.ID, maxTarget)
	actor = appendString(actor, fieldActorName, r.Actor.Name, maxTarget)
	b = appendInner(b, fieldActor, actor)
	if r.Address.IsValid() {
		b = appendString(b, fieldAddress, r.Address.String(), maxTarget)
	}
	b = appendString(b, fieldUserAgent, r.UserAgent, maxTarget)
	b = appendString(b, fieldRequestID, r.RequestID, maxName)
	b = appendString(b, fieldAction, r.Action, maxName)
	b = appendString(b, fieldProcedure, r.Procedure, maxTarget)
	for _, t := range r.Targets[:min(len(r.Targets), MaxTargets)] {
		b = protowire.AppendTag(b, fieldTargets, protowire.BytesType)
		b = protowire.AppendString(b, cut(t, maxTarget))
	}
	b = appendNumber(b, fieldTargetsTotal, uint64(len(r.Targets)))
	for _, d := range r.Details[:min(len(r.Details), maxDetails)] {
		detail := appendString(inner[:0], fieldName, d.Name, maxName)
		detail = appendString(detail, fieldBefore, d.Before, maxText)
		detail = appendString(detail, fieldAfter, d.After, maxText)
		b = appendInner(b, fieldDetails, detail)
	}
	b = appendNumber(b, fieldKnownNumber, known.Number)
	return appendString(b, fieldKnownHash, known.Hash, hashLen)
}

func appendString(b []byte, field protowire.Number, s string, most int) []byte {
	if s == "" {
		return b
	}
	return protowire.AppendString(protowire.AppendTag(b, field, protowire.BytesType), cut(s, most))
}

func appendNumber(b []byte, field protowire.Number, n uint64) []byte {
	if n == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), n)
}

func appendInner(b []byte, field protowire.Number, inner []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, field, protowire.BytesType), inner)
}
