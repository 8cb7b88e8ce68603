package node

import (
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"sort"
	"sync"
	"syscall"
	"time"
)

const (
	defaultRestartDelay = 100 * time.Millisecond
	// stopPatience is how long a service may take to end at its signal before it is killed.
	stopPatience = 10 * time.Second
	searchPath   = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// supervisor keeps services running and, being PID 1, reaps every process of its namespace.
type supervisor struct {
	mu sync.Mutex
	// changed is closed and replaced whenever a service starts or ends.
	changed  chan struct{}
	services map[string]*service
}

type service struct {
	spec     Service
	pid      int
	starts   int
	wanted   bool
	lastExit string
}

func newSupervisor() *supervisor {
	s := &supervisor{changed: make(chan struct{}), services: map[string]*service{}}
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	go func() {
		for range children {
			s.reap()
		}
	}()
	return s
}

// start starts a service unless it runs; with an empty Argv, one that was started before.
func (s *supervisor) start(spec Service) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	svc, known := s.services[spec.Name]
	if !known {
		if len(spec.Argv) == 0 {
			return fmt.Errorf("there is no service %q here", spec.Name)
		}
		svc = &service{}
		s.services[spec.Name] = svc
	}
	if len(spec.Argv) > 0 {
		svc.spec = spec
	}
	svc.wanted = true
	if svc.pid != 0 {
		return nil
	}
	return s.launch(svc)
}

// launch starts the process. The lock is held, so that the reaper can't meet it before its PID is written down.
func (s *supervisor) launch(svc *service) error {
	spec := svc.spec
	program := spec.Path
	if program == "" {
		program = spec.Argv[0]
	}
	if !filepath.IsAbs(program) {
		found := ""
		for _, folder := range filepath.SplitList(searchPath) {
			candidate := filepath.Join(folder, program)
			if info, err := os.Stat(candidate); err == nil && !info.IsDir() && info.Mode()&0o111 != 0 {
				found = candidate
				break
			}
		}
		if found == "" {
			return fmt.Errorf("start %s: there is no program %q on this machine", spec.Name, program)
		}
		program = found
	}
	output, err := os.OpenFile(filepath.Join(LogDir, spec.Name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer output.Close()
	input, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer input.Close()
	attr := &syscall.ProcAttr{
		Dir:   "/",
		Env:   append([]string{"PATH=" + searchPath, "LANG=C.UTF-8", "PYTHONNOUSERSITE=1"}, spec.Env...),
		Files: []uintptr{input.Fd(), output.Fd(), output.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	}
	if spec.Dir != "" {
		attr.Dir = spec.Dir
	}
	if spec.User != "" {
		uid, gid, err := lookup(spec.User)
		if err != nil {
			return fmt.Errorf("start %s: %w", spec.Name, err)
		}
		attr.Sys.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	pid, err := syscall.ForkExec(program, spec.Argv, attr)
	if err != nil {
		return fmt.Errorf("start %s: %s: %w", spec.Name, program, err)
	}
	svc.pid = pid
	svc.starts++
	s.wake()
	return nil
}

// wake tells who waits that something changed. The lock is held.
func (s *supervisor) wake() {
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *supervisor) reap() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		for _, svc := range s.services {
			if svc.pid == pid {
				s.ended(svc, status)
			}
		}
	}
}

func (s *supervisor) ended(svc *service, status syscall.WaitStatus) {
	svc.pid = 0
	svc.lastExit = fmt.Sprintf("exit status %d", status.ExitStatus())
	if status.Signaled() {
		svc.lastExit = "killed by " + status.Signal().String()
	}
	s.wake()
	if !svc.wanted || !svc.spec.Restart {
		return
	}
	delay := svc.spec.RestartDelay
	if delay == 0 {
		delay = defaultRestartDelay
	}
	time.AfterFunc(delay, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if svc.wanted && svc.pid == 0 {
			if err := s.launch(svc); err != nil {
				svc.lastExit = err.Error()
				s.wake()
			}
		}
	})
}

func (s *supervisor) signal(name string, sig syscall.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	svc, ok := s.services[name]
	if !ok || svc.pid == 0 {
		return fmt.Errorf("service %q doesn't run here", name)
	}
	return syscall.Kill(svc.pid, sig)
}

// stop ends a service and waits until it has ended.
func (s *supervisor) stop(name string, sig syscall.Signal) error {
	if sig == 0 {
		sig = syscall.SIGTERM
	}
	s.mu.Lock()
	svc, ok := s.services[name]
	if !ok {
		s.mu.Unlock()
		return fmt.Errorf("there is no service %q here", name)
	}
	svc.wanted = false
	if svc.pid != 0 {
		_ = syscall.Kill(svc.pid, sig)
	}
	patience := time.NewTimer(stopPatience)
	defer patience.Stop()
	for svc.pid != 0 {
		changed, pid := s.changed, svc.pid
		s.mu.Unlock()
		select {
		case <-changed:
		case <-patience.C:
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		s.mu.Lock()
	}
	s.mu.Unlock()
	return nil
}

func (s *supervisor) list() []State {
	s.mu.Lock()
	defer s.mu.Unlock()
	states := make([]State, 0, len(s.services))
	for name, svc := range s.services {
		states = append(states, State{Name: name, PID: svc.pid, Starts: svc.starts, Wanted: svc.wanted, LastExit: svc.lastExit})
	}
	sort.Slice(states, func(i, j int) bool { return states[i].Name < states[j].Name })
	return states
}
