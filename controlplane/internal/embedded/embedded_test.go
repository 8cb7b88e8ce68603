package embedded_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/embedded"
	"github.com/fleetban/fleetban/controlplane/internal/store"
	"github.com/fleetban/fleetban/controlplane/internal/testwait"
)

func start(t *testing.T, dir string) (*embedded.Server, *store.Store) {
	t.Helper()
	s, err := embedded.Start(t.Context(), embedded.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Stop(context.Background()) })
	st, err := store.Open(store.Options{URL: s.URL()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	return s, st
}

func pidOf(t *testing.T, st *store.Store) int {
	t.Helper()
	info, err := st.Client().Info(t.Context(), "server").Result()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(info) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "process_id:"); ok {
			pid, _ := strconv.Atoi(v)
			return pid
		}
	}
	t.Fatal("no process_id")
	return 0
}

func TestSupervises(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	// Longer than a Unix socket's address may be.
	dir := filepath.Join(t.TempDir(), strings.Repeat("long/", 24))
	s, st := start(t, dir)
	for key, want := range map[string]string{"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction", "save": "", "port": "0", "hash-max-listpack-value": "512"} {
		if got, err := st.Client().ConfigGet(ctx, key).Result(); err != nil || got[key] != want {
			t.Errorf("%s is %q, %v; want %q", key, got[key], err, want)
		}
	}
	if err := st.Client().Set(ctx, "k", "v", 0).Err(); err != nil {
		t.Fatal(err)
	}
	if _, err := embedded.Start(ctx, embedded.Options{Dir: dir, LockWait: time.Millisecond}); !errors.Is(err, embedded.ErrInUse) || !strings.Contains(err.Error(), "--data-dir") {
		t.Errorf("a second one on the same folder: %v", err)
	}
	first := pidOf(t, st)
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	testwait.For(t, "it is back with its data", func() bool {
		v, err := st.Client().Get(ctx, "k").Result()
		return err == nil && v == "v"
	})
	if second := pidOf(t, st); second == first {
		t.Error("the same process")
	}
	if err := s.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	_, again := start(t, dir)
	if v, err := again.Client().Get(ctx, "k").Result(); err != nil || v != "v" {
		t.Errorf("after a restart: %q, %v", v, err)
	}
}

// A start says nothing that isn't for people; what is, once and in plain words. The server's own lines stay for who debugs.
func TestSaysLittle(t *testing.T) {
	t.Parallel()
	var shown, all bytes.Buffer
	split := slog.NewMultiHandler(slog.NewTextHandler(&shown, nil), slog.NewTextHandler(&all, &slog.HandlerOptions{Level: slog.LevelDebug}))
	s, err := embedded.Start(t.Context(), embedded.Options{Dir: t.TempDir(), Logger: slog.New(split)})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(shown.String()) {
		if !strings.Contains(line, "fix=") {
			t.Errorf("shown: %s", line)
		}
	}
	if strings.Count(shown.String(), "overcommit") > 1 {
		t.Errorf("twice: %s", &shown)
	}
	for _, want := range []string{"to accept connections", "version=", "exit"} {
		if !strings.Contains(all.String(), want) {
			t.Errorf("who debugs doesn't see %q: %s", want, &all)
		}
	}
}

func TestRefusesAnOldServer(t *testing.T) {
	t.Parallel()
	old := filepath.Join(t.TempDir(), "redis-server")
	if err := os.WriteFile(old, []byte("#!/bin/sh\necho 'Redis server v=6.0.16 sha=00000000:0 malloc=jemalloc-5.2.1 bits=64 build=6d95e1af3a2c082a'\n"), 0o700); err != nil { //nolint:gosec // it is run
		t.Fatal(err)
	}
	if _, err := embedded.Start(t.Context(), embedded.Options{Dir: t.TempDir(), Binary: old}); err == nil || !strings.Contains(err.Error(), "6.0.16") {
		t.Error(err)
	}
}

func TestSaysWhyItDoesNotStart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	// An append-only file that can't be read.
	if err := os.MkdirAll(filepath.Join(dir, "appendonlydir"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "appendonlydir", "appendonly.aof.manifest"), []byte("nonsense\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := embedded.Start(t.Context(), embedded.Options{Dir: dir}); err == nil || !strings.Contains(err.Error(), "anifest") {
		t.Fatal(err)
	}
}

// TestDiesWithUs starts this test again as a process of its own, kills that, and looks whether its child is gone.
func TestDiesWithUs(t *testing.T) {
	t.Parallel()
	if dir := os.Getenv("FLEETBAN_TEST_EMBEDDED"); dir != "" {
		s, err := embedded.Start(context.Background(), embedded.Options{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		st, err := store.Open(store.Options{URL: s.URL()})
		if err != nil {
			t.Fatal(err)
		}
		fmt.Printf("child %d\n", pidOf(t, st))
		select {}
	}
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0], "-test.run=^TestDiesWithUs$")
	cmd.Env = append(os.Environ(), "FLEETBAN_TEST_EMBEDDED="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	child := 0
	for lines := bufio.NewScanner(out); child == 0 && lines.Scan(); {
		_, _ = fmt.Sscanf(lines.Text(), "child %d", &child)
	}
	if child == 0 {
		t.Fatal("it didn't start")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	testwait.For(t, "the child is gone", func() bool { return errors.Is(syscall.Kill(child, 0), syscall.ESRCH) || zombie(child) })
	start(t, dir)
}

// zombie reports whether nobody has taken note of a process's death yet.
func zombie(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && strings.Contains(string(stat), ") Z ")
}
