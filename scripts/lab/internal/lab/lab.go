package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/fleetban/fleetban/scripts/lab/internal/await"
	"github.com/fleetban/fleetban/scripts/lab/internal/node"
)

// Options say what a lab is made of. The zero value of each field is the default that stands at it.
type Options struct {
	// Name tells labs apart: lower-case letters, digits and dashes, at most 32. "lab".
	Name string
	// Hosts is how many hosts there are, 1 to 26. 3.
	Hosts int
	// Replicas is how many control-plane replicas there are. 2.
	Replicas int
	// Box puts a container-like machine behind the last host.
	Box bool
	// Fail2ban says how a host's fail2ban is set up, by the host's name; hosts it doesn't name get the default.
	Fail2ban map[string]Fail2ban
	// Fleetban starts the control plane and an agent on each host, enrolled and connected. Else the lab has hosts,
	// Redis and haproxy only.
	Fleetban bool
	// Bare leaves the hosts without an agent: its program, user and folders are the installer's to bring.
	Bare bool
	// Newcomers is how many hosts, the last ones, are left so while the others are enrolled.
	Newcomers int
	// Mode is the organisation's promotion mode: enforce or watch. enforce.
	Mode string
	// Policy is the agents' /etc/fleetban/policy.toml; empty leaves the agent's defaults.
	Policy string
	// BinDir is where the Fleetban programs are. FLEETBAN_BIN, or the repository's bin folder.
	BinDir string
	// PreviousDir is where programs of an earlier build are, for RunReplica and RunAgent; empty: there is none.
	PreviousDir string
	// Proxied puts toxiproxy before Redis and before each replica, for Proxy to make those ways slow or cut them.
	Proxied bool
	// Sentinels has two Redis servers, the second a replica of the first, and three Sentinels. No proxy is before those.
	Sentinels bool
	// SettableClock lets SetRedisClock step Redis' clock.
	SettableClock bool
	// SmallDisks gives either half of each agent a file system of 4 MiB for what it keeps, in memory: one that can be filled.
	SmallDisks bool
	// Debug has agents and replicas log at level debug.
	Debug bool
	// Leased labs end with the process that made them, however it ends. Else a lab stands until Down.
	Leased bool
}

func (o Options) withDefaults() (Options, error) {
	if o.Name == "" {
		o.Name = "lab"
	}
	if err := checkName(o.Name); err != nil {
		return o, err
	}
	if o.Hosts == 0 {
		o.Hosts = 3
	}
	if o.Hosts < 1 || o.Hosts > maxHosts {
		return o, fmt.Errorf("a lab has 1 to %d hosts, not %d", maxHosts, o.Hosts)
	}
	if o.Newcomers < 0 || o.Newcomers > o.Hosts {
		return o, fmt.Errorf("of %d hosts %d can't be newcomers", o.Hosts, o.Newcomers)
	}
	if o.Bare {
		o.Newcomers = o.Hosts
	}
	if o.Replicas == 0 {
		o.Replicas = 2
	}
	if o.Mode == "" {
		o.Mode = "enforce"
	}
	if o.BinDir == "" {
		dir, err := repositoryBin()
		if err != nil {
			return o, err
		}
		o.BinDir = dir
	}
	return o, nil
}

