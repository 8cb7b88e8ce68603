package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
)

const redisPort = 6379

// needed are the programs of the surrounding machine that a lab can't be made without, and the packages they are in.
var needed = map[string]string{
	"ip": "iproute2", "nft": "nftables", "iptables": "iptables", "nsenter": "util-linux", "unshare": "util-linux",
	"/usr/sbin/sshd": "openssh-server", "ssh": "openssh-client", "ssh-keygen": "openssh-client",
	"fail2ban-server": "fail2ban", "redis-server": "redis-server", "haproxy": "haproxy",
}

// checkMachine says what is missing before anything is made.
func checkMachine(options Options) error {
	if os.Geteuid() != 0 {
		return errors.New("the lab makes network namespaces, which needs root: run it with sudo")
	}
	var missing []string
	for program, pkg := range needed {
		if _, err := exec.LookPath(program); err != nil {
			missing = append(missing, pkg)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("the lab needs programs this machine lacks: run `make setup`, or install %s", strings.Join(missing, " "))
	}
	if !options.Fleetban {
		return nil
	}
	for _, name := range []string{programAgent, programControlPlane, programCLI} {
		if name == programAgent && options.Bare {
			continue
		}
		if _, err := os.Stat(filepath.Join(options.BinDir, name)); err != nil {
			return fmt.Errorf("there is no %s in %s: run `make build`", name, options.BinDir)
		}
	}
	return nil
}

// repositoryBin finds the bin folder of the repository that the working folder is in.
func repositoryBin() (string, error) {
	if dir := os.Getenv("FLEETBAN_BIN"); dir != "" {
		return dir, nil
	}
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.work")); err == nil {
			return filepath.Join(dir, "bin"), nil
		}
		if dir == filepath.Dir(dir) {
			return "bin", nil
		}
		dir = filepath.Dir(dir)
	}
}

// prepareSSH makes the hosts' key (one for all, they are told apart by address) and learns what this sshd must be told so
// that it is fail2ban, and not sshd, that shuts the attacker out.
func (l *Lab) prepareSSH(ctx context.Context) error {
	path := filepath.Join(l.dir, "host_key")
	if output, err := exec.CommandContext(ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", path).CombinedOutput(); err != nil {
		return fmt.Errorf("make the hosts' SSH key: %w: %s", err, output)
	}
	key, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	l.hostKey = string(key)
	// Since OpenSSH 9.8 sshd has penalties of its own.
	if exec.CommandContext(ctx, "/usr/sbin/sshd", "-t", "-f", "/dev/null", "-h", path, "-o", "PerSourcePenalties=no").Run() == nil {
		l.sshdExtra = "PerSourcePenalties no\n"
	}
	return nil
}

// parallel runs f for all nodes at once and returns all errors.
func parallel(nodes []*Node, f func(*Node) error) error {
	errs := make([]error, len(nodes))
	var wg sync.WaitGroup
	for i, n := range nodes {
		wg.Go(func() { errs[i] = f(n) })
	}
	wg.Wait()
	return errors.Join(errs...)
}
