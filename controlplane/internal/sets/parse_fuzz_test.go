package sets

import (
	"errors"
	"testing"
)

// What a list gives as its next page comes back from anyone.
func FuzzPageToken(f *testing.F) {
	for _, s := range []string{"", "0.", "7.cb007109", "-1.", "4096.", "1", "1.zz", "0x1.", "1.cb"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		bucket, after, err := parsePageToken(s)
		if err != nil {
			if !errors.Is(err, ErrPageToken) {
				t.Errorf("%q: %v", s, err)
			}
			return
		}
		if bucket < 0 || bucket >= buckets {
			t.Errorf("%q: bucket %d", s, bucket)
		}
		if again, rest, err := parsePageToken(pageToken(bucket, after)); err != nil || again != bucket || string(rest) != string(after) {
			t.Errorf("%q: %d %x, then %d %x (%v)", s, bucket, after, again, rest, err)
		}
	})
}

// The id that a watch begins after comes from anyone, and goes to Redis as it is.
func FuzzEventID(f *testing.F) {
	for _, s := range []string{"", "0-0", "1-1", "-", "+", "(1-1", "1-1 COUNT 5", "18446744073709551616-0", "1--1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if !validEventID(s) {
			return
		}
		for _, r := range s {
			if r != '-' && r != '+' && (r < '0' || r > '9') {
				t.Errorf("%q is taken for an event's id", s)
			}
		}
		if earlierID(s, s) {
			t.Errorf("%q comes before itself", s)
		}
	})
}
