package audit_test

import (
	"crypto/sha1" //nolint:gosec // what the log uses
	"encoding/hex"
	"fmt"

	"github.com/redis/go-redis/v9"

	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
)

const (
	changed   = operatorv1.AuditFindingKind_AUDIT_FINDING_KIND_CHANGED
	removed   = operatorv1.AuditFindingKind_AUDIT_FINDING_KIND_REMOVED
	moved     = operatorv1.AuditFindingKind_AUDIT_FINDING_KIND_MOVED
	truncated = operatorv1.AuditFindingKind_AUDIT_FINDING_KIND_TRUNCATED
	gap       = operatorv1.AuditFindingKind_AUDIT_FINDING_KIND_GAP
	forged    = operatorv1.AuditFindingKind_AUDIT_FINDING_KIND_FORGED
)

func kinds(k ...operatorv1.AuditFindingKind) []operatorv1.AuditFindingKind { return k }

// link computes an entry's hash as anyone can.
func link(before string, number int, values map[string]any) string {
	sum := sha1.Sum(fmt.Appendf(nil, "%s %d %s %s\n%s", before, number, values["t"], values["x"], values["m"])) //nolint:gosec // see the import
	return hex.EncodeToString(sum[:])
}

// forgery is an entry by somebody without the secret.
func forgery() redis.XMessage {
	return redis.XMessage{ID: "6-1", Values: map[string]any{"t": "9999999999999", "x": "", "m": string(make([]byte, 32)), "b": "\x22\x01a", "h": ""}}
}
