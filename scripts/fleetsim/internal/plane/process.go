package plane

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is a child that dies with this one.
type process struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{}
}

func start(cmd *exec.Cmd, log string) (*process, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	// A group of its own: an interrupt is for this process, which ends the others in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, log: log, done: make(chan struct{})}
	go func() {
		_ = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// await polls until a process serves: nothing signals that.
func await(ctx context.Context, what string, p *process, ready func() error) error {
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ready()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-p.done:
			said, _ := os.ReadFile(p.log)
			return fmt.Errorf("%s ended before it served; it said:\n%s", what, bytes.TrimSpace(said))
		case <-ctx.Done():
			return fmt.Errorf("%s doesn't serve: %w", what, err)
		}
	}
}

// Usage is what a process takes of the machine.
type Usage struct {
	// RSS and Peak are bytes.
	RSS, Peak int64
	// CPU is what it has used since it began.
	CPU time.Duration
}

// Usage of the replica; zero when it doesn't run.
func (r *Replica) Usage() Usage {
	r.mu.Lock()
	p := r.process
	r.mu.Unlock()
	if p == nil {
		return Usage{}
	}
	u, _ := usage(p.cmd.Process.Pid)
	return u
}

// Profile is a profile of the processor that the replica's process uses from now on, for so long.
func (r *Replica) Profile(ctx context.Context, d time.Duration) ([]byte, error) {
	url := fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", r.metrics, max(1, int(d/time.Second)))
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the replica answered %s", answer.Status)
	}
	return io.ReadAll(io.LimitReader(answer.Body, 64<<20))
}

// ResetPeak makes Usage.Peak begin anew.
func (r *Replica) ResetPeak() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.process != nil {
		_ = os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", r.process.cmd.Process.Pid), []byte("5"), 0o600)
	}
}

// RedisUsage is Redis'.
func (p *Plane) RedisUsage() Usage {
	u, _ := usage(p.redis.cmd.Process.Pid)
	return u
}

// SelfUsage is this process'.
func SelfUsage() Usage {
	u, _ := usage(os.Getpid())
	return u
}

// usage reads /proc.
func usage(pid int) (u Usage, err error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return u, err
	}
	for line := range strings.Lines(string(status)) {
		key, value, _ := strings.Cut(line, ":")
		n, _ := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 10, 64)
		switch key {
		case "VmRSS":
			u.RSS = n << 10
		case "VmHWM":
			u.Peak = n << 10
		}
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return u, err
	}
	// After the name, which may hold anything: user and system time are the 12th and 13th.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 13 {
		return u, errors.New("/proc/PID/stat has too few fields")
	}
	user, _ := strconv.ParseInt(fields[11], 10, 64)
	system, _ := strconv.ParseInt(fields[12], 10, 64)
	const hertz = 100 // USER_HZ, on every Linux that Go runs on
	u.CPU = time.Duration(user+system) * time.Second / hertz
	return u, nil
}
