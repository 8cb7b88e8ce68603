package hostcli

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
)

func TestCommand(t *testing.T) {
	t.Parallel()
	if err := command(t.Context(), "true", "x"); err != nil {
		t.Errorf("true: %v", err)
	}
	if err := command(t.Context(), "sh", "-c", "echo out; echo why >&2; exit 3"); err == nil || !strings.Contains(err.Error(), "exit status 3: out\nwhy") {
		t.Errorf("a failure: %v", err)
	}
	if err := command(t.Context(), "fleetban-no-such", "x"); err == nil || !strings.Contains(err.Error(), "isn't installed") {
		t.Errorf("a missing program: %v", err)
	}
	// More than is kept of what it says doesn't hold it up, nor does a child that keeps its output open.
	if err := command(t.Context(), "sh", "-c", "head -c 1000000 /dev/zero"); err != nil {
		t.Errorf("a talkative one: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	began := time.Now()
	err := command(ctx, "sh", "-c", "sleep 60 & wait")
	if err == nil || !errors.Is(ctx.Err(), context.DeadlineExceeded) || time.Since(began) > 30*time.Second {
		t.Errorf("one that never ends: %v after %v", err, time.Since(began))
	}
}
