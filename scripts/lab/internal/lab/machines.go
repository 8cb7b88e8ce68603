package lab

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/fleetban/fleetban/scripts/lab/internal/node"
)

// SSHUser is the account on every host that is attacked, and Password what opens it.
const (
	SSHUser  = "alice"
	Password = "lab-only-correct-horse"
	// passwordHash is crypt(5) of Password.
	passwordHash = "$6$fleetbanlab$PVLCpervKsFCpEBFDIFJL5EwDzdUL7pHGLjD9JxuCEtwj2KEEBq1tGnaGsgro1I7.HnNWFCkT1Lp3SffsE5VR."
	agentUser    = "fleetban"
	agentUID     = 2002
)

// AgentState and HelperState are where the agent's two halves keep what they know, on a host.
const (
	AgentState  = "/var/lib/fleetban-agent"
	HelperState = "/var/lib/fleetban-helper"
)

// Fail2ban is how a host's fail2ban is set up; the zero value is Debian's way with nftables.
type Fail2ban struct {
	// Action is the banaction: "nftables" if empty, or "iptables".
	Action string
	// Log is the log target: "file" if empty, "stdout" or "syslog".
	Log string
	// Backend is how sshd's log is read: "auto" if empty (inotify where Python has it), "pyinotify" or "polling".
	Backend string
	// Contained runs it in mount and PID namespaces of its own, as in a container.
	Contained bool
	// TZ is its time zone; the surrounding machine's if empty.
	TZ string
	// MaxRetry, FindTime and BanTime are the jails' defaults: 3, 10m and 10m if empty.
	MaxRetry          int
	FindTime, BanTime string
	// Jails is added to jail.local.
	Jails string
}

// LogPath is where on the host its log is, wherever fail2ban was told to put it.
func (f Fail2ban) LogPath() string {
	switch f.Log {
	case "stdout":
		return node.LogDir + "/fail2ban.log"
	case "syslog":
		return "/var/log/syslog"
	default:
		return "/var/log/fail2ban.log"
	}
}

func (f Fail2ban) files() []node.File {
	action := "nftables"
	if f.Action == "iptables" {
		action = "iptables"
	}
	backend, maxRetry, findTime, banTime := f.Backend, f.MaxRetry, f.FindTime, f.BanTime
	if backend == "" {
		backend = "auto"
	}
	if maxRetry == 0 {
		maxRetry = 3
	}
	if findTime == "" {
		findTime = "10m"
	}
	if banTime == "" {
		banTime = "10m"
	}
	target := "/var/log/fail2ban.log"
	switch f.Log {
	case "stdout":
		target = "STDOUT"
	case "syslog":
		target = "SYSLOG"
	}
	jail := fmt.Sprintf(`[DEFAULT]
banaction = %s-multiport
banaction_allports = %s-allports
maxretry = %d
findtime = %s
bantime = %s

[sshd]
enabled = true
backend = %s
logpath = /var/log/auth.log

%s
`, action, action, maxRetry, findTime, banTime, backend, f.Jails)
	return []node.File{
		{Path: "/etc/fail2ban/fail2ban.local", Mode: 0o644, Content: "[Definition]\nlogtarget = " + target + "\n"},
		{Path: "/etc/fail2ban/jail.local", Mode: 0o644, Content: jail},
	}
}

func (f Fail2ban) service() node.Service {
	argv := []string{"/usr/bin/fail2ban-server", "-xf", "start"}
	if f.Contained {
		argv = append([]string{"unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"}, argv...)
	}
	var env []string
	if f.TZ != "" {
		env = append(env, "TZ="+f.TZ)
	}
	return node.Service{Name: ServiceFail2ban, Argv: argv, Env: env, Restart: true}
}

// Services of machines, by the names Start, Stop and Kill take.
const (
	ServiceSSHD     = "sshd"
	ServiceFail2ban = "fail2ban"
	ServiceWeb      = "web"
	ServiceRedis    = "redis"
	ServiceHAProxy  = "haproxy"
	ServiceHelper   = "helper"
	ServiceAgent    = "agent"
)

// ServiceReplica is the name of the i-th control-plane replica, i from 1.
func ServiceReplica(i int) string { return fmt.Sprintf("replica%d", i) }

