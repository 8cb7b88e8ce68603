package sso

import (
	"errors"
	"testing"
	"time"
)

// What a provider says of when it looked: a proof only where that was after it was asked to.
func TestLookedAgain(t *testing.T) {
	t.Parallel()
	began := time.Unix(1_800_000_000, 0)
	now := began.Add(3 * time.Minute)
	a := attempt{Fresh: true, Began: began.Unix()}
	for name, c := range map[string]struct {
		at int64
		ok bool
	}{
		"a minute after it began":           {began.Add(time.Minute).Unix(), true},
		"its clock is half a minute behind": {began.Add(-30 * time.Second).Unix(), true},
		"not said":                          {0, false},
		"before it was asked":               {began.Add(-2 * time.Minute).Unix(), false},
		"yesterday":                         {began.Add(-24 * time.Hour).Unix(), false},
		"in the future":                     {now.Add(2 * time.Minute).Unix(), false},
		"nonsense":                          {1 << 39, false},
		"negative":                          {-1, false},
	} {
		at, err := a.looked(c.at, now)
		if (err == nil) != c.ok || err != nil && !errors.Is(err, ErrRefused) || c.ok && at.Unix() != c.at {
			t.Errorf("%s: %v, %v", name, at, err)
		}
	}
}
