package enforce

import (
	"log/slog"
	"net/netip"
	"time"

	"github.com/fleetban/fleetban/agent/internal/lately"
	"github.com/fleetban/fleetban/agent/internal/policy"
)

// Config is what an Engine needs. StateDir is required.
type Config struct {
	// StateDir holds the saved sets and the switches; made if missing, mode 0700.
	StateDir string
	// Policy is read again when the file changes. Default: policy.DefaultPath.
	PolicyPath string
	// Table is the name of the nftables table. Default: "fleetban".
	Table string
	// NetNS is the path of the network namespace to enforce in; empty for the caller's.
	NetNS string
	// Root is where /proc, /etc and /run are looked for. Default: "/".
	Root string
	// Log gets one line per event. Default: slog.Default().
	Log *slog.Logger
	// Lately remembers what others did to the table. Default: one of its own.
	Lately *lately.Log
	// OnAllow is called, outside of any lock, with prefixes that have just been put on the fleet's or this host's
	// allowlist, so that they can be unbanned in fail2ban too. It may block.
	OnAllow func([]netip.Prefix)
}

// AuditResult is what comparing the kernel with what ought to be there found.
type AuditResult struct {
	// Enforced is how many elements are in the kernel and ought to be.
	Enforced int
	// Missing and Foreign were put back and taken out.
	Missing, Foreign int
	Took             time.Duration
}

// PolicyState is the policy in force and, where the file is bad, what is wrong with it.
type PolicyState struct {
	Policy policy.Policy
	Path   string
	// Problem is nil, or why the file as it is now is not in force.
	Problem *policy.Error
}
