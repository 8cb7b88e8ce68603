package helper

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// TestCommandsAreRememberedThroughAKill cuts the file at every byte: a command that was begun is never begun again.
func TestCommandsAreRememberedThroughAKill(t *testing.T) {
	t.Parallel()
	const now = 1_700_000_000_000
	path := filepath.Join(t.TempDir(), "commands")
	l, err := openCommands(path, now)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.begin("A", now+60_000, now); err != nil {
		t.Fatal(err)
	}
	begun, _ := os.ReadFile(path) //nolint:gosec // a test's
	want := result{fleetbanv1.CommandOutcome_COMMAND_OUTCOME_DONE, "a \"quoted\"\nmessage"}
	if err := l.end("A", want); err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	whole, _ := os.ReadFile(path) //nolint:gosec // a test's
	for n := len(begun); n <= len(whole); n++ {
		cut := filepath.Join(t.TempDir(), "commands")
		if err := os.WriteFile(cut, whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		l, err := openCommands(cut, now)
		if err != nil {
			t.Fatal(err)
		}
		r, ok := l.find("A")
		switch {
		case !ok:
			t.Fatalf("cut at %d: forgotten", n)
		case n == len(whole) && r != want:
			t.Errorf("whole: %+v", r)
		case n < len(whole) && r.outcome != fleetbanv1.CommandOutcome_COMMAND_OUTCOME_UNKNOWN:
			t.Errorf("cut at %d: %+v", n, r)
		}
		_ = l.Close()
	}
	l, err = openCommands(path, now+60_000+graceMS+1)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // a test's
	if _, ok := l.find("A"); ok {
		t.Error("remembered beyond its time")
	}
}

// A disk without room refuses commands, and takes them again when there is room: what was cut off in between does no harm.
func TestCommandsOnAFullDisk(t *testing.T) {
	t.Parallel()
	const now = 1_700_000_000_000
	path := filepath.Join(t.TempDir(), "commands")
	if err := os.Mkdir(path+".new", 0o700); err != nil { // nothing can be written
		t.Fatal(err)
	}
	l, err := openCommands(path, now)
	if err == nil {
		t.Error("nobody is told")
	}
	if err := l.begin("A", now+60_000, now); err == nil {
		t.Error("a command was begun that can't be remembered")
	}
	if err := os.Remove(path + ".new"); err != nil {
		t.Fatal(err)
	}
	if err := l.begin("B", now+60_000, now); err != nil {
		t.Fatal(err)
	}
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	l.file = full
	if err := l.begin("C", now+60_000, now); err == nil {
		t.Error("a command was begun on a full disk")
	}
	if err := l.begin("D", now+60_000, now); err != nil {
		t.Errorf("there is room again: %v", err)
	}
	_ = l.Close()
	l, err = openCommands(path, now)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // a test's
	for id, want := range map[string]bool{"A": false, "B": true, "C": false, "D": true} {
		if _, ok := l.find(id); ok != want {
			t.Errorf("%s is remembered: %v", id, ok)
		}
	}
}

// Neither memory nor disk grows with the commands of months.
func TestCommandsAreForgotten(t *testing.T) {
	t.Parallel()
	now := int64(1_700_000_000_000)
	path := filepath.Join(t.TempDir(), "commands")
	l, err := openCommands(path, now)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // a test's
	for i := range 3 * compactEvery {
		now += graceMS
		if err := l.begin(fmt.Sprint(i), now+60_000, now); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Size() > 40*compactEvery || len(l.known) > compactEvery+10 {
		t.Errorf("%d commands in %d bytes, %v", len(l.known), info.Size(), err)
	}
}

func TestCommandsPerMinute(t *testing.T) {
	t.Parallel()
	l := &commandLog{}
	at := time.Unix(1_700_000_000, 0)
	for i := range 5 {
		if got, want := l.within(3, at.Add(time.Duration(i)*time.Second)), i < 3; got != want {
			t.Errorf("command %d: %v", i, got)
		}
	}
	if !l.within(3, at.Add(61*time.Second)) {
		t.Error("none after a minute")
	}
	if l.within(0, at) {
		t.Error("0 a minute allowed one")
	}
}
