package lab

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1/operatorv1connect"

	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	"github.com/fleetban/fleetban/scripts/lab/internal/await"
	"github.com/fleetban/fleetban/scripts/lab/internal/node"
)

// The programs of Fleetban, as they are called in the bin folder.
const (
	programAgent        = "fleetban-agent"
	programControlPlane = "fleetban-controlplane"
	programCLI          = "fleetban"
)

// Build says which build of the programs runs.
type Build string

// The build of the options' BinDir, and that of their PreviousDir.
const (
	ThisBuild     Build = ""
	PreviousBuild Build = previousSuffix
)

// previousSuffix ends the names of an earlier build's programs.
const previousSuffix = "-previous"

// URL is where hosts and people reach the control plane.
const URL = "https://" + ControlPlaneName

const (
	secretPath = "/etc/fleetban/secret"
	policyPath = "/etc/fleetban/policy.toml"
	tokenPath  = "/run/lab-join-token"
	// organisation is whose fleet the lab is.
	organisation = "Lab"
)

// apiToken is how the administrator's token looks in what set-up prints.
var apiToken = regexp.MustCompile(`\bfbt_[0-9A-Za-z]+\b`)

// replicaPort is the port of the i-th replica on the control plane's machine, i from 1.
func replicaPort(i int) int { return 8440 + i }

// MetricsPort is where the i-th replica serves its metrics, on the control plane's machine only, i from 1.
func MetricsPort(i int) int { return 9440 + i }

// programs are what a machine finds in /usr/local/bin.
func (l *Lab) programs(n *Node) map[string]string {
	programs := map[string]string{}
	from := func(dir, name, as string) {
		path := filepath.Join(dir, name)
		if abs, err := filepath.Abs(path); err == nil {
			path = abs
		}
		if _, err := os.Stat(path); err == nil {
			programs[as] = path
		}
	}
	add := func(name string) {
		from(l.options.BinDir, name, name)
		if l.options.PreviousDir != "" {
			from(l.options.PreviousDir, name, name+previousSuffix)
		}
	}
	add(programCLI)
	switch n.role {
	case roleHost:
		if slices.Contains(l.enrolled(), n) {
			add(programAgent)
		}
	case roleControlPlane:
		add(programControlPlane)
		add(programToxiproxy)
	default:
	}
	return programs
}

// RedisAddress is where Redis listens, within the control plane's machine.
const RedisAddress = "127.0.0.1:6379"

// startFleetban sets the control plane up, starts its replicas, enrols every host and waits until all are online.
func (l *Lab) startFleetban(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyLimit)
	defer cancel()
	cp := l.Node(ControlPlane)
	printed, err := cp.Exec(ctx, asUser(agentUser, programControlPlane, "setup", "--organisation", organisation, "--mode", l.options.Mode,
		"--redis-url", l.redisURL(), "--secret-file", secretPath, "--data-dir", "/var/lib/fleetban/setup", "--public-url", URL)...)
	if err != nil {
		return fmt.Errorf("set up the control plane: %w", err)
	}
	if l.token = apiToken.FindString(printed); l.token == "" {
		return fmt.Errorf("set-up printed no administrator's token:\n%s", printed)
	}
	for i := range l.options.Replicas {
		if err := cp.Start(ctx, l.replica(i+1, ThisBuild)); err != nil {
			return err
		}
	}
	if err := l.awaitControlPlane(ctx); err != nil {
		return cp.explain(err, ServiceReplica(1))
	}
	if len(l.enrolled()) == 0 {
		return nil
	}
	if err := l.enrol(ctx); err != nil {
		return err
	}
	return l.awaitOnline(ctx, l.enrolled())
}

