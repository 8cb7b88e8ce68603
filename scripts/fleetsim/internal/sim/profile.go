package sim

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime/pprof"
	"sync"
	"time"
)

// profileSlice is how long one profile of a replica takes; a part's last piece, shorter than that, is lost.
const profileSlice = 2 * time.Second

// profile writes, where a folder for profiles is given, what uses the processor from now until the returned function is called: of
// this process into one file, of each replica into one for each slice. pprof adds several files up.
func (f *fleet) profile(ctx context.Context, part string) (stop func()) {
	if f.o.ProfileDir == "" {
		return func() {}
	}
	own, err := os.Create(filepath.Join(f.o.ProfileDir, "fleetsim-"+part+".pprof"))
	if err == nil {
		err = pprof.StartCPUProfile(own)
	}
	if err != nil {
		f.o.Progress("no profile of this process: %v", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	var replicas sync.WaitGroup
	for _, r := range f.plane.Replicas() {
		replicas.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				b, err := r.Profile(ctx, profileSlice)
				if err == nil {
					err = os.WriteFile(filepath.Join(f.o.ProfileDir, fmt.Sprintf("%s-%s-%03d.pprof", r.Name, part, i)), b, 0o600)
				}
				if err != nil && ctx.Err() == nil {
					f.o.Progress("no profile of %s: %v", r.Name, err)
					return
				}
			}
		})
	}
	return func() {
		cancel()
		replicas.Wait()
		pprof.StopCPUProfile()
		_ = own.Close()
	}
}
