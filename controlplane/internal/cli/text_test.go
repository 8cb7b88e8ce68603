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
