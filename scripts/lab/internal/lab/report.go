package lab

import (
	"context"
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
		logs, _ := filepath.Glob(n.Path(node.LogDir + "/*.log"))
		for _, path := range append(logs, n.Path("/var/log/auth.log"), n.Path("/var/log/fail2ban.log")) {
			content, err := os.ReadFile(path)
			if err != nil || len(content) == 0 {
				continue
			}
			fmt.Fprintf(&b, "-- %s %s\n%s\n", n.Name, filepath.Base(path), lastLines(string(content), reportLines))
		}
	}
	return b.String()
}
