package observe

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fleetban/fleetban/agent/internal/fail2ban"
	"github.com/fleetban/fleetban/agent/internal/lately"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// Config of an Observer. Only Client is required.
type Config struct {
	// Client speaks to the fail2ban to observe. It may be shared.
	Client *fail2ban.Client
	// LogPath is read instead of the file that fail2ban names, for a fail2ban that sees another file system.
	LogPath string
	// StatePath is a file that remembers how far the log was read, so that what a person unbans while this process is away
	// is still known as a person's. Without it, nothing is remembered.
	StatePath string
	Logger    *slog.Logger
	// Lately remembers what happened to fail2ban and its log; one of its own by default.
	Lately *lately.Log
	// Now is the clock, time.Now by default.
	Now func() time.Time
	// PollInterval is how often the counters are compared, 1 s by default, and how late bans are known without a log.
	PollInterval time.Duration
	// ReconcileEvery is how often everything is compared, 5 min by default.
	ReconcileEvery time.Duration
	// CallTimeout bounds one call of fail2ban, 10 s by default.
	CallTimeout time.Duration
}

const (
	settleTick = 250 * time.Millisecond
	// Counters stand still for this long before a start counts as done; longer while bans known from before are missing, in
	// case that fail2ban is slow to begin.
	settleStill, settleMissing = time.Second, 5 * time.Second
	// A server without any jail is given this long to set them up.
	settleNoJails = 5 * time.Second
	// A server that says it stops and answers after this long was lied about.
	stopAtMost     = 10 * time.Second
	settingsEvery  = 30 * time.Second
	maxPending     = 1000
	maxJails       = 512 // what health can tell
	confirmAtMost  = 200 // more at once are read in full
	readsLog       = 20  // a full read may take one part in so many of fail2ban's time
	readsPoll      = 4
	blindAfter     = 2
	liveLine       = 5 * time.Second
	justStarted    = 30 * time.Second
	freshlyPrinted = 90 * time.Second
)

// Observer observes one fail2ban. Run does all the work; the other methods may be called from any goroutine.
type Observer struct {
	cfg    Config
	client *fail2ban.Client
	log    *slog.Logger

	feed *feed

	mu            sync.Mutex
	expected      map[expectKey]expectation
	health        *fleetbanv1.Fail2BanHealth
	healthChanged chan struct{}
	healthTold    *fleetbanv1.Fail2BanHealth // health as it was when healthChanged last closed
	countsToldAt  time.Time

	wanted chan struct{} // a subscriber waits for a baseline

	// From here on: of Run's goroutine.
	ctx      context.Context //nolint:containedctx // Run's, for the calls beneath it
	watch    *watch
	tail     tail
	clock    zone
	peer     fail2ban.Peer
	state    fleetbanv1.Fail2BanHealth_State
	problem  string
	version  string
	target   string
	level    string
	source   fleetbanv1.EventSource
	jails    map[string]*jail
	pending  []line // bans whose lines came while fail2ban couldn't be asked
	sawDown  bool
	away     bool // it can't be asked, and that was told
	broke    bool // the connection was lost, not merely slow
	synced   bool // all was read at least once
	begunAt  time.Time
	stopping time.Time
	blind    int // looks in a row at which bans were found that no line had told
	nextAll  time.Time
	metaAt   time.Time
	resync   bool
	place    place      // how far the log is read, as it is to be saved
	saved    savedPlace // as it was saved by the process before, until it is used
	missed   *missed    // what happened in between
}

