package testwait

import (
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Stopwatch measures how long something takes of a machine that many tests share: time in which the machine let this process wait, for
// a processor or for its disk, is not counted. So a limit can be what is promised, and holds on a machine that is busy; on one that
// is idle it is exact.
type Stopwatch struct {
	began time.Time
	late  atomic.Int64
	stop  func()
}

const (
	// sampled is how often the machine is asked how late it is, onTime what of that counts as punctual.
	sampled = 5 * time.Millisecond
	onTime  = 2 * time.Millisecond
	// written is how often the disk is asked, as Redis asks it before each answer; soon what it may take.
	written = 20 * time.Millisecond
	soon    = 10 * time.Millisecond
)

// StartStopwatch starts one that runs until the end of the test, or Stop.
func StartStopwatch(t testing.TB) *Stopwatch {
	t.Helper()
	w := &Stopwatch{began: time.Now()}
	stop := make(chan struct{})
	var done sync.WaitGroup
	done.Go(func() {
		for {
			slept := time.Now()
			select {
			case <-stop:
				return
			case <-time.After(sampled):
			}
			if late := time.Since(slept) - sampled; late > onTime {
				w.late.Add(int64(late))
			}
		}
	})
	file, err := os.Create(filepath.Join(t.TempDir(), "stopwatch"))
	if err != nil {
		t.Fatal(err)
	}
	done.Go(func() {
		defer func() { _ = file.Close() }()
		for {
			select {
			case <-stop:
				return
			case <-time.After(written):
			}
			began := time.Now()
			if _, err := file.WriteAt([]byte("x"), 0); err != nil || file.Sync() != nil {
				return
			}
			if late := time.Since(began) - soon; late > 0 {
				w.late.Add(int64(late))
			}
		}
	})
	w.stop = sync.OnceFunc(func() {
		close(stop)
		done.Wait()
	})
	t.Cleanup(w.stop)
	return w
}

// Took is the time since the start, less that in which the machine was late.
func (w *Stopwatch) Took() time.Duration {
	return time.Since(w.began) - time.Duration(w.late.Load())
}

// Within fails the test where more than limit was taken, and logs what was; it stops the watch. what says what was to be over.
func (w *Stopwatch) Within(t testing.TB, what string, limit time.Duration) {
	t.Helper()
	whole, took := time.Since(w.began), w.Took()
	w.stop()
	t.Logf("%s: %s, of a machine that was late by %s of them", what, whole.Round(time.Millisecond), (whole - took).Round(time.Millisecond))
	if took > limit {
		t.Errorf("%s: it took %s (with the machine's delays %s), which is more than %s", what, took, whole, limit)
	}
}
