package sets

// SetClock gives every script that this Sets runs a clock, Unix milliseconds; 0 is the server's own.
func (s *Sets) SetClock(clock func() int64) { s.scripts.clock = clock }

// Waiting is how many mutations of an organisation wait for those in flight, and whether any are.
func (s *Sets) Waiting(org string) (n int, flying bool) {
	s.commit.mu.Lock()
	defer s.commit.mu.Unlock()
	queue, flying := s.commit.queues[org]
	return len(queue), flying
}

// Packed claims, for the fuzz test.
var (
	UnpackClaims = unpackClaims
	PackClaims   = packClaims
	ErrCorrupt   = errCorrupt
	BucketOf     = bucketOf
)
