package enforce

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sort"
	"sync"
	"time"

	"github.com/fleetban/fleetban/agent/internal/holding"
	"github.com/fleetban/fleetban/agent/internal/lately"
	"github.com/fleetban/fleetban/agent/internal/nft"
	"github.com/fleetban/fleetban/agent/internal/policy"
	"github.com/fleetban/fleetban/agent/internal/protect"
	hostv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/host/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

const (
	kindBan     = fleetbanv1.SetKind_SET_KIND_BAN
	kindAllow   = fleetbanv1.SetKind_SET_KIND_ALLOW
	kindProtect = fleetbanv1.SetKind_SET_KIND_PROTECT
)

// Engine holds the fleet's sets on this host and keeps the kernel equal to them. Safe for concurrent use.
type Engine struct {
	cfg  Config
	log  *slog.Logger
	hold *holding.Holding
	prot *protect.Protector

	mu          sync.Mutex
	kernel      *nft.Enforcer // nil while nftables can't be opened
	inForce     bool          // the kernel's table is there and equal to what it should be
	problem     string        // why it isn't although it should be
	clock       clock
	state       saved
	stateFile   stateFile
	stateNumber uint64
	// failures counts attempts in a row that the kernel refused; retryAt is when the next is due.
	failures int
	retryAt  time.Duration // of boottime
	// stateProblem says why the state isn't saved.
	stateProblem string
	policy       PolicyState
	policyStamp  stamp

	refused  map[netip.Prefix]fleetbanv1.Refusal
	covered  coverage
	allows   index // the fleet's and this host's
	local    index // this host's
	lengths  map[int]bool
	enforced int
	quieted  int // of those, covered by an allowed prefix
	repairs  uint64

	exceptions      []*fleetbanv1.SetException // cached; nil when refused has changed
	exceptionsStale bool
	reported        report
	changed         chan struct{}
	newAllows       []netip.Prefix // to be told to OnAllow outside the lock
}

// report is what Changed tells about.
type report struct {
	health     string
	exceptions uint64
	policy     string
}

