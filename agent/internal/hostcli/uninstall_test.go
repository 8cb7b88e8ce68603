package hostcli

import (
	"os"
	"path/filepath"
	"testing"
)

// Only what is ours goes: a socket may be in a folder of others, and a control plane keeps its settings beside ours.
func TestRemovesOnlyItsOwn(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, name := range []string{"policy.toml", "controlplane.env", "helper.sock", "helper.sock.lock", "others"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // the second time there is nothing to do
		if err := removeFrom(dir, "policy.toml", "agent.env"); err != nil {
			t.Fatal(err)
		}
		if err := removeSocket(filepath.Join(dir, "helper.sock")); err != nil {
			t.Fatal(err)
		}
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 2 || left[0].Name() != "controlplane.env" || left[1].Name() != "others" {
		t.Errorf("left: %v, %v", left, err)
	}
	own := filepath.Join(t.TempDir(), "run")
	if err := os.Mkdir(own, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := removeSocket(filepath.Join(own, "run.sock")); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(own); err == nil {
		t.Error("an empty folder of ours is left")
	}
}
