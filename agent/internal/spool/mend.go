package spool

// Mend tries the disk again where it refused, even if nothing new is to be written: so that what waits in memory alone
// doesn't do so for longer than it must, and a problem that is over is told no more. Cheap where nothing is wrong.
func (s *Spool) Mend() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken {
		s.maintain()
	}
}
