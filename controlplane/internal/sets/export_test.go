package sets

import "time"

// SetSkew moves the clock of every script that this Sets runs.
func (s *Sets) SetSkew(skew func() time.Duration) { s.scripts.skew = skew }

// Packed claims, for the fuzz test.
var (
	UnpackClaims = unpackClaims
	PackClaims   = packClaims
	ErrCorrupt   = errCorrupt
)