const sshdConfig = `Port 22
HostKey /etc/ssh/ssh_host_ed25519_key
UsePAM no
UseDNS no
PasswordAuthentication yes
KbdInteractiveAuthentication no
PermitRootLogin no
PrintMotd no
PidFile none
LogLevel INFO
MaxStartups 100
Subsystem sftp internal-sftp
`

// askpass is how ssh is given a password without a terminal.
const askpass = "#!/bin/sh\nprintf '%s\\n' \"$LAB_PASSWORD\"\n"

const askpassPath = "/usr/local/bin/lab-askpass"

const haproxyConfig = `global
  maxconn 4000
defaults
  mode tcp
  timeout connect 2s
  timeout client 1h
  timeout server 1h
  timeout check 1s
frontend fleetban
  bind :::443 v4v6
  default_backend replicas
backend replicas
  balance roundrobin
  option httpchk GET /readyz
`

// config is what machine n is made from.
func (l *Lab) config(n *Node) node.Config {
	cfg := node.Config{
		Name: n.Name, MachineID: randomHex(16), BootID: randomUUID(),
		Remove: []string{
			"/etc/resolv.conf", "/etc/ssh/ssh_host_*", "/etc/ssh/sshd_config.d/*", "/etc/fleetban", "/etc/fail2ban/*.local",
			"/etc/fail2ban/*.d/*.local", "/etc/fail2ban/jail.d/*",
		},
		Files: []node.File{
			{Path: "/etc/hosts", Mode: 0o644, Content: l.hostsFile(n)},
			{Path: "/etc/resolv.conf", Mode: 0o644, Content: "# Names are in /etc/hosts; there is no resolver in the lab.\n"},
		},
		Sysctls: map[string]string{"net/ipv6/conf/default/accept_ra": "0", "net/ipv6/conf/default/accept_dad": "0"},
		Trust:   l.pki.authority,
		OnDisk:  []string{"/var/log", "/var/lib"},
	}
	switch n.role {
	case roleHost:
		cfg.Users = []node.User{
			{Name: SSHUser, UID: 2000, Home: "/home/" + SSHUser, PasswordHash: passwordHash, Shell: "/bin/sh"},
			{Name: "sshd", UID: 2001, Home: "/run/sshd"},
		}
		cfg.Dirs = []node.Dir{
			{Path: "/run/sshd", Mode: 0o755},
			{Path: "/run/fail2ban", Mode: 0o755},
			{Path: "/var/lib/fail2ban", Mode: 0o755},
		}
		cfg.Files = append(cfg.Files,
			node.File{Path: "/etc/ssh/sshd_config", Mode: 0o644, Content: sshdConfig + l.sshdExtra},
			node.File{Path: "/etc/ssh/ssh_host_ed25519_key", Mode: 0o600, Content: l.hostKey},
			// fail2ban refuses to start a jail whose log is missing.
			node.File{Path: "/var/log/auth.log", Mode: 0o640},
		)
		cfg.Files = append(cfg.Files, n.fail2ban.files()...)
		if slices.Contains(l.enrolled(), n) {
			cfg.Users = append(cfg.Users, node.User{Name: agentUser, UID: agentUID, Home: AgentState})
			// What systemd makes for the units.
			for _, folder := range []string{AgentState, "/run/fleetban-agent"} {
				cfg.Dirs = append(cfg.Dirs, node.Dir{Path: folder, Mode: 0o755, Owner: agentUser})
			}
			for _, folder := range []string{HelperState, "/run/fleetban-helper"} {
				cfg.Dirs = append(cfg.Dirs, node.Dir{Path: folder, Mode: 0o755})
			}
			if l.options.SmallDisks {
				cfg.Small = map[string]string{AgentState: "4m", HelperState: "4m"}
			}
		}
		if l.options.Policy != "" {
			cfg.Files = append(cfg.Files, node.File{Path: policyPath, Mode: 0o644, Content: l.options.Policy})
		}
		if l.options.Box && n == l.boxHost() {
			cfg.Sysctls["net/ipv4/ip_forward"] = "1"
			cfg.Sysctls["net/ipv6/conf/all/forwarding"] = "1"
		}
	case roleSwitch:
		cfg.Sysctls["net/ipv4/ip_forward"] = "1"
		cfg.Sysctls["net/ipv6/conf/all/forwarding"] = "1"
	case roleAttacker, roleAdmin:
		cfg.Sysctls["net/ipv4/ip_nonlocal_bind"] = "1"
		cfg.Sysctls["net/ipv6/ip_nonlocal_bind"] = "1"
		cfg.Files = append(cfg.Files, node.File{Path: askpassPath, Mode: 0o755, Content: askpass})
	case roleControlPlane:
		cfg.Users = []node.User{{Name: agentUser, UID: agentUID, Home: "/var/lib/fleetban"}}
		cfg.Files = append(cfg.Files, l.redisFiles()...)
		cfg.Dirs = []node.Dir{{Path: redisDir, Mode: 0o755}, {Path: "/var/lib/fleetban", Mode: 0o700, Owner: agentUser}}
		var proxy strings.Builder
		proxy.WriteString(haproxyConfig)
		for i := range l.options.Replicas {
			port := replicaPort(i + 1)
			if l.options.Proxied {
				port = proxiedPort(ServiceReplica(i + 1))
			}
			fmt.Fprintf(&proxy, "  server replica%d 127.0.0.1:%d check check-ssl verify none inter 200ms fall 2 rise 1\n", i+1, port)
		}
		cfg.Files = append(cfg.Files,
			node.File{Path: "/etc/haproxy/haproxy.cfg", Mode: 0o644, Content: proxy.String()},
			node.File{Path: proxiesPath, Mode: 0o644, Content: l.proxies()},
			node.File{Path: secretPath, Mode: 0o400, Owner: agentUser, Content: randomHex(32) + "\n"},
			node.File{Path: "/etc/fleetban/tls.crt", Mode: 0o644, Content: l.pki.certificate},
			node.File{Path: "/etc/fleetban/tls.key", Mode: 0o640, Owner: agentUser, Content: l.pki.key},
		)
		if l.options.SettableClock {
			cfg.Files = append(cfg.Files, node.File{Path: clockPath, Mode: 0o644, Content: string(make([]byte, 8))})
		}
	case roleBox:
	}
	if l.options.Fleetban {
		cfg.Programs = l.programs(n)
	}
	if l.options.SettableClock && n.role == roleControlPlane {
		if cfg.Programs == nil {
			cfg.Programs = map[string]string{}
		}
		cfg.Programs[clockLibrary] = filepath.Join(l.dir, clockLibrary)
	}
	return cfg
}