var nameRule = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`)

func checkName(name string) error {
	if !nameRule.MatchString(name) {
		return fmt.Errorf("%q is no name for a lab: use lower-case letters, digits and dashes, at most 32", name)
	}
	return nil
}

// Lab is a lab that is up.
type Lab struct {
	options Options
	dir     string
	nodes   []*Node
	token   string
	lease   *os.File

	// What the machines are made from; of a lab that was opened, only the authority is known.
	pki       pki
	hostKey   string
	sshdExtra string
}

// Node is one machine of a lab.
type Node struct {
	Name string
	// Addr and Addr6 are where others reach it; not valid for the switch.
	Addr, Addr6 netip.Addr
	// PID is its first process, in the PID namespace of who made the lab.
	PID int

	role     role
	dir      string
	fail2ban Fail2ban
	debug    bool
	cmd      *exec.Cmd
}

type role string

const (
	roleSwitch       role = "switch"
	roleHost         role = "host"
	roleControlPlane role = "controlplane"
	roleAttacker     role = "attacker"
	roleAdmin        role = "admin"
	roleBox          role = "box"
)

// saved is what Open needs to know, kept in the lab's folder.
type saved struct {
	Options   Options
	Token     string
	Authority string
	Nodes     []savedNode
}

type savedNode struct {
	Name        string
	Role        role
	PID         int
	NetNS       string
	Addr, Addr6 netip.Addr
	Fail2ban    Fail2ban
}

const (
	savedName = "lab.json"
	// readyLimit is how long a machine's programs may take to come up, on a busy machine.
	readyLimit = 60 * time.Second
)

// BaseDir is the folder that all labs of this machine are beneath: FLEETBAN_LAB_DIR or /var/tmp/fleetban-lab. It should
// be on a real disk, for the databases and spools of the machines are kept there.
func BaseDir() string {
	if dir := os.Getenv("FLEETBAN_LAB_DIR"); dir != "" {
		return dir
	}
	return "/var/tmp/fleetban-lab"
}

// ErrUp is returned by Up when a lab of that name is up.
var ErrUp = errors.New("a lab of this name is up")

// Up makes a lab and returns when everything in it answers. A lab of that name that has died is cleared away first.
// When it fails, it leaves nothing behind.
func Up(ctx context.Context, options Options) (_ *Lab, err error) {
	options, err = options.withDefaults()
	if err != nil {
		return nil, err
	}
	if err := checkMachine(options); err != nil {
		return nil, err
	}
	l := &Lab{options: options, dir: filepath.Join(BaseDir(), options.Name)}
	unlock, err := lockBase()
	if err != nil {
		return nil, err
	}
	err = l.claimDir(ctx)
	unlock()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Down(context.WithoutCancel(ctx)))
		}
	}()
	if l.pki, err = newPKI(); err != nil {
		return nil, err
	}
	if err := l.prepareSSH(ctx); err != nil {
		return nil, err
	}
	if err := l.buildClock(ctx); err != nil {
		return nil, err
	}
	l.plan()
	if err := l.spawn(ctx); err != nil {
		return nil, err
	}
	if err := l.save(); err != nil {
		return nil, err
	}
	if err := l.connect(ctx); err != nil {
		return nil, err
	}
	if err := l.startServices(ctx); err != nil {
		return nil, err
	}
	if options.Fleetban {
		if err := l.startFleetban(ctx); err != nil {
			return nil, err
		}
		if err := l.save(); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// claimDir makes the lab's folder, having cleared a dead lab from it. The base folder is locked.
func (l *Lab) claimDir(ctx context.Context) error {
	if _, err := os.Stat(l.dir); err == nil {
		if pids := nodePIDs(l.dir); len(pids) > 0 {
			return fmt.Errorf("%w: %q; take it down with `fleetban-lab down --name %s` or choose another name", ErrUp, l.options.Name, l.options.Name)
		}
		if err := clear(ctx, l.dir); err != nil {
			return err
		}
	}
	return os.Mkdir(l.dir, 0o755)
}

// plan lays out the machines. The switch is first, for the links begin in it.
func (l *Lab) plan() {
	add := func(name string, r role, addr, addr6 netip.Addr) {
		l.nodes = append(l.nodes, &Node{
			Name: name, Addr: addr, Addr6: addr6, role: r, dir: filepath.Join(l.dir, name), fail2ban: l.options.Fail2ban[name],
			debug: l.options.Debug,
		})
	}
	add(Switch, roleSwitch, netip.Addr{}, netip.Addr{})
	for i := range l.options.Hosts {
		add(hostName(i), roleHost, hostAddr(i), hostAddr6(i))
	}
	add(ControlPlane, roleControlPlane, controlPlaneAddr, controlPlaneAddr6)
	add(Attacker, roleAttacker, AttackerAddr, AttackerAddr6)
	add(Admin, roleAdmin, AdminAddr, AdminAddr6)
	if l.options.Box {
		add(Box, roleBox, netip.MustParseAddr("10.88.0.2"), netip.MustParseAddr("fd88::2"))
	}
}

// spawn starts each machine's first process and waits until all have built their root.
func (l *Lab) spawn(ctx context.Context) error {
	var lease *os.File
	if l.options.Leased {
		read, write, err := os.Pipe()
		if err != nil {
			return err
		}
		defer read.Close()
		l.lease, lease = write, read
	}
	return parallel(l.nodes, func(n *Node) error {
		if err := os.MkdirAll(n.dir, 0o755); err != nil {
			return err
		}
		if err := node.WriteConfig(n.dir, l.config(n)); err != nil {
			return err
		}
		return n.spawn(ctx, lease)
	})
}

// connect wires the machines and gives them their addresses.
func (l *Lab) connect(ctx context.Context) error {
	// The machines are known by PIDs of this PID namespace, so it is not the switch's own process that makes the links.
	cmd := exec.CommandContext(ctx, "nsenter", "-t", strconv.Itoa(l.nodes[0].PID), "-n", "--", "ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(l.wiring())
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("connect the machines: %w: %s", err, output)
	}
	return parallel(l.nodes, func(n *Node) error { return l.configureNetwork(ctx, n) })
}

func (l *Lab) configureNetwork(ctx context.Context, n *Node) error {
	request := node.Request{Op: node.OpNetwork, IPBatch: l.addressing(n)}
	if l.options.Box && n == l.boxHost() {
		request.Nft = forwarding
	}
	if _, err := n.request(ctx, request); err != nil {
		return fmt.Errorf("configure the network of %s: %w", n.Name, err)
	}
	return nil
}

func (l *Lab) startServices(ctx context.Context) error {
	return parallel(l.nodes, func(n *Node) error {
		for _, s := range l.services(n) {
			if err := n.Start(ctx, s); err != nil {
				return err
			}
		}
		return l.ready(ctx, n)
	})
}

// ready waits until what a machine serves can be used.
func (l *Lab) ready(ctx context.Context, n *Node) error {
	ctx, cancel := context.WithTimeout(ctx, readyLimit)
	defer cancel()
	listens := func(what string, port int) error {
		err := await.Until(ctx, fmt.Sprintf("%s on %s", what, n.Name), func() error {
			conn, err := n.Dial(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port), netip.Addr{})
			if err != nil {
				return err
			}
			return conn.Close()
		})
		return n.explain(err, what)
	}
	switch n.role {
	case roleHost:
		if err := listens(ServiceSSHD, SSHPort); err != nil {
			return err
		}
		if err := listens(ServiceWeb, HTTPPort); err != nil {
			return err
		}
		return n.AwaitFail2ban(ctx)
	case roleBox:
		return listens(ServiceWeb, HTTPPort)
	case roleControlPlane:
		if err := listens(ServiceRedis, redisPort); err != nil {
			return err
		}
		if err := l.sentinelsAgree(ctx); err != nil {
			return err
		}
		return listens(ServiceHAProxy, 443)
	default:
		return nil
	}
}

// Open finds a lab that is up.
func Open(name string) (*Lab, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	dir := filepath.Join(BaseDir(), name)
	content, err := os.ReadFile(filepath.Join(dir, savedName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("no lab %q is up: make one with `fleetban-lab up --name %s`", name, name)
	}
	if err != nil {
		return nil, err
	}
	var s saved
	if err := json.Unmarshal(content, &s); err != nil {
		return nil, fmt.Errorf("read what is known of lab %q: %w", name, err)
	}
	l := &Lab{options: s.Options, dir: dir, token: s.Token, pki: pki{authority: s.Authority}}
	for _, n := range s.Nodes {
		l.nodes = append(l.nodes, &Node{
			Name: n.Name, Addr: n.Addr, Addr6: n.Addr6, PID: n.PID, role: n.Role, dir: filepath.Join(dir, n.Name), fail2ban: n.Fail2ban, debug: s.Options.Debug,
		})
	}
	return l, nil
}

func (l *Lab) save() error {
	s := saved{Options: l.options, Token: l.token, Authority: l.pki.authority}
	for _, n := range l.nodes {
		netns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", n.PID))
		if err != nil {
			return err
		}
		s.Nodes = append(s.Nodes, savedNode{n.Name, n.role, n.PID, netns, n.Addr, n.Addr6, n.fail2ban})
	}
	content, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(l.dir, savedName), content, 0o600)
}

// Node returns a machine by name; it panics if the lab has none of that name, for names are written in code.
func (l *Lab) Node(name string) *Node {
	n, err := l.Lookup(name)
	if err != nil {
		panic(err)
	}
	return n
}

// Lookup returns a machine by name.
func (l *Lab) Lookup(name string) (*Node, error) {
	for _, n := range l.nodes {
		if n.Name == name {
			return n, nil
		}
	}
	names := ""
	for _, n := range l.nodes {
		names += " " + n.Name
	}
	return nil, fmt.Errorf("lab %q has no machine %q, it has:%s", l.options.Name, name, names)
}

// Nodes returns all machines.
func (l *Lab) Nodes() []*Node { return l.nodes }

// Hosts returns the machines that run fail2ban.
func (l *Lab) Hosts() (hosts []*Node) {
	for _, n := range l.nodes {
		if n.role == roleHost {
			hosts = append(hosts, n)
		}
	}
	return hosts
}

// enrolled are the hosts that have an agent from the beginning.
func (l *Lab) enrolled() []*Node {
	hosts := l.Hosts()
	return hosts[:len(hosts)-l.options.Newcomers]
}

// Name is the lab's name.
func (l *Lab) Name() string { return l.options.Name }

// Replicas is how many control-plane replicas there are.
func (l *Lab) Replicas() int { return l.options.Replicas }

// BinDir is where the Fleetban programs are.
func (l *Lab) BinDir() string { return l.options.BinDir }

// Dir is the lab's folder.
func (l *Lab) Dir() string { return l.dir }

func (l *Lab) boxHost() *Node {
	hosts := l.Hosts()
	return hosts[len(hosts)-1]
}
