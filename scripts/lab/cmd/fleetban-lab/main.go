// Command fleetban-lab makes hosts in network namespaces, to try Fleetban on and to test it with.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/fleetban/fleetban/scripts/lab/internal/bench"
	"github.com/fleetban/fleetban/scripts/lab/internal/chaos"
	"github.com/fleetban/fleetban/scripts/lab/internal/demo"
	"github.com/fleetban/fleetban/scripts/lab/internal/lab"
	"github.com/fleetban/fleetban/scripts/lab/internal/node"
)

const usage = `fleetban-lab makes hosts in network namespaces: real sshd, fail2ban, nftables; it needs root.

  fleetban-lab up      make a lab: hosts a, b, c, a control plane, an attacker, an admin's machine
  fleetban-lab status  list labs, machines and services
  fleetban-lab exec HOST [-- COMMAND…]   run a command on a machine of the lab; a shell without one
  fleetban-lab attack HOST               try SSH passwords on a host until its fail2ban bans the attacker
  fleetban-lab agent HOST                start the agent that was installed on a host, for there is no systemd
  fleetban-lab owner   give the lab's organisation an owner, who can sign in to the console: -email, -password
  fleetban-lab console have a browser on this machine reach the lab's console
  fleetban-lab down    take a lab down; leaves nothing, also of one that crashed
  fleetban-lab demo    watch a ban on one host be enforced on all
  fleetban-lab chaos   break a fleet for some rounds while bans are made, and check that nothing was lost
  fleetban-lab bench   measure one ban's way from host to host, and what the processes weigh

Flags come after the verb; -h after a verb lists them.
`

