package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/fleetban/fleetban/scripts/lab/internal/lab"
)

const (
	promisedAgentMB        = 16.0
	promisedControlPlaneMB = 150.0
	promisedBinaryBytes    = 10_000_000
	// ticks a second of /proc/PID/stat, the same on every Linux that Go runs on.
	ticks = 100
)

// weigh prints the memory of the processes with many bans, and what they use of a processor at rest.
func weigh(ctx context.Context, l *lab.Lab, options Options) error {
	if err := load(ctx, l); err != nil {
		return fmt.Errorf("make %d fleet bans: %w", loaded, err)
	}
	host := l.Hosts()[0]
	var parts []part
	for _, p := range []struct {
		machine       *lab.Node
		service, name string
		promised      float64
	}{
		{host, lab.ServiceAgent, "agent, run", promisedAgentMB},
		{host, lab.ServiceHelper, "agent, helper", promisedAgentMB},
		{l.Node(lab.ControlPlane), lab.ServiceReplica(1), "replica 1", 0},
		{l.Node(lab.ControlPlane), lab.ServiceReplica(2), "replica 2", 0},
		{l.Node(lab.ControlPlane), lab.ServiceRedis, "Redis", 0},
	} {
		state, err := p.machine.Service(ctx, p.service)
		if err != nil {
			return err
		}
		parts = append(parts, part{p.name, p.machine.Path(fmt.Sprintf("/proc/%d", state.PID)), p.promised})
	}
	before := make([]float64, len(parts))
	for i, p := range parts {
		var err error
		if before[i], err = p.cpu(); err != nil {
			return err
		}
	}
	select {
	case <-time.After(options.Idle):
	case <-ctx.Done():
		return ctx.Err()
	}
	fmt.Fprintf(options.Out, "weight with %d fleet bans and %d hosts, after %s at rest\n", loaded, len(l.Hosts()), options.Idle)
	control := 0.0
	for i, p := range parts {
		mb, err := p.rss()
		if err != nil {
			return err
		}
		after, err := p.cpu()
		if err != nil {
			return err
		}
		promise := ""
		if p.promised > 0 {
			promise = fmt.Sprintf("   promised at most %.0f MB%s", p.promised, miss(mb, p.promised))
		} else if p.name != "replica 2" {
			control += mb
		}
		fmt.Fprintf(options.Out, "  %-14s %6.1f MB   %4.1f %% CPU%s\n", p.name, mb, 100*(after-before[i])/options.Idle.Seconds(), promise)
	}
	fmt.Fprintf(options.Out, "  %-14s %6.1f MB   promised at most %.0f MB, one replica with its Redis%s\n",
		"control plane", control, promisedControlPlaneMB, miss(control, promisedControlPlaneMB))
	info, err := os.Stat(filepath.Join(l.BinDir(), "fleetban-agent"))
	if err != nil {
		return err
	}
	fmt.Fprintf(options.Out, "  %-14s %d bytes   promised at most %d%s\n", "agent's binary", info.Size(), promisedBinaryBytes,
		miss(float64(info.Size()), promisedBinaryBytes))
	return nil
}

type part struct {
	name     string
	proc     string
	promised float64
}

// rss is the resident memory, MB of a million bytes.
func (p part) rss() (float64, error) {
	content, err := os.ReadFile(p.proc + "/status")
	if err != nil {
		return 0, err
	}
	for _, line := range strings.Split(string(content), "\n") {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			return kib * 1024 / 1e6, err
		}
	}
	return 0, fmt.Errorf("%s/status tells no VmRSS", p.proc)
}

// cpu is the processor time used so far, seconds.
func (p part) cpu() (float64, error) {
	content, err := os.ReadFile(p.proc + "/stat")
	if err != nil {
		return 0, err
	}
	// The name in parentheses may have spaces in it: count from behind it. utime and stime are fields 14 and 15 of proc(5).
	_, rest, _ := strings.Cut(string(content), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0, fmt.Errorf("%s/stat is too short", p.proc)
	}
	user, err := strconv.ParseFloat(fields[11], 64)
	if err != nil {
		return 0, err
	}
	system, err := strconv.ParseFloat(fields[12], 64)
	return (user + system) / ticks, err
}
