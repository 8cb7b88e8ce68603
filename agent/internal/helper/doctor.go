package helper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/fleetban/fleetban/agent/internal/fail2ban"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

const (
	severityInfo  = fleetbanv1.Finding_SEVERITY_INFO
	severityWarn  = fleetbanv1.Finding_SEVERITY_WARNING
	severityError = fleetbanv1.Finding_SEVERITY_ERROR

	// findingsEvery is how old the findings in a health message may be.
	findingsEvery = time.Minute
	// maxSkew is how far the host's clock may be off before a person is told.
	maxSkew = 30 * time.Second
	// manyRepairs is how often the table may be put back before a person is told.
	manyRepairs = 3
)

func finding(s fleetbanv1.Finding_Severity, code, problem, fix string) *fleetbanv1.Finding {
	return fleetbanv1.Finding_builder{Severity: s, Code: code, Problem: problem, Fix: fix}.Build()
}

// findingSet keeps what examine found, for it asks fail2ban and looks into files.
type findingSet struct {
	mu   sync.Mutex
	at   time.Time
	last []*fleetbanv1.Finding
}

func (s *findingSet) of(ctx context.Context, h *Helper) []*fleetbanv1.Finding {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last == nil || time.Since(s.at) > findingsEvery/2 {
		s.last, s.at = h.examine(ctx), time.Now()
	}
	return s.last
}

// examine looks for what is wrong on this host and says what mends it.
func (h *Helper) examine(ctx context.Context) []*fleetbanv1.Finding {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	found := append([]*fleetbanv1.Finding{}, h.engine.Findings()...)
	has := map[string]bool{}
	for _, f := range found {
		has[f.GetCode()] = true
	}
	add := func(more ...*fleetbanv1.Finding) {
		for _, f := range more {
			if f != nil && !has[f.GetCode()] && len(found) < 60 {
				has[f.GetCode()] = true
				found = append(found, f)
			}
		}
	}
	add(h.examineFail2ban(ctx)...)
	e := h.engine.Health()
	if e.GetRepairs() >= manyRepairs {
		add(finding(severityWarn, "table-flushed", fmt.Sprintf("another program took Fleetban's nftables table away %d times; it was put back each time", e.GetRepairs()),
			"Find what runs `nft flush ruleset` (the nftables service, a firewall script) and let it flush its own tables only."))
	}
	if n := h.ignore.notIgnored(); n > 0 {
		add(finding(severityWarn, "ignoreip-full", fmt.Sprintf("%d allowed prefixes found no room in fail2ban's ignoreip, which takes %d from Fleetban: this host's own fail2ban may ban them", n, maxIgnored),
			"Allow networks instead of single addresses, or put them into ignoreip in jail.local."))
	}
	add(h.examineClock(), flowtables(), macvlan())
	return found
}

func (h *Helper) examineFail2ban(ctx context.Context) []*fleetbanv1.Finding {
	socket := h.client.Path()
	err := h.client.Ping(ctx)
	switch {
	case errors.Is(err, fail2ban.ErrNoSocket):
		fix := "Start fail2ban (systemctl start fail2ban), or name its socket with --fail2ban-socket."
		if _, statErr := os.Stat(h.cfg.Fail2banConfigDir); errors.Is(statErr, os.ErrNotExist) {
			fix = "fail2ban isn't installed (" + h.cfg.Fail2banConfigDir + " is missing): install it, or name its folder with --fail2ban-config-dir."
		}
		return []*fleetbanv1.Finding{finding(severityError, "fail2ban-socket-missing", "fail2ban's socket "+socket+" is missing: nothing is learnt from this host", fix)}
	case errors.Is(err, fail2ban.ErrRefused):
		return []*fleetbanv1.Finding{finding(severityError, "fail2ban-socket-refuses", "nothing listens on fail2ban's socket "+socket, "fail2ban was killed: start it again (systemctl restart fail2ban).")}
	case errors.Is(err, fail2ban.ErrDenied):
		return []*fleetbanv1.Finding{finding(severityError, "fail2ban-socket-denied", "fail2ban's socket "+socket+" may not be used", "Run the helper as root.")}
	case err != nil:
		return []*fleetbanv1.Finding{finding(severityError, "fail2ban-broken", "fail2ban doesn't answer as it should: "+err.Error(), "See what fail2ban says: fail2ban-client status; journalctl -u fail2ban.")}
	}
	health := h.observer.Health()
	var out []*fleetbanv1.Finding
	if health.GetState() == fleetbanv1.Fail2BanHealth_STATE_UP && len(health.GetJails()) == 0 {
		out = append(out, finding(severityWarn, "fail2ban-no-jails", "fail2ban has no jail: it bans nobody",
			"Enable one, for instance [sshd] enabled = true in "+filepath.Join(h.cfg.Fail2banConfigDir, "jail.local")+", and reload fail2ban."))
	}
	if health.GetSource() == fleetbanv1.EventSource_EVENT_SOURCE_POLL {
		out = append(out, finding(severityInfo, "fail2ban-log-unread", fmt.Sprintf("fail2ban's log can't be followed, so bans are known up to %d ms late", health.GetDelayMs()),
			"Let fail2ban log to a file at level INFO or NOTICE: logtarget = /var/log/fail2ban.log in "+filepath.Join(h.cfg.Fail2banConfigDir, "fail2ban.local")+"."))
	}
	return out
}

func (h *Helper) examineClock() *fleetbanv1.Finding {
	if h.engine.Settings() == nil {
		return nil // no control plane told the time yet
	}
	off := time.Duration(h.engine.ServerNow()-time.Now().UnixMilli()) * time.Millisecond
	is := off.Abs() > maxSkew
	if h.clockOff.Swap(is) != is {
		if is {
			h.log.Warn("this host's clock differs from the control plane's; bans go by the control plane's", "by", off.Round(time.Second))
		} else {
			h.log.Info("this host's clock agrees with the control plane's again")
		}
	}
	if !is {
		return nil
	}
	return finding(severityWarn, "clock-skew", fmt.Sprintf("this host's clock differs from the control plane's by %s; bans go by the control plane's", off.Round(time.Second)),
		"Turn time synchronisation on: timedatectl set-ntp true.")
}

// flowtables finds hardware or software offload: packets of established connections that it forwards pass no hook.
func flowtables() *fleetbanv1.Finding {
	b, err := os.ReadFile("/proc/modules")
	if err != nil || !strings.Contains("\n"+string(b), "\nnf_flow_table ") {
		return nil
	}
	return finding(severityInfo, "flowtables", "a flowtable is loaded: forwarded connections that it has taken over are not cut by a ban; new ones are",
		"Nothing needs to be done on a host that doesn't forward; else remove the flowtable to have bans cut established forwarded connections.")
}

// macvlan finds interfaces whose traffic passes this host's hooks by.
func macvlan() *fleetbanv1.Finding {
	names, _ := filepath.Glob("/sys/class/net/*/uevent")
	for _, n := range names {
		b, err := os.ReadFile(n) //nolint:gosec // of the kernel
		if err == nil && strings.Contains(string(b), "DEVTYPE=macvlan") {
			return finding(severityInfo, "macvlan", "there are macvlan interfaces: traffic to containers behind them doesn't pass this host's firewall and is not covered by bans",
				"Run an agent inside those containers, or use a bridge network.")
		}
	}
	return nil
}
