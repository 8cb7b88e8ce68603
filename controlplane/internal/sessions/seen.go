package sessions

import (
	"crypto/sha256"
	"sync"
)

// maxSeen bounds how many good tokens are remembered twice over: a few hundred bytes each.
const maxSeen = 10_000

// seen remembers which access tokens were found good, by their hash: a program shows the same one for minutes, and a
// signature that was verified once is good for ever. What time and revocation make of a token is looked at each time. Two
// generations, of which the older one is dropped when the younger is full: no token is worth more than its last use.
type seen struct {
	mu         sync.Mutex
	young, old map[[sha256.Size]byte]Claims
}

func (s *seen) get(hash [sha256.Size]byte) (Claims, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c, ok := s.young[hash]; ok {
		return c, true
	}
	c, ok := s.old[hash]
	if ok {
		s.put(hash, c)
	}
	return c, ok
}

func (s *seen) add(hash [sha256.Size]byte, c Claims) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.put(hash, c)
}

func (s *seen) put(hash [sha256.Size]byte, c Claims) {
	if len(s.young) >= maxSeen || s.young == nil {
		s.young, s.old = make(map[[sha256.Size]byte]Claims), s.young
	}
	s.young[hash] = c
}

// check is verify, which it asks for tokens that it hasn't seen.
func (s *signer) check(token string) (Claims, error) {
	if len(token) > maxAccess {
		return s.verify(token)
	}
	hash := sha256.Sum256([]byte(token))
	now := s.now()
	// As the parser has it; a token lives minutes, so its key's period fits where its times do.
	if c, ok := s.seen.get(hash); ok && now.Before(c.ExpiresAt.Add(leeway)) && !now.Add(leeway).Before(c.IssuedAt.Time) {
		return c, nil
	}
	c, err := s.verify(token)
	// One that says when it begins is left to the parser.
	if err == nil && c.NotBefore == nil {
		s.seen.add(hash, c)
	}
	return c, err
}