// replica is a control-plane replica as a service. Its name is new with each start, for streams are fenced by it.
func (l *Lab) replica(i int, build Build) node.Service {
	name, level := ServiceReplica(i), "info"
	if l.options.Debug {
		level = "debug"
	}
	return node.Service{Name: name, User: agentUser, Restart: true, Argv: []string{
		"sh", "-c", `exec "$@" --replica "` + name + `-$$"`, name,
		programControlPlane + string(build), "serve", "--listen", fmt.Sprintf("127.0.0.1:%d", replicaPort(i)), "--public-url", URL,
		"--redis-url", l.redisURL(), "--secret-file", secretPath, "--data-dir", "/var/lib/fleetban/" + name,
		"--tls-cert", "/etc/fleetban/tls.crt", "--tls-key", "/etc/fleetban/tls.key",
		"--metrics-listen", fmt.Sprintf("127.0.0.1:%d", MetricsPort(i)),
	}, Env: []string{"HOME=/var/lib/fleetban", "FLEETBAN_LOG_LEVEL=" + level}}
}

// ServiceLog is where the output of one of the machine's services is, on the surrounding machine.
func (n *Node) ServiceLog(service string) string { return n.Path(node.LogDir + "/" + service + ".log") }

// awaitControlPlane waits until people reach a replica that is ready, through haproxy.
func (l *Lab) awaitControlPlane(ctx context.Context) error {
	return awaitReady(ctx, l.httpClient(""), "the control plane")
}

// AwaitReplica waits until the i-th replica, i from 1, says that it is ready.
func (l *Lab) AwaitReplica(ctx context.Context, i int) error {
	at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(replicaPort(i))) //nolint:gosec // a port
	return awaitReady(ctx, l.httpClientOf(l.Node(ControlPlane), at, ""), ServiceReplica(i))
}

func awaitReady(ctx context.Context, client *http.Client, what string) error {
	defer client.CloseIdleConnections()
	return await.Until(ctx, what+" to be ready", func() error {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, URL+"/readyz", nil)
		if err != nil {
			return err
		}
		response, err := client.Do(request)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return fmt.Errorf("it says %s", response.Status)
		}
		return nil
	})
}

// enrol gives each host's agent an identity and starts its two halves.
func (l *Lab) enrol(ctx context.Context) error {
	hosts := l.enrolled()
	created, err := l.Operator().JoinTokens.CreateJoinToken(ctx, connect.NewRequest(operatorv1.CreateJoinTokenRequest_builder{
		Uses: uint32(len(hosts)), Note: "the lab's hosts",
	}.Build()))
	if err != nil {
		return fmt.Errorf("make a join token: %w", err)
	}
	return parallel(hosts, func(n *Node) error { return l.Enrol(ctx, n, created.Msg.GetSecret()) })
}

// Enrol enrols a host with a join token and starts its agent.
func (l *Lab) Enrol(ctx context.Context, n *Node, joinToken string) error {
	if err := os.WriteFile(n.Path(tokenPath), []byte(joinToken+"\n"), 0o600); err != nil {
		return err
	}
	if _, err := n.Exec(ctx, programAgent, "enroll", "--url", URL, "--token-file", tokenPath); err != nil {
		return fmt.Errorf("enrol %s: %w", n.Name, err)
	}
	if err := os.Remove(n.Path(tokenPath)); err != nil {
		return err
	}
	return n.StartAgent(ctx)
}

// StartAgent starts the agent's two halves on a host.
func (n *Node) StartAgent(ctx context.Context) error {
	for _, service := range agentServices(ThisBuild, n.debug) {
		if err := n.Start(ctx, service); err != nil {
			return err
		}
	}
	return nil
}

// RunReplica replaces the i-th replica, i from 1, by one of a build, as an upgrade does: it drains first.
func (l *Lab) RunReplica(ctx context.Context, i int, build Build) error {
	cp := l.Node(ControlPlane)
	if err := cp.Stop(ctx, ServiceReplica(i), syscall.SIGTERM); err != nil {
		return err
	}
	return cp.Start(ctx, l.replica(i, build))
}

