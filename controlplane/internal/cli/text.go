package cli

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/width"
)

// maxText bounds one untrusted text in a table, in runes.
const maxText = 200

// safe makes text of unknown origin (a host's or jail's name, a reason, a server's message) fit to be shown: what could
// move the cursor, change colours, reverse the direction or hide is written as an escape, so that it is seen.
func safe(s string) string { return escape(s, maxText) }

// escape is safe for at most limit runes.
func escape(s string, limit int) string {
	clean := true
	for _, r := range s {
		if !shown(r) {
			clean = false
			break
		}
	}
	if clean && utf8.RuneCountInString(s) <= limit {
		return s
	}
	var b strings.Builder
	n := 0
	for i, r := range s {
		if n++; n > limit {
			b.WriteString("…")
			break
		}
		switch {
		case r == utf8.RuneError && s[i] != "\uFFFD"[0]:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case shown(r):
			b.WriteRune(r)
		default:
			b.WriteString(escaped(r))
		}
	}
	return b.String()
}

// shown reports whether a rune may go to a terminal as it is: graphic and not a format character (bidi marks, joiners),
// for strconv counts neither those nor line and paragraph separators as graphic.
func shown(r rune) bool {
	return r != utf8.RuneError && (r == ' ' || strconv.IsPrint(r)) && !unicode.Is(unicode.Co, r)
}

func escaped(r rune) string {
	quoted := strconv.QuoteRuneToASCII(r)
	return quoted[1 : len(quoted)-1]
}

// asciiControls escapes, in JSON, what JSON itself leaves as it is and a terminal acts on. Such runes stand in strings only.
func asciiControls(raw []byte) []byte {
	out := make([]byte, 0, len(raw))
	for len(raw) > 0 {
		r, n := utf8.DecodeRune(raw)
		switch {
		case r == '\n', shown(r):
			out = append(out, raw[:n]...)
		case r > 0xffff:
			hi, lo := (r-0x10000)>>10+0xd800, (r-0x10000)&0x3ff+0xdc00
			out = fmt.Appendf(out, `\u%04x\u%04x`, hi, lo)
		default:
			out = fmt.Appendf(out, `\u%04x`, r)
		}
		raw = raw[n:]
	}
	return out
}

// cells is how many columns a terminal needs for s, which safe has made.
func cells(s string) int {
	n := 0
	for _, r := range s {
		switch {
		case unicode.In(r, unicode.Mn, unicode.Me):
		case width.LookupRune(r).Kind() == width.EastAsianWide, width.LookupRune(r).Kind() == width.EastAsianFullwidth, r >= 0x1f300 && r <= 0x1faff:
			n += 2
		default:
			n++
		}
	}
	return n
}

// Duration is a time span as people write it: Go's form, and d for days and w for weeks.
type Duration time.Duration

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(text []byte) error {
	parsed, err := parseDuration(string(text))
	*d = Duration(parsed)
	return err
}

func parseDuration(s string) (time.Duration, error) {
	bad := fmt.Errorf("%q is no time span: write 90s, 15m, 1h30m, 7d or 2w", s)
	total, rest := time.Duration(0), s
	for _, unit := range []struct {
		name string
		size time.Duration
	}{{"w", 7 * 24 * time.Hour}, {"d", 24 * time.Hour}} {
		before, after, found := strings.Cut(rest, unit.name)
		if !found {
			continue
		}
		n, err := strconv.ParseUint(before, 10, 16)
		if err != nil {
			return 0, bad
		}
		total, rest = total+time.Duration(n)*unit.size, after //nolint:gosec // 16 bits
	}
	if rest != "" {
		d, err := time.ParseDuration(rest)
		if err != nil {
			return 0, bad
		}
		total += d
	} else if s == "" {
		return 0, bad
	}
	if total <= 0 {
		return 0, fmt.Errorf("%q is not positive: write 90s, 15m, 1h30m, 7d or 2w", s)
	}
	return total, nil
}

// span writes a duration in its two largest units: "1h", "2d 3h", "45s".
func span(d time.Duration) string {
	if d < time.Second {
		return strconv.FormatInt(max(d, 0).Milliseconds(), 10) + " ms"
	}
	d = d.Round(time.Second)
	var parts []string
	for _, unit := range []struct {
		name string
		size time.Duration
	}{{"d", 24 * time.Hour}, {"h", time.Hour}, {"m", time.Minute}, {"s", time.Second}} {
		if n := d / unit.size; n > 0 {
			parts = append(parts, strconv.FormatInt(int64(n), 10)+unit.name)
			d %= unit.size
		} else if len(parts) > 0 {
			break
		}
		if len(parts) == 2 {
			break
		}
	}
	return strings.Join(parts, " ")
}

// clock writes times relative to now, in the person's zone.
type clock struct{ now time.Time }

// never is the protocol's expiry of what doesn't expire, Unix milliseconds.
const never = 253402300799000

// when is a time of day, with its date if it isn't today's.
func (c clock) when(ms int64) string {
	t := time.UnixMilli(ms).In(c.now.Location())
	if t.Format(time.DateOnly) == c.now.Format(time.DateOnly) {
		return t.Format("15:04")
	}
	return t.Format("2006-01-02 15:04")
}

func (c clock) ago(ms int64) string {
	if ms <= 0 {
		return "never"
	}
	d := c.now.Sub(time.UnixMilli(ms))
	if d < 2*time.Second {
		return "just now"
	}
	return coarse(d) + " ago"
}

func (c clock) in(ms int64) string {
	switch {
	case ms >= never:
		return "never"
	case ms <= 0:
		return "-"
	}
	d := time.UnixMilli(ms).Sub(c.now)
	if d <= 0 {
		return "over"
	}
	return "in " + coarse(d)
}

// coarse is span's first unit, once there are several minutes: a column of these reads at a glance.
func coarse(d time.Duration) string {
	first, rest, _ := strings.Cut(span(d), " ")
	if rest != "" && (strings.HasSuffix(first, "d") || strings.HasSuffix(first, "h")) && len(first) == 2 {
		return first + " " + rest
	}
	return first
}