// New makes an Observer. It does nothing until Run.
func New(cfg Config) *Observer {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Lately == nil {
		cfg.Lately = &lately.Log{Log: cfg.Logger}
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.PollInterval == 0 {
		cfg.PollInterval = time.Second
	}
	if cfg.ReconcileEvery == 0 {
		cfg.ReconcileEvery = 5 * time.Minute
	}
	if cfg.CallTimeout == 0 {
		cfg.CallTimeout = 10 * time.Second
	}
	return &Observer{
		cfg: cfg, client: cfg.Client, log: cfg.Logger, feed: newFeed(cfg.Logger),
		expected: map[expectKey]expectation{}, jails: map[string]*jail{},
		health:        fleetbanv1.Fail2BanHealth_builder{State: stateDown, Problem: "fail2ban wasn't asked yet."}.Build(),
		healthChanged: make(chan struct{}), wanted: make(chan struct{}, 1), state: stateDown,
	}
}

func (o *Observer) now() time.Time { return o.cfg.Now() }

// Subscribe starts a subscription and ends the one before. It goes on after from, where what came since is still there;
// then comes a baseline, as soon as fail2ban has been read.
func (o *Observer) Subscribe(from Position) *Subscription {
	s := o.feed.subscribe(o, from)
	o.nudge()
	return s
}

// Ack says that all through a position needs to be told no more, whatever happens to the subscriber.
func (o *Observer) Ack(through Position) { o.feed.ack(through) }

func (o *Observer) nudge() {
	select {
	case o.wanted <- struct{}{}:
	default:
	}
}

// Run observes until ctx ends, and returns why it did. Whatever is wrong with fail2ban is no error: it is told in Health and
// tried again for ever.
func (o *Observer) Run(ctx context.Context) error {
	o.ctx = ctx
	o.loadPlace()
	o.watch = newWatch()
	defer o.watch.close()
	defer o.tail.close()
	if !o.watch.works() {
		o.log.Warn("inotify isn't available: fail2ban's log is looked at once a second; raise fs.inotify.max_user_instances")
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-o.watch.bell:
			o.drain() //nolint:contextcheck // calls go by the context that Run keeps
			if o.state != stateDown {
				continue
			}
		case <-o.wanted:
			o.offerIfWanted()
			continue
		case <-timer.C:
		}
		o.tick() //nolint:contextcheck // as above
		timer.Reset(o.interval())
	}
}

func (o *Observer) interval() time.Duration {
	if o.state == stateDown || o.state == stateBroken {
		return min(o.cfg.PollInterval, 500*time.Millisecond)
	}
	if o.state != stateUp {
		return min(o.cfg.PollInterval, settleTick)
	}
	for _, j := range o.jails {
		if j.settling || j.unequal > 0 {
			return min(o.cfg.PollInterval, settleTick)
		}
	}
	return o.cfg.PollInterval
}

// call returns a context for one call of fail2ban.
func (o *Observer) call() (context.Context, context.CancelFunc) {
	return context.WithTimeout(o.ctx, o.cfg.CallTimeout)
}

// tick is one look at everything that no line tells.
func (o *Observer) tick() {
	o.watch.socket(o.client.Path())
	if !o.look() {
		o.tellHealth()
		return
	}
	o.offerIfWanted()
	o.savePlace()
	o.tellHealth()
}

// look reports whether fail2ban could be asked all that it was to be asked.
func (o *Observer) look() bool {
	if o.state == stateDown || o.state == stateBroken {
		if err := o.connect(); err != nil {
			o.fail(err)
			return false
		}
	}
	o.openLog()
	o.confirmPending()
	o.drain()
	if o.state == stateDown || o.state == stateBroken {
		return false
	}
	if err := o.compareCounters(); err != nil {
		o.fail(err)
		return false
	}
	if o.state == stateStopping && o.now().Sub(o.stopping) > stopAtMost {
		o.log.Warn("fail2ban goes on after its log said that it shuts down")
		o.state, o.resync = stateUp, true
	}
	if o.state == stateStarting {
		o.finishStart()
	}
	if o.state == stateUp && (o.resync || !o.now().Before(o.nextAll)) {
		if err := o.readAll(); err != nil {
			o.fail(err)
			return false
		}
	}
	return true
}

// connect asks a server that may have just come up for what it is.
func (o *Observer) connect() error {
	ctx, cancel := o.call()
	defer cancel()
	peer, err := o.client.Peer(ctx)
	if err != nil {
		return err
	}
	if err := o.client.Ping(ctx); err != nil {
		return err
	}
	if err := o.readMeta(ctx); err != nil {
		return err
	}
	if o.version, err = o.client.Version(ctx); err != nil {
		return err
	}
	o.begin(peer)
	return nil
}