// RunAgent replaces both halves of a host's agent by those of a build.
func (n *Node) RunAgent(ctx context.Context, build Build) error {
	for _, service := range agentServices(build, n.debug) {
		if err := n.Stop(ctx, service.Name, syscall.SIGTERM); err != nil {
			return err
		}
		if err := n.Start(ctx, service); err != nil {
			return err
		}
	}
	return nil
}

// agentServices are the agent's halves as their systemd units run them.
func agentServices(build Build, debug bool) []node.Service {
	program := programAgent + string(build)
	level := "info"
	if debug {
		level = "debug"
	}
	return []node.Service{
		{Name: ServiceHelper, Argv: []string{program, "helper", "--log-level", level}, Restart: true},
		{Name: ServiceAgent, User: agentUser, Argv: []string{program, "run", "--log-level", level}, Restart: true},
	}
}

// AwaitOnline waits until the control plane has every host online.
func (l *Lab) AwaitOnline(ctx context.Context) error { return l.awaitOnline(ctx, l.Hosts()) }

func (l *Lab) awaitOnline(ctx context.Context, hosts []*Node) error {
	operator := l.Operator()
	err := await.Until(ctx, "all hosts to be online", func() error {
		listed, err := operator.Hosts.ListHosts(ctx, connect.NewRequest(&operatorv1.ListHostsRequest{}))
		if err != nil {
			return err
		}
		online, seen := 0, []string{}
		for _, h := range listed.Msg.GetHosts() {
			if h.GetPresence() == operatorv1.Presence_PRESENCE_ONLINE {
				online++
			}
			seen = append(seen, fmt.Sprintf("%s %s %s", h.GetName(), h.GetPresence(), h.GetCause()))
		}
		if online < len(hosts) {
			return fmt.Errorf("%d of %d are: %s", online, len(hosts), strings.Join(seen, ", "))
		}
		return nil
	})
	if err != nil {
		return errors.Join(hosts[0].explain(err, ServiceAgent), hosts[0].explain(errors.New("the helper's output"), ServiceHelper))
	}
	return nil
}

// asUser prefixes a command so that it runs as another user of the machine.
func asUser(user string, argv ...string) []string {
	return append([]string{"setpriv", "--reuid", user, "--regid", user, "--clear-groups", "--"}, argv...)
}

// OperatorEnv is the environment the operator's CLI needs. It holds the administrator's token.
func (l *Lab) OperatorEnv() []string {
	if l.token == "" {
		return nil
	}
	return []string{"FLEETBAN_URL=" + URL, "FLEETBAN_TOKEN=" + l.token}
}

// CLI runs the operator's CLI on the admin's machine and returns its standard output.
func (l *Lab) CLI(ctx context.Context, args ...string) (string, error) {
	return l.Node(Admin).ExecEnv(ctx, l.OperatorEnv(), append([]string{programCLI}, args...)...)
}

// Operator is the operator's API as the administrator reaches it.
type Operator struct {
	Bans       operatorv1connect.BanServiceClient
	Allowlist  operatorv1connect.AllowlistServiceClient
	Fleet      operatorv1connect.FleetServiceClient
	Hosts      operatorv1connect.HostServiceClient
	JoinTokens operatorv1connect.JoinTokenServiceClient
}

// Operator returns the operator's API, called from the admin's machine with the administrator's token.
func (l *Lab) Operator() *Operator { return l.OperatorWith(l.token) }

// OperatorWith is Operator with another token.
func (l *Lab) OperatorWith(token string) *Operator {
	client := l.httpClient(token)
	return &Operator{
		Bans:       operatorv1connect.NewBanServiceClient(client, URL),
		Allowlist:  operatorv1connect.NewAllowlistServiceClient(client, URL),
		Fleet:      operatorv1connect.NewFleetServiceClient(client, URL),
		Hosts:      operatorv1connect.NewHostServiceClient(client, URL),
		JoinTokens: operatorv1connect.NewJoinTokenServiceClient(client, URL),
	}
}
