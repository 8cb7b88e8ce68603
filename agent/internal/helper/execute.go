package helper

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/fleetban/fleetban/agent/internal/fail2ban"
	"github.com/fleetban/fleetban/agent/internal/policy"
	hostv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/host/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

const (
	// executeAtMost is how long fail2ban is given for one command: its firewall action may be slow.
	executeAtMost = 2 * time.Minute
	// maxCommandPrefixes bounds one command.
	maxCommandPrefixes = 1000
	maxMessage         = 1024
)

// result is an outcome and what a person is told.
type result struct {
	outcome fleetbanv1.CommandOutcome
	message string
}

func refused(format string, args ...any) result {
	return result{fleetbanv1.CommandOutcome_COMMAND_OUTCOME_REFUSED, fmt.Sprintf(format, args...)}
}

func (h *Helper) execute(ctx context.Context, req *hostv1.ExecuteRequest) (*hostv1.ExecuteResponse, error) {
	c := req.GetCommand()
	// Once begun it is finished: who asked may be gone by then and ask again.
	r := h.once(context.WithoutCancel(ctx), c, max(req.GetServerUnixMs(), h.engine.ServerNow()))
	if len(r.message) > maxMessage {
		r.message = strings.ToValidUTF8(r.message[:maxMessage], "")
	}
	return hostv1.ExecuteResponse_builder{Result: fleetbanv1.CommandResult_builder{
		CommandId: c.GetCommandId(), Outcome: r.outcome, Message: r.message,
	}.Build()}.Build(), nil
}

// once carries out a command that wasn't carried out before. Two at a time don't happen.
func (h *Helper) once(ctx context.Context, c *fleetbanv1.Command, serverMS int64) result {
	h.commands.mu.Lock()
	defer h.commands.mu.Unlock()
	if !validID(c.GetCommandId()) {
		return refused("the command has no valid id")
	}
	if r, ok := h.commands.find(c.GetCommandId()); ok {
		return r
	}
	if serverMS > c.GetNotAfterUnixMs() {
		return result{fleetbanv1.CommandOutcome_COMMAND_OUTCOME_EXPIRED, "it arrived after its time"}
	}
	if c.GetNotAfterUnixMs() > serverMS+maxLifeMS {
		return refused("the command's time ends more than eight days from now")
	}
	p := h.engine.Policy().Policy
	if p.Level < policy.LevelBan {
		return refused("the host's policy (%s) says %s; to allow it, set level = \"ban\" there", h.engine.Policy().Path, p.Level)
	}
	if !h.commands.within(p.CommandsPerMinute, time.Now()) {
		return refused("the host's policy allows %d commands a minute", p.CommandsPerMinute)
	}
	run, r := h.prepare(ctx, c)
	if run == nil {
		return r
	}
	// On disk before it begins: if this process dies now, nobody carries it out again, and the answer is "unknown".
	if err := h.commands.begin(c.GetCommandId(), c.GetNotAfterUnixMs(), serverMS); err != nil {
		return result{fleetbanv1.CommandOutcome_COMMAND_OUTCOME_FAILED, "can't be noted on this host's disk: " + err.Error()}
	}
	ctx, cancel := context.WithTimeout(ctx, executeAtMost)
	defer cancel()
	r = run(ctx)
	if err := h.commands.end(c.GetCommandId(), r); err != nil {
		h.log.Warn("the result of a command can't be saved", "command", c.GetCommandId(), "problem", err)
	}
	h.log.Info("carried out a command of the fleet", "command", c.GetCommandId(), "outcome", r.outcome.String(), "message", r.message)
	return r
}

// prepare checks an order and returns what does it, or why not.
func (h *Helper) prepare(ctx context.Context, c *fleetbanv1.Command) (func(context.Context) result, result) {
	switch c.WhichOrder() {
	case fleetbanv1.Command_UnbanInJails_case:
		prefixes, err := unpackAll(c.GetUnbanInJails().GetPrefixes())
		if err != nil {
			return nil, refused("%v", err)
		}
		return func(ctx context.Context) result { return h.unbanInJails(ctx, c.GetCommandId(), prefixes) }, result{}
	case fleetbanv1.Command_BanInJail_case:
		jail := c.GetBanInJail().GetJail()
		prefixes, err := unpackAll(c.GetBanInJail().GetPrefixes())
		switch {
		case err != nil:
			return nil, refused("%v", err)
		case !fail2ban.ValidJail(jail):
			return nil, refused("%.64q is not the name of a jail", jail)
		case strings.HasPrefix(jail, reservedPrefix):
			return nil, refused("jail %q is the fleet's own", jail)
		}
		for _, p := range prefixes {
			if why, protected := h.engine.Protected(ctx, p); protected {
				return nil, refused("this host never bans %s (%s)", prefix.Format(p), refusalName(why))
			}
			if h.engine.Allowed(p) {
				return nil, refused("%s is on an allowlist", prefix.Format(p))
			}
		}
		return func(ctx context.Context) result { return h.banInJail(ctx, c.GetCommandId(), jail, prefixes) }, result{}
	}
	return nil, result{fleetbanv1.CommandOutcome_COMMAND_OUTCOME_UNSUPPORTED, "this agent doesn't know that command; upgrade it"}
}

// reservedPrefix begins the names of jails that are the fleet's own.
const reservedPrefix = "fleet"

func (h *Helper) unbanInJails(ctx context.Context, id string, prefixes []netip.Prefix) result {
	for _, p := range prefixes {
		h.observer.ExpectUnban(id, p)
	}
	n, err := h.client.UnbanEverywhere(ctx, prefixes...)
	if err != nil {
		return failed(err)
	}
	return done("lifted %d bans", n)
}

func (h *Helper) banInJail(ctx context.Context, id, jail string, prefixes []netip.Prefix) result {
	for _, p := range prefixes {
		h.observer.ExpectBan(id, jail, p)
	}
	n, err := h.client.BanIP(ctx, jail, prefixes...)
	if err != nil {
		return failed(err)
	}
	return done("banned %d in jail %s", n, jail)
}

func done(format string, args ...any) result {
	return result{fleetbanv1.CommandOutcome_COMMAND_OUTCOME_DONE, fmt.Sprintf(format, args...)}
}

func failed(err error) result {
	if errors.Is(err, fail2ban.ErrLost) || errors.Is(err, context.DeadlineExceeded) {
		return result{fleetbanv1.CommandOutcome_COMMAND_OUTCOME_UNKNOWN, err.Error()}
	}
	return result{fleetbanv1.CommandOutcome_COMMAND_OUTCOME_FAILED, err.Error()}
}

func unpackAll(packed [][]byte) ([]netip.Prefix, error) {
	if len(packed) == 0 || len(packed) > maxCommandPrefixes {
		return nil, fmt.Errorf("it names %d prefixes; 1 to %d are taken", len(packed), maxCommandPrefixes)
	}
	out := make([]netip.Prefix, 0, len(packed))
	for _, b := range packed {
		p, err := prefix.Unpack(b)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

func validID(id string) bool {
	if id == "" || len(id) > 64 {
		return false
	}
	for _, r := range []byte(id) {
		if (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') && r != '-' && r != '_' {
			return false
		}
	}
	return true
}

// refusalName is a refusal in a person's words.
func refusalName(r fleetbanv1.Refusal) string {
	return strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(r.String(), "REFUSAL_")), "_", " ")
}
