// Package hostcli is what people on a host type and read: the verbs of fleetban-agent.
package hostcli

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/fleetban/fleetban/agent/internal/policy"
	"github.com/fleetban/fleetban/agent/internal/version"
)

// Exit codes.
const (
	exitOK      = 0
	exitProblem = 1 // something is wrong, or the verb failed
	exitUsage   = 2 // the command line can't be understood
)

// Where things are unless --state-dir says otherwise.
const (
	defaultAgentDir     = "/var/lib/fleetban-agent"
	defaultHelperDir    = "/var/lib/fleetban-helper"
	defaultHelperSocket = "/run/fleetban-helper/helper.sock"
	defaultRunSocket    = "/run/fleetban-agent/run.sock"
	defaultUser         = "fleetban"
)

// verb is one command.
type verb struct {
	name, args, short string
	run               func(*cli, context.Context, []string) error
}

func verbs() []verb {
	return []verb{
		{"enroll", "--url URL [--token-file FILE]", "make this host a member of a fleet", (*cli).enroll},
		{"rotate-key", "", "give this host a new key, at once; the former one is refused from then on", (*cli).rotateKey},
		{"run", "[--rotate-key-every 30d]", "the unprivileged half: the stream to the control plane (a service)", (*cli).runAgent},
		{"helper", "", "the root half: fail2ban and nftables (a service)", (*cli).runHelper},
		{"status", "[-o json]", "how this host and its connection are", (*cli).status},
		{"doctor", "", "what is wrong and what mends it; ends with 1 if something must be mended", (*cli).doctor},
		{"off", "[--for 1h]", "stop enforcing on this host, at once, with or without the control plane", (*cli).off},
		{"on", "", "enforce again", (*cli).on},
		{"allow", "ADDRESS… [--for 1h] [--remove]", "never ban an address or prefix on this host", (*cli).allow},
		{"uninstall", "[--yes]", "remove the agent and all it made; fail2ban stays as it was", (*cli).uninstall},
		{"version", "", "print the version", (*cli).version},
	}
}

// cli is one invocation.
type cli struct {
	in       *os.File
	out, err io.Writer
	colour   bool
	flags    *flag.FlagSet
	opts     options
}

// options are the flags that several verbs have.
type options struct {
	stateDir, helperSocket, socket, runUser     string
	fail2banSocket, fail2banConfigDir, policy   string
	table, output, logLevel                     string
	agentDir, helperDir                         string
	url, tokenFile, name, pin, caFile, duration string
	rotateEvery                                 string
	force, remove, yes                          bool
}

// usageError is a command line that can't be understood.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

// errProblem ends with exitProblem and says no more: all was said.
var errProblem = errors.New("")

// Main runs a command line (without the program's name) and returns the exit code.
func Main(args []string, in *os.File, out, errOut *os.File) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	c := &cli{in: in, out: plain{out}, err: plain{errOut}, colour: isTerminal(out) && os.Getenv("NO_COLOR") == ""}
	err := c.dispatch(ctx, args)
	var usage *usageError
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return exitOK
	case errors.As(err, &usage):
		fmt.Fprintf(c.err, "fleetban-agent: %s\nSee fleetban-agent --help.\n", usage.text) //nolint:errcheck // nobody to tell
		return exitUsage
	case errors.Is(err, errProblem):
		return exitProblem
	default:
		fmt.Fprintf(c.err, "fleetban-agent: %v\n", err) //nolint:errcheck // nobody to tell
		return exitProblem
	}
}

func (c *cli) dispatch(ctx context.Context, args []string) error {
	if len(args) == 0 {
		c.help()
		return &usageError{"no command was given"}
	}
	switch args[0] {
	case "-h", "-help", "--help", "help":
		c.help()
		return nil
	case "-version", "--version":
		return c.version(ctx, nil)
	}
	for _, v := range verbs() {
		if v.name != args[0] {
			continue
		}
		rest, err := c.parse(v, args[1:])
		if err != nil {
			return err
		}
		return v.run(c, ctx, rest)
	}
	return &usageError{fmt.Sprintf("there is no command %.40q", args[0])}
}