// begin takes note of a server. Unless it is the one before, or the first one and it was up already, it has just started.
func (o *Observer) begin(peer fail2ban.Peer) {
	now := o.now()
	// Under socket activation the socket outlives the server: a broken connection then is all that tells.
	again := peer == o.peer && !o.broke
	first := o.peer == fail2ban.Peer{}
	o.peer, o.problem, o.broke, o.away = peer, "", false, false
	switch {
	case again || (first && !o.sawDown && !o.bootedTogether()):
		o.state, o.resync = stateUp, true
	default:
		o.cfg.Lately.Count("fail2ban-started", "fail2ban was started anew; its bans were read again")
		o.state, o.begunAt = stateStarting, now
		for _, j := range o.jails {
			j.counts, j.told, j.settingsAt, j.lifted = fail2ban.Counts{}, 0, time.Time{}, nil
			j.settle(now, o.born())
		}
	}
	o.log.Info("fail2ban answers", slog.String("version", o.version), slog.Bool("just_started", o.state == stateStarting))
	o.confirmPending()
}

// bootedTogether reports whether the first server to be seen is another than the one whose log was read last, and has only
// just started: it reads its bans back.
func (o *Observer) bootedTogether() bool {
	return o.saved.Path != "" && o.saved.Server != o.peer && o.now().Sub(o.born()) < justStarted
}

func (o *Observer) confirmPending() {
	if pending := o.pending; len(pending) > 0 {
		o.pending = nil
		o.confirm(pending)
	}
}

// born is when the server started: its socket is made then.
func (o *Observer) born() time.Time {
	if o.peer.ChangedNs == 0 {
		return o.now()
	}
	return time.Unix(0, o.peer.ChangedNs)
}

func (o *Observer) readMeta(ctx context.Context) (err error) {
	if o.target, err = o.client.LogTarget(ctx); err != nil {
		return err
	}
	if o.level, err = o.client.LogLevel(ctx); err != nil {
		return err
	}
	o.metaAt = o.now()
	return nil
}

// fail takes note of why fail2ban couldn't be asked.
func (o *Observer) fail(err error) {
	if o.ctx.Err() != nil {
		return
	}
	if errors.Is(err, fail2ban.ErrBusy) {
		o.log.Debug("fail2ban carries out another command of ours")
		return // whatever wasn't asked now, the counters ask again
	}
	if !errors.Is(err, context.DeadlineExceeded) {
		o.broke = true
	}
	before, news := o.state, !o.away
	o.state, o.problem = explain(err, o.client.Path())
	o.sawDown, o.away = true, true
	if news {
		o.cfg.Lately.Count("fail2ban-away", "fail2ban couldn't be asked; what it banned meanwhile was found afterwards")
	}
	if news || before != o.state && before != stateStopping && o.state != stateStopping {
		o.log.Warn("fail2ban can't be asked", slog.String("error", err.Error()))
	}
	if o.state == stateStopping {
		o.stop()
	}
}

// stop holds back: what fail2ban unbans from now on it will ban again when it starts.
func (o *Observer) stop() {
	if o.state != stateStopping || o.stopping.IsZero() || o.now().Sub(o.stopping) > stopAtMost {
		o.stopping = o.now()
	}
	o.state, o.problem, o.sawDown = stateStopping, "fail2ban is shutting down.", true
	for _, j := range o.jails {
		j.lifted = nil
	}
}

// openLog opens the log that fail2ban writes, if there is one to be read, and decides where events come from.
func (o *Observer) openLog() {
	path := o.cfg.LogPath
	if path == "" {
		switch strings.ToUpper(o.target) {
		case "SYSLOG", "STDOUT", "STDERR", "SYSOUT", "SYSTEMD-JOURNAL", "INHERITED", "":
		default:
			if filepath.IsAbs(o.target) {
				path = o.target
			}
		}
	}
	readable := false
	if path == "" {
		o.tail.close()
		o.tail.path = ""
	} else {
		if path != o.tail.path {
			o.tail.close()
			o.tail.path = path
		}
		if o.tail.file == nil {
			// A log that appears while fail2ban runs is read from its start, one that was there is history.
			atEnd := !o.synced || o.source == sourceLog || !fresh(path, o.now())
			o.watch.follow(path)
			if err := o.tail.open(atEnd); err == nil {
				o.log.Info("reading fail2ban's log", slog.String("path", path))
				if at, written, ok := o.tail.lastLine(); ok && !o.clock.known {
					o.relearn(o.clock.learn(at, written, slack))
				}
				o.catchUp()
			}
		}
		o.watch.follow(path)
		readable = o.tail.file != nil
	}
	switch o.level {
	case "WARNING", "ERROR", "CRITICAL", "EMERGENCY", "ALERT":
		readable = false // bans are logged as NOTICE
	}
	if readable && o.blind < blindAfter {
		o.source = sourceLog
	} else {
		o.source = sourcePoll
	}
}

