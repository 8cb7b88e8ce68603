package sets

// SetClock gives every script that this Sets runs a clock, Unix milliseconds; 0 is the server's own.
func (s *Sets) SetClock(clock func() int64) { s.scripts.clock = clock }

// Packed claims, for the fuzz test.
var (
	UnpackClaims = unpackClaims
	PackClaims   = packClaims
	ErrCorrupt   = errCorrupt
	BucketOf     = bucketOf
)