func (l *Lab) hostsFile(n *Node) string {
	var b strings.Builder
	b.WriteString("127.0.0.1 localhost\n::1 localhost\n")
	for _, other := range l.nodes {
		if !other.Addr.IsValid() {
			continue
		}
		names := other.Name
		if other.role == roleControlPlane {
			names = ControlPlaneName + " " + names
		}
		fmt.Fprintf(&b, "%s %s\n%s %s\n", other.Addr, names, other.Addr6, names)
	}
	if !n.Addr.IsValid() {
		fmt.Fprintf(&b, "127.0.1.1 %s\n", n.Name)
	}
	return b.String()
}

// services are what machine n runs before Fleetban comes to it.
func (l *Lab) services(n *Node) []node.Service {
	web := node.Service{
		Name: ServiceWeb, Restart: true, Path: "/proc/self/exe",
		Argv: []string{node.WebArg0, fmt.Sprintf("echo=:%d", EchoPort), fmt.Sprintf("http=:%d", HTTPPort)},
	}
	switch n.role {
	case roleHost:
		return []node.Service{
			{Name: ServiceSSHD, Argv: []string{"/usr/sbin/sshd", "-D"}, Restart: true},
			n.fail2ban.service(), web,
		}
	case roleBox:
		return []node.Service{web}
	case roleControlPlane:
		services := append(l.redisServices(),
			node.Service{Name: ServiceHAProxy, Argv: []string{"haproxy", "-db", "-f", "/etc/haproxy/haproxy.cfg"}, Restart: true})
		if l.options.Proxied {
			services = append(services, toxiproxy)
		}
		return services
	default:
		return nil
	}
}