// fresh reports whether a file was made so lately that its start is news.
func fresh(path string, now time.Time) bool {
	var st unix.Statx_t
	if unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_BTIME|unix.STATX_MTIME|unix.STATX_SIZE, &st) != nil {
		return false
	}
	// An old one to which fail2ban has gone back, from the journal perhaps, tells of shutdowns long past.
	made := st.Btime
	if st.Mask&unix.STATX_BTIME == 0 { // the file system doesn't know it
		made = st.Mtime
	}
	return now.Sub(time.Unix(made.Sec, int64(made.Nsec))) < 10*time.Second && st.Size < tailBacklog
}

// relearn takes over that fail2ban's clock means another time than was thought, by shift: so did every ban's start.
func (o *Observer) relearn(shift time.Duration) {
	if shift == 0 {
		return
	}
	o.log.Info("fail2ban's clock is in another zone", slog.Duration("offset", o.clock.offset))
	o.resync = true
	for _, j := range o.jails {
		for p, b := range j.bans {
			if b.start.IsZero() {
				continue
			}
			if b.since.Equal(b.start) {
				b.since = b.since.Add(shift)
			}
			b.start = b.start.Add(shift)
			j.bans[p] = b
		}
	}
}

// drain reads what the log has to say and confirms it.
func (o *Observer) drain() {
	if o.tail.file == nil {
		return
	}
	for more := true; more && o.ctx.Err() == nil; {
		var lines []line
		now := o.now()
		more = o.tail.read(func(b []byte) {
			if l, ok := parseLine(b); ok {
				l.read = now
				lines = append(lines, l)
			}
		})
		if o.tail.swapped {
			o.tail.swapped = false
			o.watch.follow(o.tail.path)
		}
		o.noteLog()
		if o.tail.lost {
			o.tail.lost = false
			o.resync = true
		}
		o.missed.take(lines)
		if len(lines) > 0 {
			o.confirm(lines)
		}
	}
}

func (o *Observer) offerIfWanted() {
	if o.feed.wants() && o.synced && o.state == stateUp && !o.resync {
		o.offer(false)
	}
}

func (o *Observer) offer(afterStart bool) {
	if o.feed.takes(afterStart) {
		o.feed.offer(o.snapshot(afterStart))
	}
}

// snapshot copies what is banned. The subscriber gets fail2ban's own record of when each ban began.
func (o *Observer) snapshot(afterStart bool) *baseline {
	b := &baseline{afterStart: afterStart}
	n := 0
	for _, j := range o.jails {
		n += len(j.bans)
	}
	b.entries = make([]entry, 0, n)
	for name, j := range o.jails {
		b.jails = append(b.jails, name)
		for p, x := range j.bans {
			x = x.rebase()
			j.bans[p] = x
			b.entries = append(b.entries, entry{name, p, x.since, x.duration})
		}
	}
	sort.Strings(b.jails)
	sort.Slice(b.entries, func(i, j int) bool {
		x, y := &b.entries[i], &b.entries[j]
		if x.jail != y.jail {
			return x.jail < y.jail
		}
		return comparePrefix(x.prefix, y.prefix) < 0
	})
	return b
}

func comparePrefix(a, b netip.Prefix) int {
	if c := a.Addr().Compare(b.Addr()); c != 0 {
		return c
	}
	return a.Bits() - b.Bits()
}

// isDown reports whether err means that the server is gone, not that it refused one command.
func isDown(err error) bool {
	var refused *fail2ban.ServerError
	return err != nil && !errors.As(err, &refused)
}
