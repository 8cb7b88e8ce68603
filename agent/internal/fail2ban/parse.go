package fail2ban

import (
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/fleetban/fleetban/proto/wire/prefix"
)

// Forever is the duration of a permanent ban.
const Forever = time.Duration(-1)

// ValidJail reports whether name can be a jail's: 1 to 128 printable ASCII characters, none of them a space, comma, quote,
// bracket or backslash, and no dash in front.
func ValidJail(name string) bool {
	if name == "" || len(name) > 128 || name[0] == '-' {
		return false
	}
	for i := range len(name) {
		if b := name[i]; b <= ' ' || b >= 0x7f || strings.IndexByte("[],\"'\\`", b) >= 0 {
			return false
		}
	}
	return true
}

// Entry is one ban of a jail.
type Entry struct {
	Addr netip.Prefix
	// BannedAt is what the server's clock on the wall showed, kept as if it were UTC: the server's time zone isn't in it. It
	// is the time of the last failure. Zero where the version has no times.
	BannedAt time.Time
	// Duration is the whole length, or Forever. Zero where the version has no times.
	Duration time.Duration
}

// Listing is what a jail bans.
type Listing struct {
	Entries []Entry
	// Unparsable counts entries that are no address: fail2ban lets people ban anything.
	Unparsable int
	// Times tells whether the entries have times.
	Times bool
}

func parseListing(items []any, times bool) Listing {
	listing := Listing{Entries: make([]Entry, 0, len(items)), Times: times}
	for _, item := range items {
		s, _ := item.(string)
		var e Entry
		var ok bool
		if times {
			e, ok = parseEntry(s)
		} else {
			e.Addr, ok = parsePrefix(s)
		}
		if !ok {
			listing.Unparsable++
			continue
		}
		listing.Entries = append(listing.Entries, e)
	}
	return listing
}

// parseEntry reads "192.0.2.1 \t2026-01-02 03:04:05 + 600 = 2026-01-02 03:14:05".
func parseEntry(s string) (Entry, bool) {
	addr, rest, ok := strings.Cut(s, "\t")
	if !ok {
		return Entry{}, false
	}
	p, ok := parsePrefix(strings.TrimSuffix(addr, " "))
	if !ok {
		return Entry{}, false
	}
	start, rest, ok := strings.Cut(rest, " + ")
	if !ok {
		return Entry{}, false
	}
	length, _, ok := strings.Cut(rest, " = ")
	if !ok {
		return Entry{}, false
	}
	at, err := time.Parse(time.DateTime, start)
	if err != nil {
		return Entry{}, false
	}
	n, err := strconv.ParseInt(length, 10, 64)
	if err != nil {
		return Entry{}, false
	}
	return Entry{Addr: p, BannedAt: at, Duration: seconds(n)}, true
}

// seconds makes a duration of what fail2ban writes. Negative is for ever, and so is what a Duration can't hold: 292 years.
func seconds(n int64) time.Duration {
	if n < 0 || n > int64(math.MaxInt64/time.Second) {
		return Forever
	}
	return time.Duration(n) * time.Second
}

func parsePrefix(s string) (netip.Prefix, bool) {
	p, err := prefix.Parse(s)
	return p, err == nil
}

// pairsOf reads fail2ban's [("key", value), …], at most 64.
func pairsOf(v any) (map[string]any, error) {
	items, err := itemsOf(v)
	if err != nil || len(items) > 64 {
		return nil, fmt.Errorf("%w: a list of pairs was expected", ErrGarbage)
	}
	m := make(map[string]any, len(items))
	for _, item := range items {
		pair, ok := item.(tuple)
		if !ok || len(pair) != 2 {
			return nil, fmt.Errorf("%w: a pair was expected", ErrGarbage)
		}
		key, ok := pair[0].(string)
		if !ok {
			return nil, fmt.Errorf("%w: a pair without a name", ErrGarbage)
		}
		m[key] = pair[1]
	}
	return m, nil
}

func itemsOf(v any) ([]any, error) {
	switch v := v.(type) {
	case *list:
		return v.items, nil
	case tuple:
		return v, nil
	}
	return nil, fmt.Errorf("%w: a list was expected", ErrGarbage)
}