// Open loads what is saved and enforces it before it returns. It fails only where nothing could be kept: without
// nftables it works, and says so in Health.
func Open(ctx context.Context, cfg Config) (*Engine, error) {
	if cfg.PolicyPath == "" {
		cfg.PolicyPath = policy.DefaultPath
	}
	if cfg.Table == "" {
		cfg.Table = "fleetban"
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Lately == nil {
		cfg.Lately = &lately.Log{Log: cfg.Log}
	}
	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		return nil, fmt.Errorf("make the helper's state folder: %w", err)
	}
	setsDir := filepath.Join(cfg.StateDir, "sets.d")
	if err := os.MkdirAll(setsDir, 0o700); err != nil {
		return nil, fmt.Errorf("make the helper's state folder: %w", err)
	}
	hold, err := holding.Open(setsDir, cfg.Log)
	if err != nil {
		return nil, err
	}
	e := &Engine{
		cfg: cfg, log: cfg.Log, hold: hold,
		refused: make(map[netip.Prefix]fleetbanv1.Refusal), lengths: make(map[int]bool),
		changed: make(chan struct{}),
	}
	if e.state, err = loadState(cfg.StateDir); err != nil {
		e.log.Error("The helper's switches can't be read and are put aside: enforcement is on, local exemptions are gone", "error", err)
	}
	e.clock.start(e.state.ClockOffset, e.state.LastServer, e.state.ServerTold)
	e.policy = PolicyState{Policy: policy.Strictest(), Path: cfg.PolicyPath}
	e.loadPolicy()
	e.prot = protect.New(protect.Config{Root: cfg.Root}, e.policy.Policy)
	e.prot.SetControlPlane(e.state.ControlPlane)
	if _, err := e.prot.Refresh(ctx); err != nil {
		e.log.Warn("Some of what this host must never ban can't be looked up", "error", err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.rebuildProtect()
	e.rebuildAllows()
	e.reconcile(ctx, true)
	e.publish()
	return e, nil
}

// Close saves and lets go. The kernel goes on enforcing.
func (e *Engine) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.saveState()
	err := e.hold.Close()
	if e.kernel != nil {
		err = errors.Join(err, e.kernel.Close())
		e.kernel = nil
	}
	return err
}

// Apply applies a delta, a page or a sync. The answer means what its outcome says; an error means the request was
// malformed and nothing was changed.
func (e *Engine) Apply(ctx context.Context, req *hostv1.ApplyRequest) (*hostv1.ApplyResponse, error) {
	received := time.Now()
	defer e.tellAllows()
	e.mu.Lock()
	defer e.mu.Unlock()
	jumped := e.clock.set(req.GetServerUnixMs(), time.Now().UnixMilli())
	var (
		change  holding.Change
		outcome holding.Outcome
		err     error
		set     string
	)
	switch {
	case req.HasDelta():
		set = req.GetDelta().GetSet()
		change, outcome, err = e.hold.ApplyDelta(req.GetDelta())
	case req.HasPage():
		set = req.GetPage().GetSet()
		change, outcome, err = e.hold.ApplyPage(req.GetPage())
	case req.HasSync():
		set = req.GetSync().GetCursor().GetSet()
		outcome, err = e.hold.Sync(req.GetSync())
	default:
		err = fmt.Errorf("%w: neither delta nor page nor sync", holding.ErrMalformed)
	}
	if err != nil {
		return nil, err
	}
	before := e.reported.exceptions
	begin := time.Now()
	if jumped {
		change.Large = true
	}
	e.absorb(ctx, change)
	took := time.Since(begin)
	// For who debugs how long a ban takes: microseconds of Unix time.
	e.log.Debug("change in force", "set", set, "version", req.GetDelta().GetVersion(),
		"received_us", received.UnixMicro(), "held_us", begin.UnixMicro(), "in_force_us", begin.Add(took).UnixMicro())
	e.publish()
	return hostv1.ApplyResponse_builder{
		Outcome: outcome, Cursor: e.hold.Cursor(set),
		KernelUs:          uint32(min(took.Microseconds(), 1<<31)), //nolint:gosec // bounded
		ExceptionsChanged: e.reported.exceptions != before,
	}.Build(), nil
}

// mostControlPlane bounds how many addresses a control plane may have: none of them is ever banned here.
const mostControlPlane = 256

// SetSession takes in what the stream's Welcome said.
func (e *Engine) SetSession(ctx context.Context, req *hostv1.SetSessionRequest) (*hostv1.SetSessionResponse, error) {
	var names []string
	for _, s := range req.GetSets() {
		names = append(names, s.GetSet())
	}
	addresses := req.GetControlPlane()
	if n := len(addresses); n > mostControlPlane {
		e.log.Warn("The control plane has more addresses than are protected; the rest can be banned here", "addresses", n, "protected", mostControlPlane)
		addresses = addresses[:mostControlPlane]
	}
	var control []netip.Addr
	for _, raw := range addresses {
		a, ok := netip.AddrFromSlice(raw)
		if !ok {
			return nil, fmt.Errorf("%w: a control plane's address of %d bytes", holding.ErrMalformed, len(raw))
		}
		control = append(control, a.Unmap())
	}
	defer e.tellAllows()
	e.mu.Lock()
	defer e.mu.Unlock()
	before := e.reported.exceptions
	change := e.hold.KeepOnly(names)
	change.Large = e.clock.set(req.GetServerUnixMs(), time.Now().UnixMilli()) || change.Large
	if len(control) > 0 && e.prot.SetControlPlane(control) {
		e.state.ControlPlane = control
		change.Large = true
	}
	// A Welcome, which names sets, says how things are: a control plane that lost its Redis counts from the beginning again,
	// and a pause of before must not hold for ever. What comes later on a stream may come late, from one that ends.
	if s := req.GetSettings(); s != nil && (len(names) > 0 || e.state.settings == nil || s.GetVersion() > e.state.settings.GetVersion()) {
		e.state.settings = s
	}
	e.saveState()
	e.absorb(ctx, change)
	e.reconcile(ctx, false)
	e.publish()
	return hostv1.SetSessionResponse_builder{ExceptionsChanged: e.reported.exceptions != before}.Build(), nil
}

// absorb brings the kernel in line with a change of what is held. The caller holds the lock.
func (e *Engine) absorb(ctx context.Context, change holding.Change) {
	if change.Large {
		e.rebuildProtect()
		e.rebuildAllows()
		e.reconcile(ctx, true)
		return
	}
	if change.Empty() {
		return
	}
	now := e.clock.now()
	var u nft.Update
	var unsure []netip.Prefix
	recheck, allows := false, false
	for _, c := range change.Changed {
		switch c.Kind {
		case kindProtect:
			recheck = true
		case kindAllow:
			allows = true
			e.allowChanged(&u, c.Prefix, now)
		case kindBan:
			if !e.banChanged(&u, c, now) {
				unsure = append(unsure, c.Prefix)
			}
		case fleetbanv1.SetKind_SET_KIND_UNSPECIFIED: // never held
		}
	}
	e.update(ctx, u)
	e.makeSure(ctx, unsure)
	if allows {
		e.count()
	}
	if recheck {
		e.rebuildProtect()
		e.recheck(ctx)
	}
}

// makeSure takes back the bans of unsure that cut an SSH session which began since the last look at the connections. A ban
// is in the kernel before that look: a session stands the moment without its packets, and the others don't wait.
func (e *Engine) makeSure(ctx context.Context, unsure []netip.Prefix) {
	var u nft.Update
	for _, p := range unsure {
		if _, was := e.refused[p]; was {
			continue // by the kernel
		}
		if refusal, refused := e.prot.Check(p); refused {
			e.covered.sub(p)
			e.enforced--
			e.refuse(p, refusal)
			u.Remove = append(u.Remove, p)
		}
	}
	if len(u.Remove) > 0 {
		e.update(ctx, u)
	}
}

// banChanged decides about one ban. It returns false if it let the ban through by an old look at the connections.
func (e *Engine) banChanged(u *nft.Update, c holding.Changed, now int64) (sure bool) {
	_, wasRefused := e.refused[c.Prefix]
	was := c.Before > 0 && !wasRefused
	if was {
		e.covered.sub(c.Prefix)
		e.enforced--
	}
	if c.Expires <= now {
		e.accept(c.Prefix)
		if c.Before > 0 {
			u.Remove = append(u.Remove, c.Prefix)
		}
		return true
	}
	refusal, refused, sure := e.prot.CheckKnown(c.Prefix)
	if !refused {
		refusal = e.decideRest(c.Prefix, now)
	}
	if refusal != 0 {
		e.refuse(c.Prefix, refusal)
		if was {
			u.Remove = append(u.Remove, c.Prefix)
		}
		return true
	}
	e.accept(c.Prefix)
	e.covered.add(c.Prefix)
	e.enforced++
	e.lengths[lengthKey(c.Prefix)] = true
	u.Add = append(u.Add, element(c.Prefix, c.Expires, now))
	return sure
}

// decide says why p must not be enforced here; 0 if it may.
func (e *Engine) decide(p netip.Prefix, now int64) fleetbanv1.Refusal {
	if r, refused := e.prot.Check(p); refused {
		return r
	}
	return e.decideRest(p, now)
}

// decideRest is decide for what isn't protected.
func (e *Engine) decideRest(p netip.Prefix, now int64) fleetbanv1.Refusal {
	if e.local.covers(p, now) {
		return fleetbanv1.Refusal_REFUSAL_LOCAL_ALLOW
	}
	if !e.covered.fits(p, e.policy.Policy.MaxAddresses4(), e.policy.Policy.MaxNetworks6()) {
		return fleetbanv1.Refusal_REFUSAL_COVERAGE
	}
	return fleetbanv1.Refusal_REFUSAL_UNSPECIFIED
}

func (e *Engine) refuse(p netip.Prefix, r fleetbanv1.Refusal) {
	if e.refused[p] != r {
		e.refused[p] = r
		e.exceptionsStale = true
		e.log.Warn("A fleet ban is not enforced here", "prefix", p, "reason", r)
	}
}

func (e *Engine) accept(p netip.Prefix) {
	if _, was := e.refused[p]; was {
		delete(e.refused, p)
		e.exceptionsStale = true
	}
}

func lengthKey(p netip.Prefix) int {
	if p.Addr().Is4() {
		return p.Bits()
	}
	return 1000 + p.Bits()
}

func remaining(end, now int64) time.Duration {
	if end >= forever {
		return nft.Forever
	}
	const most = int64(100*365*24*time.Hour) / int64(time.Millisecond)
	return time.Duration(min(end-now, most)) * time.Millisecond
}

// allowChanged takes a change of the fleet's or this host's allowlist to the index and the kernel.
func (e *Engine) allowChanged(u *nft.Update, p netip.Prefix, now int64) {
	e.rebuildLocal()
	end := max(e.hold.Expires(kindAllow, p), e.state.Allows[p])
	was := e.allows.ends[p]
	if end <= now {
		delete(e.allows.ends, p)
		u.Disallow = append(u.Disallow, p)
		return
	}
	e.allows.put(p, end)
	u.Allow = append(u.Allow, element(p, end, now))
	if was <= now {
		e.newAllows = append(e.newAllows, p)
	}
}

func (e *Engine) rebuildLocal() {
	e.local = newIndex()
	for p, end := range e.state.Allows {
		e.local.put(p, end)
	}
}

// rebuildAllows makes the index anew; what is new in it is told to OnAllow.
func (e *Engine) rebuildAllows() {
	e.rebuildLocal()
	old, now := e.allows, e.clock.now()
	e.allows = newIndex()
	take := func(p netip.Prefix, end int64) bool {
		if end > now {
			e.allows.put(p, max(end, e.allows.ends[p]))
		}
		return true
	}
	e.hold.Each(kindAllow, take)
	for p, end := range e.state.Allows {
		take(p, end)
	}
	if old.ends == nil {
		return // at start nothing is new
	}
	for p := range e.allows.ends {
		if old.ends[p] <= now {
			e.newAllows = append(e.newAllows, p)
		}
	}
}

func (e *Engine) tellAllows() {
	e.mu.Lock()
	list := e.newAllows
	e.newAllows = nil
	e.mu.Unlock()
	if len(list) > 0 && e.cfg.OnAllow != nil {
		e.cfg.OnAllow(list)
	}
}

func (e *Engine) rebuildProtect() {
	var list []netip.Prefix
	e.hold.Each(kindProtect, func(p netip.Prefix, _ int64) bool {
		list = append(list, p)
		return true
	})
	e.prot.SetFleet(list)
}

// update changes the kernel, if it is to be changed now.
func (e *Engine) update(ctx context.Context, u nft.Update) {
	if !e.inForce || e.kernel == nil {
		return
	}
	err := e.kernel.Update(ctx, u)
	if err == nil {
		return
	}
	if errors.Is(err, nft.ErrGone) {
		e.repairs++
		e.noteForeign("gone", true)
		e.reconcile(ctx, true)
		return
	}
	e.kernelFailed(err)
}

// kernelFailed takes in an error of the kernel: refusals of elements, or all of it.
func (e *Engine) kernelFailed(err error) {
	var refused *nft.RefusedError
	if !errors.As(err, &refused) {
		e.inForce = false
		e.setProblem(err.Error())
		return
	}
	for _, p := range refused.Prefixes {
		if _, was := e.refused[p]; was || e.hold.Expires(kindBan, p) == 0 {
			continue
		}
		e.covered.sub(p)
		e.enforced--
		e.refuse(p, fleetbanv1.Refusal_REFUSAL_KERNEL)
	}
}

func (e *Engine) setProblem(text string) {
	switch {
	case e.problem == "" && text != "": // while it lasts, its words may change with each try
		e.log.Error("Fleet bans can't be enforced; it is tried again", "error", text)
	case e.problem != "" && text == "":
		e.log.Info("nftables can be used again")
	}
	e.problem = text
}

// inert says why nothing is to be enforced; 0 if it is.
func (e *Engine) inert() fleetbanv1.Inert {
	now := e.clock.now()
	switch {
	case e.state.OffUntil > now:
		return fleetbanv1.Inert_INERT_OFF
	case e.policy.Policy.Level < policy.LevelBan, e.policy.Policy.Enforcer == policy.EnforcerNone:
		return fleetbanv1.Inert_INERT_OBSERVE
	case e.state.settings.GetPausedUntilUnixMs() > now:
		return fleetbanv1.Inert_INERT_PAUSED
	default:
		return fleetbanv1.Inert_INERT_UNSPECIFIED
	}
}

// reconcile makes the kernel what it should be: everything anew if anew is set, else only if it is on and shouldn't be
// or the other way round.
func (e *Engine) reconcile(ctx context.Context, anew bool) {
	want := e.inert() == 0
	if want && e.inForce && !anew {
		return
	}
	if want && !anew && boottime() < e.retryAt {
		return
	}
	if want && !e.openKernel(ctx) {
		e.retryLater()
		if anew {
			e.judge() // for Exceptions
		}
		return
	}
	if want || anew {
		e.judge()
	}
	if want {
		e.replace(ctx)
		if !e.inForce {
			e.retryLater()
			return
		}
		e.failures, e.retryAt = 0, 0
		return
	}
	if (e.inForce || anew || e.problem != "") && e.openKernel(ctx) { // after a failure the old table may stand
		if err := e.kernel.Off(ctx); err != nil {
			e.setProblem(err.Error())
			return
		}
		e.inForce = false
		e.setProblem("")
	}
}

// retryLater puts the next attempt off: 1 s, 2 s, 4 s, … 32 s.
func (e *Engine) retryLater() {
	e.retryAt = boottime() + time.Second<<min(e.failures, 5)
	e.failures++
}

func (e *Engine) openKernel(ctx context.Context) bool {
	if e.kernel != nil {
		return true
	}
	k, err := nft.Open(nft.Config{Table: e.cfg.Table, NetNS: e.cfg.NetNS})
	if err == nil {
		if err = k.Probe(ctx); err != nil {
			_ = k.Close()
		}
	}
	if err != nil {
		e.setProblem(err.Error())
		return false
	}
	e.kernel = k
	return true
}

// replace puts all that judge let through into the kernel.
func (e *Engine) replace(ctx context.Context) {
	now := e.clock.now()
	err := e.kernel.Replace(ctx, nft.Desired{
		Bans: func(yield func(nft.Element) bool) {
			e.hold.Each(kindBan, func(p netip.Prefix, end int64) bool {
				if _, no := e.refused[p]; no || end <= now {
					return true
				}
				return yield(element(p, end, now))
			})
		},
		Allows: func(yield func(nft.Element) bool) {
			for p, end := range e.allows.ends {
				if !yield(element(p, end, now)) {
					return
				}
			}
		},
	})
	var refused *nft.RefusedError
	if err == nil || errors.As(err, &refused) {
		e.inForce = true
		e.setProblem("")
	}
	if err != nil {
		e.kernelFailed(err)
	}
	if e.enforced > 2_000 {
		freeMemory()
	}
}

// judge decides about every ban anew. What was refused for want of room comes last, so that it is the same that fits.
func (e *Engine) judge() {
	now := e.clock.now()
	old := e.refused
	e.refused = make(map[netip.Prefix]fleetbanv1.Refusal, len(old))
	e.covered, e.enforced, e.quieted = coverage{}, 0, 0
	clear(e.lengths)
	var last []netip.Prefix
	take := func(p netip.Prefix) {
		if r := e.decide(p, now); r != 0 {
			e.refused[p] = r
			if old[p] != r {
				e.exceptionsStale = true
				if len(e.refused) <= 10 {
					e.log.Warn("A fleet ban is not enforced here", "prefix", p, "reason", r)
				}
			}
			return
		}
		e.covered.add(p)
		e.enforced++
		e.lengths[lengthKey(p)] = true
		if e.allows.covers(p, now) {
			e.quieted++
		}
	}
	e.hold.Each(kindBan, func(p netip.Prefix, end int64) bool {
		switch {
		case end <= now:
		case old[p] == fleetbanv1.Refusal_REFUSAL_COVERAGE:
			last = append(last, p)
		default:
			take(p)
		}
		return true
	})
	sort.Slice(last, func(i, j int) bool { return last[i].Compare(last[j]) < 0 })
	for _, p := range last {
		take(p)
	}
	if len(old) != len(e.refused) {
		e.exceptionsStale = true
	}
}

// recheck decides anew and changes only what comes out differently.
func (e *Engine) recheck(ctx context.Context) {
	now := e.clock.now()
	old := e.refused
	e.judge()
	var u nft.Update
	for p := range e.refused {
		if _, was := old[p]; !was {
			u.Remove = append(u.Remove, p)
		}
	}
	for p := range old {
		if _, still := e.refused[p]; still {
			continue
		}
		if end := e.hold.Expires(kindBan, p); end > now {
			u.Add = append(u.Add, element(p, end, now))
		}
	}
	e.update(ctx, u)
}
