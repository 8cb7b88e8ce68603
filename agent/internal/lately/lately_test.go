package lately_test

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fleetban/fleetban/agent/internal/lately"
)

// However often something happens, a minute of it is one line, and the count tells of all.
func TestNoFlood(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		l := &lately.Log{Log: slog.New(slog.NewTextHandler(&out, nil))}
		lines := func(want int, what string) {
			t.Helper()
			if got := strings.Count(out.String(), "\n"); got != want {
				t.Errorf("%s: %d lines, want %d:\n%s", what, got, want, &out)
			}
		}
		for range 1000 {
			l.Note("flushed", "somebody flushed all rules", "missing", 3)
		}
		lines(1, "a thousand at once")
		l.Note("rotated", "the log was rotated")
		lines(2, "something else")
		time.Sleep(time.Minute)
		l.Note("flushed", "somebody flushed all rules", "missing", 3)
		lines(3, "a minute later")
		if !strings.Contains(out.String(), "times=1001") {
			t.Errorf("the third line doesn't tell of those between:\n%s", &out)
		}
		l.Count("rotated", "the log was rotated")
		lines(3, "counted only")

		got := l.Incidents()
		if len(got) != 2 || got[0].GetCode() != "rotated" || got[0].GetCount() != 2 || got[1].GetCount() != 1001 {
			t.Errorf("%v", got)
		}
		if at := got[1].GetLastUnixMs(); at != time.Now().UnixMilli() || got[1].GetWhat() != "somebody flushed all rules" {
			t.Errorf("%v, and it is %d", got[1], time.Now().UnixMilli())
		}
	})
}

// Who has nothing to remember in may do without.
func TestNobodyAsks(t *testing.T) {
	t.Parallel()
	var l *lately.Log
	l.Note("a", "b")
	l.Count("a", "b")
}
