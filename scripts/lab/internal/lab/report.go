package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/fleetban/fleetban/scripts/lab/internal/node"
)

// reportLines is how much of each log a report shows.
const reportLines = 25

// Report tells what runs on each machine and the end of each log, for a test that failed.
func (l *Lab) Report(ctx context.Context) string {
	var b strings.Builder
	for _, n := range l.nodes {
		fmt.Fprintf(&b, "== %s\n", n.Name)
		services, err := n.Services(ctx)
		if err != nil {
			fmt.Fprintln(&b, err)
		}
		for _, s := range services {
			fmt.Fprintf(&b, "   %s: pid %d, started %d times, wanted %v, last exit %q\n", s.Name, s.PID, s.Starts, s.Wanted, s.LastExit)
		}
		for _, path := range n.logs() {
			content, err := os.ReadFile(path)
			if err != nil || len(content) == 0 {
				continue
			}
			fmt.Fprintf(&b, "-- %s %s\n%s\n", n.Name, filepath.Base(path), lastLines(string(content), reportLines))
		}
	}
	return b.String()
}

// logs are the paths of a machine's logs, some of which may not be there.
func (n *Node) logs() []string {
	logs, _ := filepath.Glob(n.Path(node.LogDir + "/*.log"))
	return append(logs, n.Path("/var/log/auth.log"), n.Path("/var/log/fail2ban.log"))
}

// SaveLogs copies every machine's logs, whole, to a folder of its name beneath dir.
func (l *Lab) SaveLogs(dir string) error {
	for _, n := range l.nodes {
		to := filepath.Join(dir, n.Name)
		if err := os.MkdirAll(to, 0o700); err != nil {
			return err
		}
		for _, path := range n.logs() {
			content, err := os.ReadFile(path)
			if errors.Is(err, os.ErrNotExist) {
				continue
			}
			if err == nil {
				err = os.WriteFile(filepath.Join(to, filepath.Base(path)), content, 0o600)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}
