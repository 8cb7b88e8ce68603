package run_test

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fleetban/fleetban/agent/internal/run"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/banset"
)

// TestHelperHangs stops a real helper, whose connections and streams then stand as if nothing were: what it was handed is given up,
// the stream to the control plane goes on and says so, and one that begins meanwhile comes up. Once the helper goes on it is told anew
// what it missed, though nothing broke that would show that it was away.
func TestHelperHangs(t *testing.T) {
	h := newHost(t)
	p, url := serve(t)
	h.enrol(url)
	helper := h.start(true, "helper")
	hang := func(sig syscall.Signal) {
		t.Helper()
		if err := helper.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- run.Run(ctx, run.Config{
			StateDir: filepath.Join(h.dir, "agent"), HelperSocket: filepath.Join(h.dir, "run", "helper.sock"),
			Socket: filepath.Join(h.dir, "run", "agent", "run.sock"), Log: slog.New(slog.DiscardHandler),
		}.WithCallAtMost(6*time.Second), nil)
	}()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	helperAway := func(health *fleetbanv1.Health) bool {
		for _, f := range health.GetFindings() {
			if f.GetCode() == "helper-away" {
				return true
			}
		}
		return false
	}
	c := p.next(t, 0)
	c.set(banset.All, fleetbanv1.SetKind_SET_KIND_BAN, 1, "198.51.0.1")
	c.awaitAck(banset.All, 1)

	hang(syscall.SIGSTOP)
	c.set(banset.All, fleetbanv1.SetKind_SET_KIND_BAN, 2, "198.51.0.1", "198.51.0.2") // in vain
	c.await("that the helper is away", func(m *fleetbanv1.ConnectRequest) bool { return helperAway(m.GetHealth()) })
	// A replica goes meanwhile.
	close(c.broken)
	c = p.next(t, 0)
	if held := c.hello.GetCursors(); len(held) != 1 || held[0].GetVersion() != 1 {
		t.Errorf("a Hello that the helper can't be asked for names what it held last: %v", held)
	}
	if !helperAway(c.hello.GetHealth()) {
		t.Error("its Hello doesn't say that the helper is away")
	}

	hang(syscall.SIGCONT)
	c = p.next(t, 0)
	c.set(banset.All, fleetbanv1.SetKind_SET_KIND_BAN, 3, "198.51.0.1", "198.51.0.3")
	c.awaitAck(banset.All, 3)
	if k := h.kernel(); !strings.Contains(k, "198.51.0.3 ") {
		t.Errorf("acknowledged and not in the kernel:\n%s", k)
	}
}