func main() {
	node.Main()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	interrupted := ctx.Err() != nil
	stop()
	var exit *exec.ExitError
	switch {
	case err == nil:
	case interrupted:
		fmt.Fprintln(os.Stderr, "fleetban-lab: interrupted")
		os.Exit(1)
	case errors.Is(err, flag.ErrHelp):
		os.Exit(2)
	case errors.As(err, &exit):
		os.Exit(max(1, exit.ExitCode()))
	default:
		fmt.Fprintln(os.Stderr, "fleetban-lab:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		fmt.Fprint(os.Stderr, usage)
		return flag.ErrHelp
	}
	verbs := map[string]func(context.Context, []string) error{
		"up": up, "down": down, "status": status, "exec": execute, "attack": attack, "demo": show, "bench": measure,
		"chaos": breakIt, "agent": startAgent, "owner": owner, "console": console,
	}
	verb, ok := verbs[args[0]]
	if !ok {
		fmt.Fprint(os.Stderr, usage)
		if args[0] == "help" || args[0] == "-h" || args[0] == "--help" {
			return flag.ErrHelp
		}
		return fmt.Errorf("there is no verb %q", args[0])
	}
	return verb(ctx, args[1:])
}

func flags(verb string) (*flag.FlagSet, *string) {
	set := flag.NewFlagSet("fleetban-lab "+verb, flag.ContinueOnError)
	return set, set.String("name", "lab", "the lab's `name`: labs of different names can be up at once")
}

func up(ctx context.Context, args []string) error {
	set, name := flags("up")
	hosts := set.Int("hosts", 3, "how many hosts there are")
	replicas := set.Int("replicas", 2, "how many control-plane replicas there are")
	bare := set.Bool("bare", false, "without Fleetban: hosts, Redis and haproxy only")
	newcomers := set.Int("newcomers", 0, "how many of the hosts, the last ones, have no agent yet")
	box := set.Bool("box", true, "put a container-like machine behind the last host")
	action := set.String("action", "nftables", "fail2ban's action: nftables or iptables")
	if err := set.Parse(args); err != nil {
		return flag.ErrHelp
	}
	options := lab.Options{Name: *name, Hosts: *hosts, Newcomers: *newcomers, Replicas: *replicas, Box: *box, Fleetban: !*bare, Fail2ban: map[string]lab.Fail2ban{}}
	for i := range *hosts {
		options.Fail2ban[string(rune('a'+i))] = lab.Fail2ban{Action: *action}
	}
	begin := time.Now()
	l, err := lab.Up(ctx, options)
	if err != nil {
		return err
	}
	fmt.Printf("Lab %q is up after %s.\n\n", *name, time.Since(begin).Round(100*time.Millisecond))
	return describe(ctx, os.Stdout, l)
}

func down(ctx context.Context, args []string) error {
	set, name := flags("down")
	all := set.Bool("all", false, "take down every lab of this machine")
	if err := set.Parse(args); err != nil {
		return flag.ErrHelp
	}
	if !*all {
		return lab.Down(ctx, *name)
	}
	labs, err := lab.List()
	if err != nil {
		return err
	}
	var errs []error
	for _, l := range labs {
		errs = append(errs, lab.Down(ctx, l.Name))
	}
	return errors.Join(errs...)
}

func owner(ctx context.Context, args []string) error {
	set, name := flags("owner")
	email := set.String("email", "", "the owner's e-mail address")
	password := set.String("password", "", "their password")
	if err := set.Parse(args); err != nil {
		return flag.ErrHelp
	}
	l, err := lab.Open(*name)
	if err != nil {
		return err
	}
	return l.MakeOwner(ctx, *email, *password)
}

func console(ctx context.Context, args []string) error {
	set, name := flags("console")
	listen := set.String("listen", "localhost:8444", "where browsers find it")
	if err := set.Parse(args); err != nil {
		return flag.ErrHelp
	}
	l, err := lab.Open(*name)
	if err != nil {
		return err
	}
	at, wait, err := l.Console(ctx, *listen)
	if err != nil {
		return err
	}
	fmt.Printf("The console is at https://localhost:%d until you interrupt this. `fleetban-lab owner` makes somebody who can sign in.\n", at.Port())
	wait()
	return nil
}

func status(ctx context.Context, args []string) error {
	set, name := flags("status")
	if err := set.Parse(args); err != nil {
		return flag.ErrHelp
	}
	labs, err := lab.List()
	if err != nil {
		return err
	}
	if len(labs) == 0 {
		fmt.Println("No lab is up.")
		return nil
	}
	for _, s := range labs {
		if len(s.Machines) == 0 {
			fmt.Printf("Lab %q has died; `fleetban-lab down --name %s` clears it away.\n", s.Name, s.Name)
			continue
		}
		fmt.Printf("Lab %q is up with %d machines in %s.\n", s.Name, len(s.Machines), s.Dir)
		if s.Name != *name {
			continue
		}
		l, err := lab.Open(s.Name)
		if err != nil {
			return err
		}
		if err := describe(ctx, os.Stdout, l); err != nil {
			return err
		}
	}
	return nil
}

// describe prints a lab's machines and what runs on them.
func describe(ctx context.Context, w io.Writer, l *lab.Lab) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "MACHINE\tADDRESS\tIPV6\tRUNS")
	for _, n := range l.Nodes() {
		services, err := n.Services(ctx)
		if err != nil {
			fmt.Fprintf(table, "%s\t\t\t%v\n", n.Name, err)
			continue
		}
		runs := ""
		for _, s := range services {
			runs += s.Name
			switch {
			case s.PID == 0:
				runs += " (down: " + s.LastExit + ")"
			case s.Starts > 1:
				runs += fmt.Sprintf(" (started %d times)", s.Starts)
			}
			runs += " "
		}
		addr, addr6 := "", ""
		if n.Addr.IsValid() {
			addr, addr6 = n.Addr.String(), n.Addr6.String()
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", n.Name, addr, addr6, runs)
	}
	return table.Flush()
}

