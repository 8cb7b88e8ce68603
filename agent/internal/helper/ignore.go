package helper

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/fleetban/fleetban/agent/internal/enforce"
	"github.com/fleetban/fleetban/agent/internal/fail2ban"
	"github.com/fleetban/fleetban/agent/internal/observe"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/banset"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

// ignorer keeps every jail's ignoreip holding what the fleet and this host allow, and lifts bans of what becomes allowed: an
// accept in our table would not stop fail2ban's own reject. fail2ban forgets runtime changes when it reloads, so what is
// there is compared now and then. What it added is on disk, for removing the agent must leave fail2ban as it was.
type ignorer struct {
	path     string
	client   *fail2ban.Client
	observer *observe.Observer
	engine   *enforce.Engine
	log      *slog.Logger
	wake     chan struct{}

	mu    sync.Mutex
	added map[string]map[netip.Prefix]bool // by jail
	fresh map[netip.Prefix]bool            // allowed since the last round: bans of these are lifted
	// left is how many allowed prefixes found no room in ignoreip.
	left int
}

const (
	// ignoreEvery is how late a reload of fail2ban is noticed, at most.
	ignoreEvery = 20 * time.Second
	// maxIgnored bounds what is put into ignoreip: fail2ban compares each failure with all of it.
	maxIgnored = 1000
	// allowCommand is what unbans for the allowlist's sake are told as.
	allowCommand = "allowlist"
)

func newIgnorer(path string, client *fail2ban.Client, observer *observe.Observer, log *slog.Logger) *ignorer {
	i := &ignorer{path: path, client: client, observer: observer, log: log, wake: make(chan struct{}, 1)}
	i.added = readIgnored(path)
	return i
}

func (i *ignorer) poke() {
	select {
	case i.wake <- struct{}{}:
	default:
	}
}

// allowed takes note of prefixes that have just been allowed.
func (i *ignorer) allowed(prefixes []netip.Prefix) {
	i.again(prefixes)
	i.poke()
}

func (i *ignorer) again(prefixes []netip.Prefix) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.fresh == nil {
		i.fresh = map[netip.Prefix]bool{}
	}
	for _, p := range prefixes {
		i.fresh[p] = true
	}
}

// run keeps fail2ban in step until ctx ends.
func (i *ignorer) run(ctx context.Context) error {
	timer := time.NewTicker(ignoreEvery)
	defer timer.Stop()
	for {
		changed := i.observer.HealthChanged()
		health := i.observer.Health()
		if health.GetState() == fleetbanv1.Fail2BanHealth_STATE_UP {
			if err := i.round(ctx); err != nil && ctx.Err() == nil {
				i.log.Debug("fail2ban isn't in step with the allowlist yet", "problem", err)
			}
		}
		jails := jailNames(health)
	wait:
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-timer.C:
				break wait
			case <-i.wake:
				break wait
			case <-changed:
				// Counters change all the time; a jail that came or went matters.
				changed = i.observer.HealthChanged()
				if now := jailNames(i.observer.Health()); now != jails {
					break wait
				}
			}
		}
	}
}

func jailNames(h *fleetbanv1.Fail2BanHealth) string {
	names := make([]string, 0, len(h.GetJails())+1)
	for _, j := range h.GetJails() {
		names = append(names, j.GetName())
	}
	return h.GetState().String() + strings.Join(names, "\n")
}

// wanted is what is allowed now: this host's own entries first, and no more than fail2ban can bear.
func (i *ignorer) wanted() map[netip.Prefix]bool {
	now := i.engine.ServerNow()
	var local, fleet []netip.Prefix
	for _, a := range i.engine.LocalAllows() {
		if p, err := prefix.Unpack(a.GetPrefix()); err == nil {
			local = append(local, p)
		}
	}
	_ = i.engine.Held(banset.Allow, 0, func(records []*fleetbanv1.Record) error {
		for _, r := range records {
			if p, err := prefix.Unpack(r.GetPrefix()); err == nil && r.GetKind() == fleetbanv1.RecordKind_RECORD_KIND_PRESENT && r.GetExpiresUnixMs() > now {
				fleet = append(fleet, p)
			}
		}
		return nil
	})
	out, left := choose(local, fleet)
	i.mu.Lock()
	i.left = left
	i.mu.Unlock()
	return out
}

// choose takes the first maxIgnored, always the same ones, and says how many are left.
func choose(local, fleet []netip.Prefix) (map[netip.Prefix]bool, int) {
	out := map[netip.Prefix]bool{}
	left := 0
	for _, list := range [][]netip.Prefix{local, fleet} {
		sort.Slice(list, func(i, j int) bool { return list[i].Compare(list[j]) < 0 })
		for _, p := range slices.Compact(list) {
			switch {
			case out[p]:
			case len(out) < maxIgnored:
				out[p] = true
			default:
				left++
			}
		}
	}
	return out, left
}

// notIgnored is how many allowed prefixes fail2ban doesn't know of.
func (i *ignorer) notIgnored() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.left
}

