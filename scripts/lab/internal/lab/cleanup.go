package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/fleetban/fleetban/scripts/lab/internal/await"
	"github.com/fleetban/fleetban/scripts/lab/internal/node"
)

// goneLimit is how long the kernel may take to end all processes of a machine.
const goneLimit = 20 * time.Second

// Down ends everything of the lab and removes its folder.
func (l *Lab) Down(ctx context.Context) error {
	var pids []int
	for _, n := range l.nodes {
		if n.cmd != nil {
			pids = append(pids, n.PID)
		}
	}
	defer holdNetworks(pids)()
	if l.lease != nil {
		_ = l.lease.Close()
		l.lease = nil
	}
	for _, n := range l.nodes {
		if n.cmd != nil {
			_ = n.cmd.Process.Kill()
			_ = n.cmd.Wait()
		}
	}
	return Down(ctx, l.options.Name)
}

// Down takes down the lab of that name, whoever made it and however that ended. It is no error if there is none.
func Down(ctx context.Context, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	unlock, err := lockBase()
	if err != nil {
		return err
	}
	defer unlock()
	if err := clear(ctx, filepath.Join(BaseDir(), name)); err != nil {
		return err
	}
	// The base folder goes with the last lab.
	_ = os.Remove(BaseDir())
	return nil
}

// clear kills the machines of the lab in dir, and with each PID namespace every process in it, then whatever else is still
// in one of its networks, and removes dir.
func clear(ctx context.Context, dir string) error {
	kill := func(pids []int) {
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	defer holdNetworks(nodePIDs(dir))()
	err := await.Within(ctx, goneLimit, "the lab's processes to end", func() error {
		pids := nodePIDs(dir)
		if len(pids) == 0 {
			pids = strangers(dir)
		}
		if len(pids) == 0 {
			return nil
		}
		kill(pids)
		return fmt.Errorf("still there: %v", pids)
	})
	if err != nil {
		return err
	}
	if err := unmountBeneath(dir); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// holdNetworks keeps the networks of these processes until release is called. A network that is gone leaves its number to the next
// that is made: another lab's, whose machines would be taken for strangers in this one.
func holdNetworks(pids []int) (release func()) {
	var held []*os.File
	for _, pid := range pids {
		if network, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid)); err == nil {
			held = append(held, network)
		}
	}
	return func() {
		for _, network := range held {
			_ = network.Close()
		}
	}
}

// nodePIDs finds the first processes of the machines of the lab in dir by their command lines.
func nodePIDs(dir string) (pids []int) {
	for _, pid := range processes() {
		if labOf(pid) == dir {
			pids = append(pids, pid)
		}
	}
	return pids
}

// labOf is the folder of the lab of which the process is a machine's first; empty where it is none.
func labOf(pid int) string {
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || len(cmdline) == 0 { // a zombie's is empty
		return ""
	}
	argv := strings.Split(string(cmdline), "\x00")
	if len(argv) < 2 || argv[0] != node.Arg0 {
		return ""
	}
	return filepath.Dir(argv[1])
}

// strangers finds processes from outside that are still in a network of the lab in dir.
func strangers(dir string) (pids []int) {
	content, err := os.ReadFile(filepath.Join(dir, savedName))
	if err != nil {
		return nil
	}
	var s saved
	if json.Unmarshal(content, &s) != nil {
		return nil
	}
	networks := map[string]bool{}
	for _, n := range s.Nodes {
		networks[n.NetNS] = true
	}
	in := map[int]string{}
	for _, pid := range processes() {
		if network, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid)); err == nil && networks[network] && pid != os.Getpid() {
			in[pid] = network
		}
	}
	// Of a lab that died by itself nobody held the networks: a number may be another lab's by now.
	for pid, network := range in {
		if other := labOf(pid); other != "" && other != dir {
			delete(networks, network)
		}
	}
	for pid, network := range in {
		if networks[network] {
			pids = append(pids, pid)
		}
	}
	return pids
}

func processes() (pids []int) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, entry := range entries {
		if pid, err := strconv.Atoi(entry.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// unmountBeneath makes sure that removing dir can't reach into another file system. The machines' mounts are private to
// them, so there is nothing to do unless someone meddled.
func unmountBeneath(dir string) error {
	content, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var points []string
	for _, line := range strings.Split(string(content), "\n") {
		fields := strings.Fields(line)
		if len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			points = append(points, fields[4])
		}
	}
	sort.Sort(sort.Reverse(sort.StringSlice(points)))
	for _, point := range points {
		if err := syscall.Unmount(point, syscall.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", point, err)
		}
	}
	return nil
}

// lockBase makes the base folder and holds its lock: names are claimed and cleared by one process at a time.
func lockBase() (unlock func(), err error) {
	for {
		if err := os.MkdirAll(BaseDir(), 0o755); err != nil {
			return nil, fmt.Errorf("make the folder for labs: %w", err)
		}
		folder, err := os.Open(BaseDir())
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if err := syscall.Flock(int(folder.Fd()), syscall.LOCK_EX); err != nil {
			return nil, errors.Join(err, folder.Close())
		}
		// Whoever held the lock may have removed the folder.
		held, err := folder.Stat()
		if err != nil {
			return nil, errors.Join(err, folder.Close())
		}
		if there, err := os.Stat(BaseDir()); err == nil && os.SameFile(held, there) {
			return func() { _ = folder.Close() }, nil
		}
		_ = folder.Close()
	}
}

// Summary is what Status and List tell of a lab.
type Summary struct {
	Name string
	Dir  string
	// Machines maps each machine that is alive to its PID.
	Machines map[string]int
}

// List finds all labs of this machine, those that died included: they have no machines.
func List() ([]Summary, error) {
	entries, err := os.ReadDir(BaseDir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var labs []Summary
	for _, entry := range entries {
		if !entry.IsDir() || checkName(entry.Name()) != nil {
			continue
		}
		s := Summary{Name: entry.Name(), Dir: filepath.Join(BaseDir(), entry.Name()), Machines: map[string]int{}}
		for _, pid := range nodePIDs(s.Dir) {
			cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			if err != nil {
				continue
			}
			if argv := strings.Split(string(cmdline), "\x00"); len(argv) > 1 {
				s.Machines[filepath.Base(argv[1])] = pid
			}
		}
		labs = append(labs, s)
	}
	return labs, nil
}
