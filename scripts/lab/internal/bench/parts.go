package bench

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/fleetban/fleetban/scripts/lab/internal/lab"
)

// way is one ban's: when its line was written on one host, and when it was in the kernel of another.
type way struct {
	addr          netip.Addr
	from          *lab.Node
	line, arrived time.Time
}

// parts are the steps of a way in their order. Each ends when the next begins: at the moment that a debug line of the
// program tells, in microseconds; one machine has one clock.
var parts = []struct{ name, message, end string }{
	{"tail: the line is read", "ban observed", "read_us"},
	{"confirm: fail2ban answers for it", "ban observed", "confirmed_us"},
	{"helper to run", "ban observed", "received_us"},
	{"spool: synced", "ban observed", "spooled_us"},
	{"stream: run to replica", "ban recorded", "received_us"},
	{"Redis: decide, record, sync, ring", "change heard", "heard_us"},
	{"fan-out: to the host's stream", "frame sent", "sending_us"},
	{"stream: replica to run", "change applied", "received_us"},
	{"run to helper", "change in force", "received_us"},
	{"helper: decided and kept", "change in force", "held_us"},
	{"kernel", "", ""},
}

// told is what the programs said of one ban, by message.
type told map[string]map[string]time.Time

var fieldRule = regexp.MustCompile(`"?([a-z_]+)"?[=:]("[^"]*"|[^ ,}]+)`)

// fields reads a line of either log format.
func fields(line string) map[string]string {
	out := map[string]string{}
	for _, m := range fieldRule.FindAllStringSubmatch(line, -1) {
		out[m[1]] = strings.Trim(m[2], `"`)
	}
	return out
}

// eachLine hands over the lines of a service's log that have a message of parts.
func eachLine(n *lab.Node, service string, f func(message string, fields map[string]string)) error {
	file, err := os.Open(n.ServiceLog(service))
	if err != nil {
		return err
	}
	defer file.Close()
	scanner := bufio.NewScanner(file)
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		if !strings.Contains(scanner.Text(), "_us") {
			continue
		}
		found := fields(scanner.Text())
		f(found["msg"], found)
	}
	return scanner.Err()
}

func times(f map[string]string) map[string]time.Time {
	out := map[string]time.Time{}
	for name, value := range f {
		if n, err := strconv.ParseInt(value, 10, 64); err == nil && strings.HasSuffix(name, "_us") {
			out[name] = time.UnixMicro(n)
		}
	}
	return out
}

// gather collects what was logged of each way.
func gather(l *lab.Lab, listener *lab.Node, ways []way) (map[netip.Addr]told, error) {
	out := map[netip.Addr]told{}
	from := map[netip.Addr]*lab.Node{}
	for _, w := range ways {
		out[w.addr], from[w.addr] = told{}, w.from
	}
	versions := map[string]netip.Addr{} // a set's version: the ban that made it
	var errs []error
	for _, n := range l.Hosts() {
		errs = append(errs, eachLine(n, lab.ServiceAgent, func(message string, f map[string]string) {
			p, err := netip.ParsePrefix(f["prefix"])
			if err != nil || out[p.Addr()] == nil {
				return
			}
			if message == "change applied" {
				if n != listener {
					return
				}
				versions[f["set"]+" "+f["version"]] = p.Addr()
			} else if n != from[p.Addr()] {
				return
			}
			out[p.Addr()][message] = times(f)
		}))
	}
	errs = append(errs, eachLine(listener, lab.ServiceHelper, func(message string, f map[string]string) {
		if t := out[versions[f["set"]+" "+f["version"]]]; t != nil {
			t[message] = times(f)
		}
	}))
	const replicas = 2
	heard := map[netip.Addr]map[int]time.Time{}
	for i := 1; i <= replicas; i++ {
		errs = append(errs, eachLine(l.Node(lab.ControlPlane), lab.ServiceReplica(i), func(message string, f map[string]string) {
			switch message {
			case "ban recorded":
				if p, err := netip.ParsePrefix(f["prefix"]); err == nil && out[p.Addr()] != nil {
					out[p.Addr()][message] = times(f)
				}
			case "change heard":
				if heard[versions[f["set"]+" "+f["version"]]] == nil {
					heard[versions[f["set"]+" "+f["version"]]] = map[int]time.Time{}
				}
				heard[versions[f["set"]+" "+f["version"]]][i] = times(f)["heard_us"]
			case "frame sent":
				addr := versions[f["set"]+" "+f["version"]]
				if t := out[addr]; t != nil && f["host"] == listener.Name {
					t[message] = times(f)
					// Of the replicas that heard it, the one that serves the listener counts.
					t["change heard"] = map[string]time.Time{"heard_us": heard[addr][i]}
				}
			}
		}))
	}
	return out, errors.Join(errs...)
}

// printParts prints how long each step of the ways took.
func printParts(out io.Writer, l *lab.Lab, listener *lab.Node, ways []way) error {
	said, err := gather(l, listener, ways)
	if err != nil {
		return err
	}
	took := make([][]time.Duration, len(parts))
	complete := 0
next:
	for _, w := range ways {
		at := w.line
		steps := make([]time.Duration, len(parts))
		for i, p := range parts {
			end := w.arrived
			if p.message != "" {
				if end = said[w.addr][p.message][p.end]; end.IsZero() {
					continue next
				}
			}
			steps[i], at = end.Sub(at), end
		}
		complete++
		for i, s := range steps {
			took[i] = append(took[i], s)
		}
	}
	if complete < len(ways)*9/10 {
		return fmt.Errorf("the programs' logs tell the whole way of %d bans of %d only", complete, len(ways))
	}
	fmt.Fprintf(out, "its parts, %d bans told in full; steps may overlap, and what is written before it is measured shows as less than 0\n", complete)
	fmt.Fprintf(out, "  %-36s %8s %8s %8s\n", "ms", "p50", "p99", "max")
	for i, p := range parts {
		fmt.Fprintf(out, "  %-36s %8.2f %8.2f %8.2f\n", p.name,
			milliseconds(quantile(took[i], 0.50)), milliseconds(quantile(took[i], 0.99)), milliseconds(slices.Max(took[i])))
	}
	fmt.Fprintln(out)
	return nil
}
