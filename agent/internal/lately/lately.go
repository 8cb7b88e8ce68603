// Package lately remembers what happened to this host and mended itself: a log that was rotated, rules that somebody
// flushed. What goes on is told elsewhere, for as long as it lasts; what is over in a moment would be seen by nobody who
// didn't read the log just then.
//
// What is remembered is bounded: one entry a code, and codes are this program's own, as is every word of an entry.
package lately

import (
	"log/slog"
	"sync"
	"time"

	hostv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/host/v1"
)

// quiet is how long nothing more is logged of a code: what happens again and again must not fill a log. It is counted.
const quiet = time.Minute

// Log counts what happened. The zero value is ready, and logs nothing. Safe for concurrent use; a nil Log forgets.
type Log struct {
	// Log gets a line for what is noted. Optional; set before use.
	Log *slog.Logger

	mu   sync.Mutex
	seen []entry // the latest first
}

type entry struct {
	code, what string
	count      uint64
	last, said time.Time // when it was last counted, and when last news
}

// Note counts what happened and logs it, at most once a minute. code is stable, for programs; what is a sentence. Both
// are constants; attrs, as slog takes them, go to the log only. It reports whether there was a line: where there was none,
// one that says that it is mended would be a riddle.
func (l *Log) Note(code, what string, attrs ...any) (said bool) {
	times, news := l.Count(code, what)
	if !news || l.Log == nil {
		return false
	}
	l.Log.Warn(what, append(attrs, "times", times)...) //nolint:sloglint // a constant at each caller
	return true
}

// Count counts what happened; who calls it has logged it. It returns how often that was, and whether it is the first time
// in a minute.
func (l *Log) Count(code, what string) (times uint64, news bool) {
	if l == nil {
		return 0, false
	}
	now := time.Now()
	l.mu.Lock()
	i := 0
	for i < len(l.seen) && l.seen[i].code != code {
		i++
	}
	if i == len(l.seen) {
		l.seen = append(l.seen, entry{code: code})
	}
	e := l.seen[i]
	copy(l.seen[1:], l.seen[:i])
	e.what, e.last = what, now
	e.count++
	if news = now.Sub(e.said) >= quiet; news {
		e.said = now
	}
	l.seen[0] = e
	l.mu.Unlock()
	return e.count, news
}

// Incidents is what happened since the process began, the latest first.
func (l *Log) Incidents() (out []*hostv1.Incident) {
	l.mu.Lock()
	for _, e := range l.seen {
		out = append(out, hostv1.Incident_builder{Code: e.code, What: e.what, Count: e.count, LastUnixMs: e.last.UnixMilli()}.Build())
	}
	l.mu.Unlock()
	return out
}
