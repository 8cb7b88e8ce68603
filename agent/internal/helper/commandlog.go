package helper

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// commandLog remembers which commands were begun and how they ended, until they could not be sent again. Lines of a file:
//
//	B <id> <not after, Unix milliseconds>
//	E <id> <outcome> <message, quoted>
//
// A command that was begun and has no end was cut off: whether it was done, nobody knows.
type commandLog struct {
	mu    sync.Mutex
	path  string
	file  *os.File // nil while it can't be written
	begun int      // since it was compacted
	known map[string]*commandEntry
	times []time.Time // of the last minute
}

type commandEntry struct {
	notAfter int64
	ended    bool
	result   result
}

const (
	// maxCommands bounds what is remembered; more can't be begun within their time by any policy that people write.
	maxCommands = 100_000
	// maxLifeMS is how far ahead a command's time may end: what is remembered longer would fill the memory for good. The
	// control plane gives seven days; the eighth is for clocks that differ.
	maxLifeMS = 8 * 24 * 60 * 60 * 1000
	// compactEvery is how many commands are appended before the file is written anew.
	compactEvery = 1000
)

// graceMS is how long beyond its time a command is remembered: clocks differ.
const graceMS = 10 * 60 * 1000

// openCommands never fails: a helper that can't save commands refuses them and goes on enforcing.
func openCommands(path string, nowMS int64) (*commandLog, error) {
	l := &commandLog{path: path, known: map[string]*commandEntry{}}
	old, err := os.ReadFile(path) //nolint:gosec // our own path
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return l, fmt.Errorf("read which commands were carried out: %w", err)
	}
	for line := range bytes.Lines(old) {
		if !bytes.HasSuffix(line, []byte("\n")) {
			break // torn: it was never begun
		}
		l.read(strings.Fields(string(line)), string(line))
	}
	return l, l.compact(nowMS)
}

// compact forgets what can't be sent again and writes the rest anew.
func (l *commandLog) compact(nowMS int64) error {
	var fresh []byte
	for id, e := range l.known {
		if e.notAfter+graceMS < nowMS {
			delete(l.known, id)
			continue
		}
		fresh = append(fresh, beginLine(id, e.notAfter)...)
		if e.ended {
			fresh = append(fresh, endLine(id, e.result)...)
		}
	}
	if err := writeWhole(l.path, fresh); err != nil {
		return fmt.Errorf("save which commands were carried out: %w", err)
	}
	file, err := os.OpenFile(l.path, os.O_APPEND|os.O_WRONLY, 0o600) //nolint:gosec // our own path
	if err != nil {
		return fmt.Errorf("save which commands were carried out: %w", err)
	}
	_ = l.Close()
	l.file, l.begun = file, 0
	return nil
}

func (l *commandLog) read(f []string, line string) {
	switch {
	case len(f) == 3 && f[0] == "B":
		if ms, err := strconv.ParseInt(f[2], 10, 64); err == nil && len(l.known) < maxCommands {
			l.known[f[1]] = &commandEntry{notAfter: ms}
		}
	case len(f) >= 4 && f[0] == "E" && l.known[f[1]] != nil:
		outcome, err := strconv.ParseInt(f[2], 10, 32)
		_, quoted, _ := strings.Cut(line, "\"")
		message, quoteErr := strconv.Unquote("\"" + strings.TrimSpace(quoted))
		if err == nil && quoteErr == nil {
			e := l.known[f[1]]
			e.ended, e.result = true, result{fleetbanv1.CommandOutcome(outcome), message}
		}
	}
}

func beginLine(id string, notAfter int64) string { return fmt.Sprintf("B %s %d\n", id, notAfter) }

func endLine(id string, r result) string {
	return fmt.Sprintf("E %s %d %q\n", id, int32(r.outcome), r.message)
}

// find returns what became of a command that was begun before.
func (l *commandLog) find(id string) (result, bool) {
	e := l.known[id]
	switch {
	case e == nil:
		return result{}, false
	case !e.ended:
		return result{fleetbanv1.CommandOutcome_COMMAND_OUTCOME_UNKNOWN, "the agent stopped while it carried it out: it may or may not have been done"}, true
	}
	return e.result, true
}

func (l *commandLog) begin(id string, notAfter, nowMS int64) error {
	if l.file == nil || l.begun >= compactEvery {
		if err := l.compact(nowMS); err != nil {
			return err
		}
	}
	if len(l.known) >= maxCommands {
		return errors.New("too many commands at once")
	}
	if err := l.append(beginLine(id, notAfter)); err != nil {
		return err
	}
	l.begun++
	l.known[id] = &commandEntry{notAfter: notAfter}
	return nil
}

func (l *commandLog) end(id string, r result) error {
	l.known[id].ended, l.known[id].result = true, r
	return l.append(endLine(id, r))
}

// append writes a line and syncs it. Half a line, of a disk that is full, must not spoil the next: the file is made anew.
func (l *commandLog) append(line string) error {
	_, err := l.file.WriteString(line)
	if err == nil {
		err = l.file.Sync()
	}
	if err != nil {
		_ = l.Close()
	}
	return err
}

// within counts a command and reports whether it is among the first n of the last minute.
func (l *commandLog) within(n int, now time.Time) bool {
	keep := 0
	for keep < len(l.times) && now.Sub(l.times[keep]) >= time.Minute {
		keep++
	}
	l.times = l.times[keep:]
	if len(l.times) >= n {
		return false
	}
	l.times = append(l.times, now)
	return true
}

// Close closes the file.
func (l *commandLog) Close() error {
	if l.file == nil {
		return nil
	}
	err := l.file.Close()
	l.file = nil
	return err
}

// writeWhole replaces a file: old or new, never half.
func writeWhole(path string, b []byte) error {
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600) //nolint:gosec // our own path
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
