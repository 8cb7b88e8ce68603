package cli

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

func TestSafe(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"web-1":              "web-1",
		"größe 長い":           "größe 長い",
		"a\x1b[31mb":         `a\x1b[31mb`,
		"a\u202eb\u2066":     `a\u202eb\u2066`,
		"zero\u200bwidth":    `zero\u200bwidth`,
		"c1\u009b2J":         `c1\u009b2J`,
		"nl\r\n\t\x00\x7f":   `nl\r\n\t\x00\x7f`,
		"bad\xff\xfeutf8":    `bad\xff\xfeutf8`,
		"line\u2028sep":      `line\u2028sep`,
		"private\ue000":      `private\ue000`,
		"tag\U000e0041block": `tag\U000e0041block`,
	} {
		if got := safe(in); got != want {
			t.Errorf("safe(%+q) = %+q, want %+q", in, got, want)
		}
	}
	if got := safe(strings.Repeat("x", 10_000)); len(got) > 210 {
		t.Errorf("%d bytes of one name", len(got))
	}
}

func FuzzSafe(f *testing.F) {
	f.Add("a\x1b[31mb\u202e\xff")
	f.Fuzz(func(t *testing.T, in string) {
		for _, r := range safe(in) {
			if !shown(r) {
				t.Fatalf("safe(%+q) lets %U through", in, r)
			}
		}
	})
}

func TestTableAligns(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	p := &printer{out: &b, format: "table"}
	p.table([]string{"NAME", "X"}, [][]cell{{c("a"), c("1")}, {c("長い"), painted(good, "2")}, {c("e\u0301te"), c("3")}, {c(""), c("4")}})
	want := "NAME  X\na     1\n長い  2\ne\u0301te   3\n-     4\n"
	if b.String() != want {
		t.Errorf("got\n%swant\n%s", b.String(), want)
	}
}

func TestDurations(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]time.Duration{
		"90s": 90 * time.Second, "1h30m": 90 * time.Minute, "7d": 7 * 24 * time.Hour, "2w": 14 * 24 * time.Hour, "1d12h": 36 * time.Hour, "1w1d1h": 193 * time.Hour,
	} {
		if got, err := parseDuration(in); err != nil || got != want {
			t.Errorf("%q: %s, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "0s", "-1h", "1", "d", "1.5d", "1h1d", "1d1d", "-1d", "99999999999d", "soon"} {
		if got, err := parseDuration(in); err == nil {
			t.Errorf("%q is %s", in, got)
		}
	}
	for d, want := range map[time.Duration]string{
		time.Hour: "1h", 90 * time.Minute: "1h 30m", 49 * time.Hour: "2d 1h", 45 * time.Second: "45s", 20 * time.Millisecond: "20 ms", 24*time.Hour + time.Minute: "1d",
	} {
		if got := span(d); got != want {
			t.Errorf("span(%s) = %q, want %q", d, got, want)
		}
	}
}

// A moment has its day unless that is the reader's today, whatever day it is elsewhere.
func TestClock(t *testing.T) {
	t.Parallel()
	east := time.FixedZone("east", 13*3600)
	for _, tc := range []struct {
		now  time.Time
		in   time.Duration
		want string
	}{
		{time.Date(2026, 1, 31, 21, 59, 59, 0, time.UTC), 2 * time.Hour, "23:59"},
		{time.Date(2026, 1, 31, 22, 0, 0, 0, time.UTC), 2 * time.Hour, "2026-02-01 00:00"},
		{time.Date(2026, 1, 31, 22, 0, 0, 0, time.UTC).In(east), 2 * time.Hour, "13:00"},
		{time.Date(2026, 12, 31, 23, 59, 58, 0, time.UTC), time.Hour, "2027-01-01 00:59"},
		{time.Date(2028, 3, 1, 0, 0, 0, 0, time.UTC), -time.Second, "2028-02-29 23:59"},
		{time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC), 365 * 24 * time.Hour, "2027-05-01 12:00"},
	} {
		if got := (clock{tc.now}).when(tc.now.Add(tc.in).UnixMilli()); got != tc.want {
			t.Errorf("at %s, what is in %s is at %q, want %q", tc.now, tc.in, got, tc.want)
		}
	}
	c := clock{time.UnixMilli(1_800_000_000_000)}
	at := func(d time.Duration) int64 { return c.now.Add(d).UnixMilli() }
	for d, want := range map[time.Duration]string{
		-time.Second: "over", time.Hour: "in 1h", time.Hour - time.Second: "in 59m", time.Hour + 61*time.Second: "in 1h 1m", 24*time.Hour - time.Second: "in 23h",
	} {
		if got := c.in(at(d)); got != want {
			t.Errorf("in %s is %q, want %q", d, got, want)
		}
	}
	for d, want := range map[time.Duration]string{-time.Hour: "just now", time.Second: "just now", 59 * time.Second: "59s ago", 61 * time.Second: "1m ago"} {
		if got := c.ago(at(-d)); got != want {
			t.Errorf("%s ago is %q, want %q", d, got, want)
		}
	}
}
