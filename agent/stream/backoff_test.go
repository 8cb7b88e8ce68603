package stream

import (
	"testing"
	"time"
)

// TestBackoff: retries are ever further apart, to a bound, and those of many hosts that began together are not.
func TestBackoff(t *testing.T) {
	t.Parallel()
	const hosts = 200
	for n, most := range []time.Duration{
		firstPause, 2 * firstPause, 4 * firstPause, 8 * firstPause, 16 * firstPause, 32 * firstPause, 64 * firstPause, 128 * firstPause, maxPause, maxPause,
	} {
		least := most / 2
		if n == 0 {
			least = 0 // the first retry comes at once
		}
		halves := [2]int{}
		for range hosts {
			b := backoff{failures: n}
			d := b.next(soon)
			if d < least || d > most {
				t.Fatalf("the pause after %d failures is %s, not between %s and %s", n+1, d, least, most)
			}
			if d < (least+most)/2 {
				halves[0]++
			} else {
				halves[1]++
			}
		}
		// Of 200 coins, less than 40 fall on one side once in more than 10^17 times.
		if min(halves[0], halves[1]) < 40 {
			t.Errorf("after %d failures %d hosts come in the first half of the time and %d in the second", n+1, halves[0], halves[1])
		}
	}
	b := backoff{}
	if d := b.next(now); d != 0 {
		t.Errorf("no trouble, and a pause of %s", d)
	}
	for n, most := range []time.Duration{longPause, 2 * longPause, 4 * longPause, 5 * longPause, 5 * longPause} {
		if d := b.next(later); d < most/2 || d > most {
			t.Errorf("where only a person can mend it, the pause after %d failures is %s", n+1, d)
		}
	}
}
