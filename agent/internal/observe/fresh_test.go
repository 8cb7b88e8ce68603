package observe

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// A log that was written to just now is news from its start only if it was made just now.
func TestFresh(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "fail2ban.log")
	if err := os.WriteFile(path, []byte("x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	if !fresh(path, now) {
		t.Error("a log that was just made isn't fresh")
	}
	later := now.Add(time.Minute)
	if err := os.Chtimes(path, later, later); err != nil {
		t.Fatal(err)
	}
	if fresh(path, later) {
		t.Error("an old log is fresh because a line was just added")
	}
}
