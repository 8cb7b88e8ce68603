package agentapi

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestRetryOnce: however often Redis fails a stream meanwhile, it is looked once more, and for what was missing.
func TestRetryOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		queue := newPump(0)
		st := &stream{service: &Service{pump: queue}, pushed: &pushedStream{}}
		fail := func(commands bool) {
			st.pushed.mu.Lock()
			defer st.pushed.mu.Unlock()
			st.pushed.retry(st, commands)
		}
		looks := func() int {
			synctest.Wait()
			queue.mu.Lock()
			defer queue.mu.Unlock()
			n := len(queue.queue)
			queue.queue = nil
			st.pushed.turn.Store(turnIdle)
			return n
		}
		for range 4 {
			fail(false)
			fail(true)
			time.Sleep(storeRetry / 5)
		}
		if looks() != 0 {
			t.Error("it was looked before the pause was over")
		}
		time.Sleep(storeRetry / 5)
		if n := looks(); n != 1 || !st.box.commands {
			t.Errorf("it was looked %d times, for commands: %t", n, st.box.commands)
		}
		time.Sleep(2 * storeRetry)
		if n := looks(); n != 0 {
			t.Errorf("it was looked %d times more", n)
		}
		fail(false)
		time.Sleep(storeRetry)
		if n := looks(); n != 1 {
			t.Errorf("after the next failure it was looked %d times", n)
		}
	})
}
