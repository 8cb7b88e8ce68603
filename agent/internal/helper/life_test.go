package helper

import (
	"testing"
	"time"
)

// The control plane lets unban orders wait for seven days by its own clock. A helper whose clock is behind sees more than
// that ahead, and once refused half of them.
func TestOrdersOfSevenDaysAreTakenWithClocksThatDiffer(t *testing.T) {
	t.Parallel()
	const given, skew = 7 * 24 * time.Hour, 2 * time.Hour
	if most := time.Duration(maxLifeMS) * time.Millisecond; most < given+skew {
		t.Errorf("an order may wait %s here, and %s are given", most, given)
	}
}