func (i *ignorer) round(ctx context.Context) error {
	i.mu.Lock()
	fresh := slices.Collect(maps.Keys(i.fresh))
	i.fresh = nil
	i.mu.Unlock()
	want := i.wanted()
	jails, err := i.client.Jails(ctx)
	for _, jail := range jails {
		err = errors.Join(err, i.sync(ctx, jail, want))
	}
	if len(fresh) > 0 {
		if _, liftErr := i.lift(ctx, fresh...); liftErr != nil {
			i.again(fresh) // in the next round
			err = errors.Join(err, liftErr)
		}
	}
	return err
}

// sync makes one jail ignore what is wanted, and no more what was added and isn't wanted any longer.
func (i *ignorer) sync(ctx context.Context, jail string, want map[netip.Prefix]bool) error {
	i.mu.Lock()
	ours := maps.Clone(i.added[jail])
	i.mu.Unlock()
	if len(want) == 0 && len(ours) == 0 {
		return nil
	}
	have, err := i.client.IgnoreIPs(ctx, jail)
	if err != nil {
		return err
	}
	var missing, surplus []netip.Prefix
	for p := range want {
		if !slices.Contains(have, p) {
			missing = append(missing, p)
		}
	}
	for p := range ours {
		if !want[p] {
			surplus = append(surplus, p)
		}
	}
	// Noted before it is done, so that whatever is added can be taken out.
	if err := i.note(jail, missing, true); err != nil {
		return err
	}
	if err := i.client.AddIgnoreIP(ctx, jail, missing...); err != nil {
		return err
	}
	if err := i.client.DelIgnoreIP(ctx, jail, surplus...); err != nil {
		return err
	}
	return i.note(jail, surplus, false)
}

// lift unbans prefixes, and what is in them, in every jail, and returns those where anything was lifted.
func (i *ignorer) lift(ctx context.Context, prefixes ...netip.Prefix) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, executeAtMost)
	defer cancel()
	jails, err := i.client.Jails(ctx)
	if err != nil {
		return nil, err
	}
	allowed := make(map[netip.Prefix]bool, len(prefixes))
	for _, p := range prefixes {
		allowed[p] = true
	}
	var in []string
	want := i.wanted()
	for _, jail := range jails {
		err = errors.Join(err, i.sync(ctx, jail, want))
		listing, listErr := i.client.BannedWithTime(ctx, jail)
		if listErr != nil {
			err = errors.Join(err, listErr)
			continue
		}
		var lift []netip.Prefix
		for _, b := range listing.Entries {
			if covered(allowed, b.Addr) {
				i.observer.ExpectUnban(allowCommand, b.Addr)
				lift = append(lift, b.Addr)
			}
		}
		if len(lift) == 0 {
			continue
		}
		n, unbanErr := i.client.UnbanIP(ctx, jail, lift...)
		err = errors.Join(err, unbanErr)
		if n > 0 {
			in = append(in, jail)
		}
	}
	return in, err
}

// covered reports whether one of many prefixes covers p.
func covered(by map[netip.Prefix]bool, p netip.Prefix) bool {
	for bits := p.Bits(); bits >= 0; bits-- {
		if wide, err := p.Addr().Prefix(bits); err == nil && by[wide] {
			return true
		}
	}
	return false
}

// note saves what is or isn't added any more.
func (i *ignorer) note(jail string, prefixes []netip.Prefix, added bool) error {
	if len(prefixes) == 0 {
		return nil
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, p := range prefixes {
		if i.added[jail] == nil {
			i.added[jail] = map[netip.Prefix]bool{}
		}
		if added {
			i.added[jail][p] = true
		} else {
			delete(i.added[jail], p)
		}
	}
	var b []byte
	for jail, ps := range i.added {
		for p := range ps {
			b = fmt.Appendf(b, "%s %q\n", p, jail)
		}
	}
	if err := writeWhole(i.path, b); err != nil {
		return fmt.Errorf("save what fail2ban was told to ignore: %w", err)
	}
	return nil
}

func readIgnored(path string) map[string]map[netip.Prefix]bool {
	out := map[string]map[netip.Prefix]bool{}
	b, err := os.ReadFile(path) //nolint:gosec // our own path
	if err != nil {
		return out
	}
	for line := range bytes.Lines(b) {
		first, rest, _ := strings.Cut(strings.TrimSpace(string(line)), " ")
		p, err := netip.ParsePrefix(first)
		jail, quoteErr := strconv.Unquote(rest)
		if err != nil || quoteErr != nil {
			continue
		}
		if out[jail] == nil {
			out[jail] = map[netip.Prefix]bool{}
		}
		out[jail][p] = true
	}
	return out
}

// Restore takes out of fail2ban's ignore lists what a helper with this state folder put there, and says for how many jails.
func Restore(ctx context.Context, stateDir, fail2banSocket string) (int, error) {
	client := fail2ban.New(fail2banSocket)
	defer client.Close() //nolint:errcheck // nothing is lost with it
	n := 0
	var err error
	for jail, prefixes := range readIgnored(stateDir + "/ignored") {
		if len(prefixes) == 0 {
			continue
		}
		delErr := client.DelIgnoreIP(ctx, jail, slices.Collect(maps.Keys(prefixes))...)
		if errors.Is(delErr, fail2ban.ErrUnknownJail) {
			continue
		}
		err = errors.Join(err, delErr)
		n++
	}
	return n, err
}