// parse reads the flags of a verb; they may stand before, between and behind its arguments.
func (c *cli) parse(v verb, args []string) ([]string, error) {
	f := flag.NewFlagSet(v.name, flag.ContinueOnError)
	f.SetOutput(io.Discard)
	c.flags = f
	o := &c.opts
	f.StringVar(&o.stateDir, "state-dir", "", "a `DIR` for everything of this agent, so that several can run on one machine: DIR/agent, DIR/helper, DIR/run")
	f.StringVar(&o.helperSocket, "socket", "", "the helper's `SOCKET` (default "+defaultHelperSocket+")")
	f.StringVar(&o.runUser, "run-user", defaultUser, "the `USER` that run runs as")
	f.StringVar(&o.fail2banSocket, "fail2ban-socket", "/var/run/fail2ban/fail2ban.sock", "fail2ban's `SOCKET`")
	f.StringVar(&o.fail2banConfigDir, "fail2ban-config-dir", "/etc/fail2ban", "the `DIR` of fail2ban's configuration")
	f.StringVar(&o.policy, "policy", policy.DefaultPath, "the host's policy `FILE`")
	f.StringVar(&o.table, "table", "fleetban", "the `NAME` of the nftables table")
	f.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
	switch v.name {
	case "enroll":
		f.StringVar(&o.url, "url", os.Getenv("FLEETBAN_URL"), "the control plane's `URL`; also FLEETBAN_URL")
		f.StringVar(&o.tokenFile, "token-file", "", "a `FILE` with the join token; - is standard input. Else FLEETBAN_JOIN_TOKEN, else you are asked")
		f.StringVar(&o.name, "name", "", "the `NAME` people see (default: the host name)")
		f.StringVar(&o.pin, "pin", "", "trust this key of the control plane only, as sha256//`BASE64` of its public key (curl's --pinnedpubkey)")
		f.StringVar(&o.caFile, "ca-file", "", "trust the certificate authorities in this PEM `FILE` only")
		f.BoolVar(&o.force, "force", false, "enrol anew, with a new key, although the host is enrolled")
	case "run":
		f.StringVar(&o.rotateEvery, "rotate-key-every", "30d", "change the host's key when it is so `OLD` (90s, 30m, 1h, 7d); 0 never does")
	case "status", "doctor":
		f.StringVar(&o.output, "o", "text", "text or json")
	case "off":
		f.StringVar(&o.duration, "for", "", "for this `TIME` (90s, 30m, 1h, 7d); without it until fleetban-agent on")
	case "allow":
		f.StringVar(&o.duration, "for", "", "for this `TIME` (90s, 30m, 1h, 7d); without it for good")
		f.BoolVar(&o.remove, "remove", false, "take the exemption back")
	case "uninstall":
		f.BoolVar(&o.yes, "yes", false, "don't ask")
	}
	var rest []string
	for {
		if err := f.Parse(args); err != nil {
			if errors.Is(err, flag.ErrHelp) {
				c.helpVerb(v)
				return nil, err
			}
			return nil, &usageError{v.name + ": " + err.Error()}
		}
		if f.NArg() == 0 {
			break
		}
		rest = append(rest, f.Arg(0))
		args = f.Args()[1:]
	}
	if v.name != "allow" && len(rest) > 0 {
		return nil, &usageError{fmt.Sprintf("%s takes no argument %.40q", v.name, rest[0])}
	}
	if o.output != "" && o.output != "text" && o.output != "json" {
		return nil, &usageError{fmt.Sprintf("-o %.20q: it is text or json", o.output)}
	}
	o.places()
	return rest, nil
}

// places settles where everything is.
func (o *options) places() {
	o.agentDir, o.helperDir, o.socket = defaultAgentDir, defaultHelperDir, defaultRunSocket
	helperSocket := defaultHelperSocket
	if o.stateDir != "" {
		o.agentDir, o.helperDir = filepath.Join(o.stateDir, "agent"), filepath.Join(o.stateDir, "helper")
		helperSocket, o.socket = filepath.Join(o.stateDir, "run", "helper.sock"), filepath.Join(o.stateDir, "run", "agent", "run.sock")
	}
	if o.helperSocket == "" {
		o.helperSocket = helperSocket
	}
}

func (c *cli) help() {
	fmt.Fprint(c.out, "fleetban-agent joins this host's fail2ban to a fleet.\n\nUsage: fleetban-agent COMMAND [FLAGS]\n\n") //nolint:errcheck // nobody to tell
	for _, v := range verbs() {
		fmt.Fprintf(c.out, "  %-10s %s\n", v.name, v.short) //nolint:errcheck // nobody to tell
	}
	fmt.Fprint(c.out, "\nfleetban-agent COMMAND --help tells a command's flags. Exit codes: 0 all is well, 1 something is wrong, 2 the command line is.\n") //nolint:errcheck // nobody to tell
}

func (c *cli) helpVerb(v verb) {
	fmt.Fprintf(c.out, "Usage: fleetban-agent %s %s\n\n%s.\n\n", v.name, v.args, strings.ToUpper(v.short[:1])+v.short[1:]) //nolint:errcheck // nobody to tell
	c.flags.VisitAll(func(f *flag.Flag) {
		name, usage := flag.UnquoteUsage(f)
		dash := "--"
		if len(f.Name) == 1 {
			dash = "-"
		}
		def := ""
		if f.DefValue != "" && f.DefValue != "false" && !strings.Contains(usage, "(default") {
			def = " (default " + f.DefValue + ")"
		}
		fmt.Fprintf(c.out, "  %s%s %s\n        %s%s\n", dash, f.Name, name, usage, def) //nolint:errcheck // nobody to tell
	})
}

func (c *cli) version(context.Context, []string) error {
	_, err := fmt.Fprintln(c.out, "fleetban-agent", version.Version)
	return err
}

// logger writes for the journal, which adds the time itself, or with the time elsewhere.
func (c *cli) logger() (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.opts.logLevel)); err != nil {
		return nil, &usageError{"--log-level is debug, info, warn or error"}
	}
	o := &slog.HandlerOptions{Level: level}
	if os.Getenv("JOURNAL_STREAM") != "" {
		o.ReplaceAttr = func(groups []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey && len(groups) == 0 {
				return slog.Attr{}
			}
			return a
		}
	}
	return slog.New(slog.NewTextHandler(c.err, o)), nil
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS) //nolint:gosec // a descriptor fits
	return err == nil
}
