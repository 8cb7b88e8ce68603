package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	// Arg0 is the name a node's first process goes by: what `ps` shows and what finds leftovers.
	Arg0 = "fleetban-lab-node"
	// WebArg0 is the name of the small server that machines of the lab offer.
	WebArg0 = "fleetban-lab-web"

	configName = "config.json"
	// ControlName is the socket in the node's folder.
	ControlName = "control"
	// reportFD is where the node says "ok" or what failed; leaseFD, if given, ends the node when its other end closes.
	reportFD, leaseFD = 3, 4
	requestTimeout    = 5 * time.Second
	maxRequest        = 1 << 20
)

// Main is called first by every program that makes labs, for nodes are that same program again. It returns at once in
// a process that isn't one, and never in one that is.
func Main() {
	switch filepath.Base(os.Args[0]) {
	case WebArg0:
		exit(serveWeb(os.Args[1:]))
	case Arg0:
		if len(os.Args) < 2 {
			exit(errors.New("a node's folder is missing"))
		}
		exit(run(os.Args[1], len(os.Args) > 2 && os.Args[2] == "leased"))
	}
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, filepath.Base(os.Args[0])+":", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// WriteConfig writes what Main will read in dir.
func WriteConfig(dir string, cfg Config) error {
	content, err := json.MarshalIndent(cfg, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, configName), content, 0o600)
}

func run(dir string, leased bool) error {
	report := os.NewFile(reportFD, "report")
	if report == nil {
		return errors.New("a node is started by the lab only")
	}
	syscall.CloseOnExec(reportFD)
	if leased {
		syscall.CloseOnExec(leaseFD)
		lease := os.NewFile(leaseFD, "lease")
		go func() {
			// The other end is held by the process that made the lab, however that ends.
			_, _ = lease.Read(make([]byte, 1))
			os.Exit(0)
		}()
	}
	listener, err := prepare(dir)
	if err != nil {
		fmt.Fprintln(report, err)
		return err
	}
	fmt.Fprintln(report, "ok")
	if err := report.Close(); err != nil {
		return err
	}
	return serve(listener, newSupervisor())
}

func prepare(dir string) (net.Listener, error) {
	content, err := os.ReadFile(filepath.Join(dir, configName))
	if err != nil {
		return nil, err
	}
	var cfg Config
	if err := json.Unmarshal(content, &cfg); err != nil {
		return nil, err
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, ControlName), Net: "unix"})
	if err != nil {
		return nil, err
	}
	for _, step := range []func() error{
		func() error { return buildRoot(dir, &cfg) },
		func() error { return writeFiles(&cfg) },
		func() error { return writeSysctls(cfg.Sysctls) },
		func() error { return serveSyslog(cfg.Name) },
	} {
		if err := step(); err != nil {
			return nil, fmt.Errorf("machine %s: %w", cfg.Name, err)
		}
	}
	return listener, nil
}

func writeSysctls(values map[string]string) error {
	for key, value := range values {
		if err := os.WriteFile(filepath.Join("/proc/sys", key), []byte(value), 0); err != nil {
			return fmt.Errorf("set sysctl %s: %w", strings.ReplaceAll(key, "/", "."), err)
		}
	}
	return nil
}

func serve(listener net.Listener, sup *supervisor) error {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			var response Response
			if err := handle(conn, sup, &response); err != nil {
				response.Error = err.Error()
			}
			_ = json.NewEncoder(conn).Encode(response)
		}()
	}
}

func handle(conn net.Conn, sup *supervisor, response *Response) error {
	if err := conn.SetReadDeadline(time.Now().Add(requestTimeout)); err != nil {
		return err
	}
	var request Request
	if err := json.NewDecoder(&limited{conn, maxRequest}).Decode(&request); err != nil {
		return err
	}
	switch request.Op {
	case OpNetwork:
		return configureNetwork(sup, request)
	case OpStart:
		return sup.start(request.Service)
	case OpStop:
		return sup.stop(request.Name, syscall.Signal(request.Signal))
	case OpSignal:
		return sup.signal(request.Name, syscall.Signal(request.Signal))
	case OpList:
		response.Services = sup.list()
		return nil
	default:
		return fmt.Errorf("unknown request %q", request.Op)
	}
}

type limited struct {
	conn net.Conn
	left int
}

func (l *limited) Read(p []byte) (int, error) {
	if l.left <= 0 {
		return 0, errors.New("request is too long")
	}
	n, err := l.conn.Read(p[:min(len(p), l.left)])
	l.left -= n
	return n, err
}

// configureNetwork runs ip and nft as one-shot services, for only the supervisor may reap here.
func configureNetwork(sup *supervisor, request Request) error {
	if err := os.WriteFile("/run/lab-ip", []byte(request.IPBatch), 0o600); err != nil {
		return err
	}
	if err := sup.runOnce("network-ip", "ip", "-batch", "/run/lab-ip"); err != nil {
		return err
	}
	if request.Nft == "" {
		return nil
	}
	if err := os.WriteFile("/run/lab-nft", []byte(request.Nft), 0o600); err != nil {
		return err
	}
	return sup.runOnce("network-nft", "nft", "-f", "/run/lab-nft")
}

func (s *supervisor) runOnce(name string, argv ...string) error {
	if err := s.start(Service{Name: name, Argv: argv}); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	svc := s.services[name]
	for svc.pid != 0 {
		changed := s.changed
		s.mu.Unlock()
		<-changed
		s.mu.Lock()
	}
	delete(s.services, name)
	if svc.lastExit == "exit status 0" {
		return nil
	}
	output, _ := os.ReadFile(filepath.Join(LogDir, name+".log"))
	return fmt.Errorf("%s: %s: %s", strings.Join(argv, " "), svc.lastExit, strings.TrimSpace(string(output)))
}