func execute(ctx context.Context, args []string) error {
	set, name := flags("exec")
	if err := set.Parse(args); err != nil {
		return flag.ErrHelp
	}
	rest := set.Args()
	if len(rest) == 0 {
		return errors.New("exec needs the name of a machine: fleetban-lab exec a -- COMMAND")
	}
	machine := rest[0]
	// Flags may stand behind the machine's name too, up to the "--".
	if err := set.Parse(rest[1:]); err != nil {
		return flag.ErrHelp
	}
	argv := set.Args()
	l, err := lab.Open(*name)
	if err != nil {
		return err
	}
	n, err := l.Lookup(machine)
	if err != nil {
		return err
	}
	if len(argv) == 0 {
		argv = []string{"/bin/bash", "--norc"}
	}
	cmd := n.Interactive(ctx, l, argv...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd.Run()
}

func attack(ctx context.Context, args []string) error {
	set, name := flags("attack")
	source := set.Int("source", -1, "come from the `n`-th other address, 0 to 199")
	if err := set.Parse(args); err != nil {
		return flag.ErrHelp
	}
	if set.NArg() != 1 {
		return errors.New("attack needs the name of a host")
	}
	l, err := lab.Open(*name)
	if err != nil {
		return err
	}
	host, err := l.Lookup(set.Arg(0))
	if err != nil {
		return err
	}
	from := lab.AttackerAddr
	if *source >= 0 {
		from = lab.SourceAddr(*source)
	}
	ban, err := l.Attack(ctx, host, from)
	if err != nil {
		return err
	}
	fmt.Printf("fail2ban on %s banned %s after %d passwords, %s after the first.\n", host.Name, ban.Addr, ban.Attempts, ban.Took.Round(time.Millisecond))
	return nil
}

func startAgent(ctx context.Context, args []string) error {
	set, name := flags("agent")
	if err := set.Parse(args); err != nil {
		return flag.ErrHelp
	}
	if set.NArg() != 1 {
		return errors.New("agent needs the name of a host")
	}
	l, err := lab.Open(*name)
	if err != nil {
		return err
	}
	host, err := l.Lookup(set.Arg(0))
	if err != nil {
		return err
	}
	return host.StartAgent(ctx)
}

func show(ctx context.Context, args []string) error {
	set, name := flags("demo")
	keep := set.Bool("keep", false, "leave the lab up afterwards")
	if err := set.Parse(args); err != nil {
		return flag.ErrHelp
	}
	return demo.Run(ctx, demo.Options{Lab: lab.Options{Name: *name}, Keep: *keep, Out: os.Stdout, In: os.Stdin})
}

func measure(ctx context.Context, args []string) error {
	set, name := flags("bench")
	bans := set.Int("bans", 200, "how many bans are measured, at most 200")
	hosts := set.Int("hosts", 5, "how many hosts there are; fewer take longer, for each has 30 bans promoted, and then one every 2 s")
	idle := set.Duration("idle", 10*time.Second, "for how long the processes are watched at rest")
	if err := set.Parse(args); err != nil {
		return flag.ErrHelp
	}
	return bench.Run(ctx, bench.Options{Lab: lab.Options{Name: *name, Hosts: *hosts}, Bans: *bans, Idle: *idle, Out: os.Stdout})
}

func breakIt(ctx context.Context, args []string) error {
	set, name := flags("chaos")
	hosts := set.Int("hosts", 3, "how many hosts there are")
	replicas := set.Int("replicas", 2, "how many control-plane replicas there are")
	seed := set.Uint64("seed", 1, "decides, with a round's number, what goes wrong in it and when")
	rounds := set.Int("rounds", 20, "how many rounds there are, some seconds each")
	first := set.Int("first", 0, "the number of the first round, to play one again")
	keep := set.String("keep", "", "the `folder` where the machines' logs go when a round doesn't hold; the screen has only their ends")
	if err := set.Parse(args); err != nil {
		return flag.ErrHelp
	}
	_, err := chaos.Run(ctx, chaos.Options{
		Lab: lab.Options{Name: *name, Hosts: *hosts, Replicas: *replicas}, Seed: *seed, First: *first, Rounds: *rounds, Keep: *keep, Out: os.Stdout,
	})
	return err
}
