package people

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/argon2"
)

// ErrBusy says that more people sign in at once than this replica has processors and memory for.
var ErrBusy = errors.New("too many people sign in at once")

// Cost of one password hash (argon2id, RFC 9106). docs/security.md has what it takes.
const (
	argonMemory = 19 << 10 // KiB
	argonTime   = 2
	argonLanes  = 1
	saltLen     = 16
	hashLen     = 32
)

// Bounds of what is accepted of a stored hash: a damaged one must not take the process's memory.
const (
	maxArgonMemory = 256 << 10 // KiB
	maxArgonTime   = 16
	maxArgonLanes  = 8
)

const (
	// maxWaiting is how many may wait for their turn to hash. The rest is told to come again.
	maxWaiting = 32
	// maxWait is how long.
	maxWait = 5 * time.Second
)

// hasher hashes passwords, few at once: half of the processors, so that a flood of logins leaves the other half, and as
// many times argonMemory of memory at most.
type hasher struct {
	turns   chan struct{}
	waiting atomic.Int32
	// hashed counts them.
	hashed atomic.Int64
	// decoy is compared against where there is no account.
	decoy string
}

func newHasher() *hasher {
	h := &hasher{turns: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2))}
	var salt [saltLen]byte
	_, _ = rand.Read(salt[:])
	var sum [hashLen]byte // of no password that anyone knows
	_, _ = rand.Read(sum[:])
	h.decoy = encodeHash(argonMemory, argonTime, argonLanes, salt[:], sum[:])
	return h
}

// turn waits for a turn; give it back.
func (h *hasher) turn(ctx context.Context) (back func(), err error) {
	defer h.waiting.Add(-1)
	if h.waiting.Add(1) > maxWaiting {
		return nil, ErrBusy
	}
	timer := time.NewTimer(maxWait)
	defer timer.Stop()
	select {
	case h.turns <- struct{}{}:
		return func() { <-h.turns }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-timer.C:
		return nil, ErrBusy
	}
}

// hash makes what is stored of a password.
func (h *hasher) hash(ctx context.Context, password string) (string, error) {
	back, err := h.turn(ctx)
	if err != nil {
		return "", err
	}
	defer back()
	var salt [saltLen]byte
	_, _ = rand.Read(salt[:]) // never fails: crypto/rand ends the program instead
	h.hashed.Add(1)
	sum := argon2.IDKey([]byte(password), salt[:], argonTime, argonMemory, argonLanes, hashLen)
	return encodeHash(argonMemory, argonTime, argonLanes, salt[:], sum), nil
}

// verify reports whether stored was made of password. An empty or damaged hash costs the same and is never right.
func (h *hasher) verify(ctx context.Context, stored, password string) (bool, error) {
	back, err := h.turn(ctx)
	if err != nil {
		return false, err
	}
	defer back()
	memory, rounds, lanes, salt, want, ok := decodeHash(stored)
	if !ok {
		memory, rounds, lanes, salt, want, _ = decodeHash(h.decoy)
	}
	h.hashed.Add(1)
	got := argon2.IDKey([]byte(password), salt, rounds, memory, lanes, uint32(len(want)))
	return subtle.ConstantTimeCompare(got, want) == 1 && ok, nil
}

// encodeHash writes a hash in the usual form: $argon2id$v=19$m=…,t=…,p=…$SALT$HASH.
func encodeHash(memory, rounds uint32, lanes uint8, salt, sum []byte) string {
	text := base64.RawStdEncoding.EncodeToString
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, memory, rounds, lanes, text(salt), text(sum))
}

func decodeHash(s string) (memory, rounds uint32, lanes uint8, salt, sum []byte, ok bool) {
	parts := strings.Split(s, "$")
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" || parts[2] != "v="+strconv.Itoa(argon2.Version) {
		return 0, 0, 0, nil, nil, false
	}
	if n, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &memory, &rounds, &lanes); err != nil || n != 3 ||
		memory < 8 || memory > maxArgonMemory || rounds < 1 || rounds > maxArgonTime || lanes < 1 || lanes > maxArgonLanes {
		return 0, 0, 0, nil, nil, false
	}
	salt, err := base64.RawStdEncoding.DecodeString(parts[4])
	sum, err2 := base64.RawStdEncoding.DecodeString(parts[5])
	if errors.Join(err, err2) != nil || len(salt) < 8 || len(salt) > 64 || len(sum) < 16 || len(sum) > 64 {
		return 0, 0, 0, nil, nil, false
	}
	return memory, rounds, lanes, salt, sum, true
}
