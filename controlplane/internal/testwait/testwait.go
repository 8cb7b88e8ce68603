// Package testwait waits, in tests, for what nothing signals: a condition that is looked at until it holds, with a deadline
// that only a broken product reaches.
package testwait

import (
	"errors"
	"testing"
	"time"
)

// Patience is how long a condition has: machines that run many tests at once are slow.
const Patience = time.Minute

// pause between two looks.
const pause = 2 * time.Millisecond

var errNotYet = errors.New("it doesn't hold")

// For waits until a condition holds, and fails the test where it doesn't in time. what says what should come true.
func For(t testing.TB, what string, holds func() bool) {
	t.Helper()
	Until(t, what, func() error {
		if holds() {
			return nil
		}
		return errNotYet
	})
}

// Until waits until a look succeeds. Where it doesn't in time the test fails with the last look's error.
func Until(t testing.TB, what string, look func() error) {
	t.Helper()
	deadline := time.Now().Add(Patience)
	for {
		err := look()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s: %v", Patience, what, err)
		}
		time.Sleep(pause)
	}
}
