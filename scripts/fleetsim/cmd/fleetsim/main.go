// Command fleetsim plays scenarios on thousands of simulated hosts and a real control plane.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/fleetban/fleetban/scripts/fleetsim/internal/sim"
)

const usage = `fleetsim plays a scenario on simulated hosts and a real control plane (redis-server, fleetban-controlplane), prints what it
measured and checks at the end that everything is true that must be; it ends with 1 where something isn't.

  fleetsim SCENARIO[,SCENARIO…] [flags]
  fleetsim scale [--sizes N,N,…] [--svg FILE] [flags]     a table, and a chart, of what fleets of several sizes cost one replica
  fleetsim bans FIGURES SVG                               a chart of what BenchmarkScale of the control plane has measured of Redis

Each host has a TCP connection of its own and the agent's own stream; its fail2ban and its kernel are simulated.

`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	switch {
	case err == nil:
	case errors.Is(err, flag.ErrHelp):
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "fleetsim:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	var o sim.Options
	set := flag.NewFlagSet("fleetsim", flag.ContinueOnError)
	set.IntVar(&o.Hosts, "hosts", 100, "`number` of hosts")
	set.IntVar(&o.Replicas, "replicas", 2, "`number` of replicas")
	set.IntVar(&o.Bans, "bans", 200, "about how many bans each scenario makes")
	set.DurationVar(&o.Duration, "duration", 10*time.Second, "about how long each scenario goes on")
	set.Uint64Var(&o.Seed, "seed", 0, "decides who does what; 0 takes one by chance and prints it")
	set.BoolVar(&o.TLS, "tls", false, "streams use TLS; without it they are h2c")
	set.IntVar(&o.Addressed, "addressed", 50, "how many hosts tell the fleet an address of theirs; every host holds those of all")
	set.BoolVar(&o.Peers, "peers", true, "measure what Redis' PUBLISH, and NATS where there is one, take for the same")
	set.DurationVar(&o.SettleWithin, "settle", time.Minute, "how long hosts may take to be in sync once nothing happens")
	set.StringVar(&o.BinDir, "bin-dir", besides(), "`folder` with fleetban-controlplane")
	set.StringVar(&o.Dir, "dir", "", "empty `folder` for data and logs, which is kept; without it one is made and removed")
	set.StringVar(&o.ProfileDir, "profile", "", "write profiles of the processor of this process and the replicas into this `folder`")
	set.Func("sabotage", "make a host faulty, to see that it is found: `"+strings.Join(sim.Sabotages(), "`, ")+"; may be given again", func(s string) error {
		o.Sabotage = append(o.Sabotage, s)
		return nil
	})
	sizes := set.String("sizes", "1000,5000,15000", "of scale: `numbers` of hosts")
	chart := set.String("svg", "", "of scale: `file` to draw the chart into")
	asJSON := set.Bool("json", false, "print the report as JSON")
	set.Usage = func() {
		fmt.Fprintf(os.Stderr, "%s  %s\n\n", usage, strings.Join(sim.Names(), "\n  "))
		set.PrintDefaults()
	}
	if len(args) == 0 || strings.HasPrefix(args[0], "-") {
		set.Usage()
		return flag.ErrHelp
	}
	if o.Scenario = args[0]; o.Scenario == "bans" && len(args) == 3 {
		return bans(args[1], args[2])
	}
	if err := set.Parse(args[1:]); err != nil {
		return flag.ErrHelp
	}
	if set.NArg() > 0 {
		return fmt.Errorf("what is %q? Flags come after the scenario", set.Arg(0))
	}
	began := time.Now()
	o.Progress = func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, "%6.1f s  %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
	}
	// Hosts hold much and make little garbage; the collector is not to take the processor from what is measured.
	debug.SetGCPercent(200)
	if o.Scenario == "scale" {
		return scale(ctx, o, *sizes, *chart)
	}
	report, err := sim.Run(ctx, o)
	if report == nil {
		return err
	}
	if *asJSON {
		encoder := json.NewEncoder(os.Stdout)
		encoder.SetIndent("", "  ")
		if encodeErr := encoder.Encode(report); encodeErr != nil {
			return encodeErr
		}
		return err
	}
	report.Print(os.Stdout)
	return err
}

func scale(ctx context.Context, o sim.Options, sizes, chart string) error {
	var hosts []int
	for text := range strings.SplitSeq(sizes, ",") {
		n, err := strconv.Atoi(text)
		if err != nil {
			return fmt.Errorf("--sizes: %q is no number of hosts", text)
		}
		hosts = append(hosts, n)
	}
	points, err := sim.Scale(ctx, o, hosts)
	sim.PrintScale(os.Stdout, points)
	if err != nil || chart == "" {
		return err
	}
	f, err := os.Create(chart)
	if err != nil {
		return err
	}
	return errors.Join(sim.WriteSVG(f, points), f.Close())
}

func bans(figures, chart string) error {
	in, err := os.Open(figures)
	if err != nil {
		return err
	}
	defer in.Close()
	var svg bytes.Buffer
	if err := sim.WriteBansSVG(&svg, in); err != nil {
		return err
	}
	return os.WriteFile(chart, svg.Bytes(), 0o644) //nolint:gosec // a chart for everybody
}

// besides is the folder of this program.
func besides() string {
	path, err := os.Executable()
	if err != nil {
		return "bin"
	}
	return filepath.Dir(path)
}
