package observe_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fleetban/fleetban/agent/internal/fail2ban"
	"github.com/fleetban/fleetban/agent/internal/fail2ban/fail2bantest"
	"github.com/fleetban/fleetban/agent/internal/observe"
	hostv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/host/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

// patience is the longest that anything here may take, on a machine that runs many tests at once.
const patience = time.Minute

// slow is how late a busy machine may be, ms. What is wrong by design is wrong by more: by an hour of a zone, or a quarter of one.
const slow = 60_000

// watcher reads a subscription and keeps what a receiver would: all changes, and the state they and the baselines make.
type watcher struct {
	t   testing.TB
	o   *observe.Observer
	sub *observe.Subscription

	mu        sync.Mutex
	changes   []*hostv1.Change
	baselines []*hostv1.Baseline // the last page of each
	state     map[string]*hostv1.Banned
	building  map[string]*hostv1.Banned
	more      chan struct{}
}

type testLog struct{ t testing.TB }

func (l testLog) Write(b []byte) (int, error) {
	l.t.Logf("observer: %s", strings.TrimSpace(string(b)))
	return len(b), nil
}

func start(t testing.TB, cfg observe.Config) *watcher {
	t.Helper()
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.NewTextHandler(testLog{t}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	w := &watcher{t: t, o: observe.New(cfg), state: map[string]*hostv1.Banned{}, more: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := w.o.Run(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("run ended with %v", err)
		}
	})
	w.sub = w.o.Subscribe(observe.Position{})
	wg.Go(func() { w.read(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return w
}

func (w *watcher) read(ctx context.Context) {
	for {
		msg, err := w.sub.Next(ctx)
		if err != nil {
			return
		}
		w.mu.Lock()
		if c := msg.GetChange(); c != nil {
			w.take(c)
		} else {
			page := msg.GetBaseline()
			if page.GetPage() == 0 {
				w.building = map[string]*hostv1.Banned{}
			}
			for _, b := range page.GetBanned() {
				w.building[key(b.GetJail(), b.GetPrefix())] = b
			}
			if page.GetLast() {
				w.state, w.building = w.building, nil
				w.baselines = append(w.baselines, page)
			}
		}
		close(w.more)
		w.more = make(chan struct{})
		w.mu.Unlock()
	}
}

func (w *watcher) take(c *hostv1.Change) {
	w.changes = append(w.changes, c)
	k := key(c.GetJail(), c.GetPrefix())
	switch {
	case c.HasBan():
		w.state[k] = hostv1.Banned_builder{
			Jail: c.GetJail(), Prefix: c.GetPrefix(), DurationMs: c.GetBan().GetDurationMs(), AgeMs: c.GetAgeMs(),
		}.Build()
	case w.state[k] == nil:
		w.t.Errorf("a change of what isn't banned: %v", c)
	case c.HasUnban():
		delete(w.state, k)
	}
}

func key(jail string, packed []byte) string {
	p, err := prefix.Unpack(packed)
	if err != nil {
		return "unreadable"
	}
	return jail + " " + prefix.Format(p)
}

// until waits for cond, which is asked with the lock held after each message.
func (w *watcher) until(what string, cond func() bool) {
	w.t.Helper()
	timeout := time.After(patience)
	for {
		w.mu.Lock()
		ok, more := cond(), w.more
		w.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-more:
		case <-timeout:
			w.mu.Lock()
			defer w.mu.Unlock()
			w.t.Fatalf("within %s it never came to this: %s\nchanges: %v\nbaselines: %v\nhealth: %v", patience, what, w.changes, w.baselines, w.o.Health())
		}
	}
}

func (w *watcher) ready() {
	w.t.Helper()
	w.until("a baseline", func() bool { return len(w.baselines) > 0 })
}

// ban waits for the first ban of addr after the n changes seen before.
func (w *watcher) ban(jail, addr string) (c *hostv1.Change) {
	w.t.Helper()
	w.until("a ban of "+addr, func() bool { c = w.find(jail, addr, "ban"); return c != nil })
	return c
}

func (w *watcher) unban(jail, addr string, cause fleetbanv1.UnbanCause) (c *hostv1.Change) {
	w.t.Helper()
	w.until("an unban of "+addr, func() bool { c = w.find(jail, addr, "unban"); return c != nil })
	if c.GetUnban().GetCause() != cause {
		w.t.Fatalf("%s was unbanned by %s, want %s", addr, c.GetUnban().GetCause(), cause)
	}
	return c
}

// find returns the last change of a kind.
func (w *watcher) find(jail, addr, kind string) *hostv1.Change {
	for _, c := range slices.Backward(w.changes) {
		if key(c.GetJail(), c.GetPrefix()) != jail+" "+addr {
			continue
		}
		if kind == "ban" && c.HasBan() || kind == "unban" && c.HasUnban() || kind == "extension" && c.HasExtension() {
			return c
		}
	}
	return nil
}

func (w *watcher) all() []*hostv1.Change {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.changes)
}

func (w *watcher) health(what string, cond func(*fleetbanv1.Fail2BanHealth) bool) *fleetbanv1.Fail2BanHealth {
	w.t.Helper()
	timeout := time.After(patience)
	for {
		changed := w.o.HealthChanged()
		h := w.o.Health()
		if cond(h) {
			return h
		}
		select {
		case <-changed:
		case <-timeout:
			w.t.Fatalf("health never became %s: %v", what, h)
		}
	}
}

func up(h *fleetbanv1.Fail2BanHealth) bool {
	return h.GetState() == fleetbanv1.Fail2BanHealth_STATE_UP && len(h.GetJails()) > 0
}

func near(t testing.TB, what string, got, want, within int64) {
	t.Helper()
	if got < want-within || got > want+within {
		t.Errorf("%s is %d, want %d within %d", what, got, want, within)
	}
}

const (
	expired = fleetbanv1.UnbanCause_UNBAN_CAUSE_EXPIRED
	person  = fleetbanv1.UnbanCause_UNBAN_CAUSE_PERSON
	command = fleetbanv1.UnbanCause_UNBAN_CAUSE_COMMAND
	stopped = fleetbanv1.UnbanCause_UNBAN_CAUSE_JAIL_STOPPED
)

func TestBansAndUnbans(t *testing.T) {
	t.Parallel()
	s := fail2bantest.Start(t, fail2bantest.Options{Jails: []fail2bantest.Jail{{Name: "sshd"}, {Name: "fleet"}, {Name: "short", BanTime: 6}}})
	s.Command("set", "sshd", "banip", "192.0.2.99")
	w := start(t, observe.Config{Client: s.Client()})
	w.ready()
	w.until("the old ban in the baseline", func() bool { return w.state["sshd 192.0.2.99"] != nil })
	if jails := w.baselines[0].GetJails(); !slices.Equal(jails, []string{"short", "sshd"}) {
		t.Errorf("jails of the baseline: %v", jails)
	}
	h := w.health("up", up)
	if h.GetSource() != fleetbanv1.EventSource_EVENT_SOURCE_LOG || h.GetVersion() == "" || len(h.GetJails()) != 2 {
		t.Errorf("health: %v", h)
	}

	s.Attack("sshd", "192.0.2.1") // by log lines
	c := w.ban("sshd", "192.0.2.1")
	near(t, "duration", c.GetBan().GetDurationMs(), 600_000, 0)
	near(t, "age", c.GetAgeMs(), 0, slow)
	if c.GetLoggedUnixMs() == 0 || c.GetReadUnixMs() < c.GetLoggedUnixMs() || c.GetConfirmedUnixMs() < c.GetReadUnixMs() {
		t.Errorf("times on the way: %v", c)
	}
	s.Attack("short", "192.0.2.2")
	w.ban("short", "192.0.2.2")

	s.Command("set", "sshd", "banip", "2001:db8::7", "198.51.100.0/24") // by a person
	w.ban("sshd", "2001:db8::7")
	w.ban("sshd", "198.51.100.0/24")
	s.Command("set", "sshd", "unbanip", "2001:db8::7")
	w.unban("sshd", "2001:db8::7", person)
	s.Command("unban", "192.0.2.99")
	w.unban("sshd", "192.0.2.99", person)

	w.o.ExpectBan("c1", "sshd", netip.MustParsePrefix("203.0.113.5/32")) // by a command
	w.o.ExpectUnban("c2", netip.MustParsePrefix("203.0.113.0/24"))
	s.Command("set", "sshd", "banip", "203.0.113.5")
	if id := w.ban("sshd", "203.0.113.5").GetBan().GetCommandId(); id != "c1" {
		t.Errorf("banned by command %q", id)
	}
	s.Command("set", "sshd", "unbanip", "203.0.113.0/24")
	if id := w.unban("sshd", "203.0.113.5", command).GetUnban().GetCommandId(); id != "c2" {
		t.Errorf("unbanned by command %q", id)
	}
	w.unban("short", "192.0.2.2", expired)

	s.Command("stop", "sshd")
	w.unban("sshd", "192.0.2.1", stopped)
	w.unban("sshd", "198.51.100.0/24", stopped)
	for _, c := range w.all() {
		if c.GetJail() == "fleet" {
			t.Errorf("a reserved jail was observed: %v", c)
		}
	}
}

func TestIncrementExtends(t *testing.T) {
	t.Parallel()
	s := fail2bantest.Start(t, fail2bantest.Options{Jails: []fail2bantest.Jail{
		{Name: "sshd", BanTime: 60, Lines: []string{"bantime.increment = true", "bantime.factor = 1", "bantime.rndtime = 0"}},
	}})
	w := start(t, observe.Config{Client: s.Client()})
	w.ready()
	s.Attack("sshd", "192.0.2.1")
	near(t, "the first ban", w.ban("sshd", "192.0.2.1").GetBan().GetDurationMs(), 60_000, 0)
	// The observer of fail2ban writes the first ban to its database a moment later; unbanning would erase it there.
	s.Stop()
	w.health("down", func(h *fleetbanv1.Fail2BanHealth) bool { return h.GetState() == fleetbanv1.Fail2BanHealth_STATE_DOWN })
	s.WriteConfig(fail2bantest.Options{Jails: []fail2bantest.Jail{
		{Name: "sshd", BanTime: 4, Lines: []string{"bantime.increment = true", "bantime.factor = 50", "bantime.rndtime = 0"}},
	}})
	s.Launch()
	w.health("up", up)
	s.Attack("sshd", "192.0.2.50")
	w.ban("sshd", "192.0.2.50")
	w.unban("sshd", "192.0.2.50", expired)
	s.Attack("sshd", "192.0.2.50")
	w.until("a longer ban", func() bool {
		c := w.find("sshd", "192.0.2.50", "extension")
		ban := w.find("sshd", "192.0.2.50", "ban")
		return c.GetExtension().GetDurationMs() >= 100_000 || ban.GetBan().GetDurationMs() >= 100_000
	})
}

func TestRestartRestores(t *testing.T) {
	for name, down := range map[string]func(*fail2bantest.Server){
		"stop": (*fail2bantest.Server).Stop, "kill": (*fail2bantest.Server).Kill,
	} {
		for _, level := range []string{"INFO", "NOTICE"} {
			t.Run(name+" at "+level, func(t *testing.T) {
				t.Parallel()
				s := fail2bantest.Start(t, fail2bantest.Options{LogLevel: level, Jails: []fail2bantest.Jail{{Name: "sshd"}, {Name: "web", BanTime: 8}}})
				w := start(t, observe.Config{Client: s.Client()})
				w.ready()
				var many []string
				for i := range 20 {
					many = append(many, fmt.Sprintf("198.51.100.%d", i+1))
				}
				s.Command(append([]string{"set", "sshd", "banip"}, many...)...)
				s.Attack("web", "192.0.2.5")
				w.until("21 bans", func() bool { return len(w.state) == 21 })
				before := len(w.all())
				down(s)
				w.health("down", func(h *fleetbanv1.Fail2BanHealth) bool {
					return h.GetState() == fleetbanv1.Fail2BanHealth_STATE_DOWN && strings.Contains(h.GetProblem(), "systemctl start fail2ban")
				})
				s.Launch()
				s.Attack("sshd", "203.0.113.1") // new, while it starts
				w.ban("sshd", "203.0.113.1")
				w.until("a baseline after the start", func() bool {
					return w.baselines[len(w.baselines)-1].GetAfterStart()
				})
				w.health("up", up)
				w.unban("web", "192.0.2.5", expired)
				w.until("the bans stand", func() bool { return len(w.state) == 21 })
				for _, c := range w.all()[before:] {
					if k := key(c.GetJail(), c.GetPrefix()); k != "sshd 203.0.113.1" && k != "web 192.0.2.5" {
						t.Errorf("the restart told %v", c)
					}
				}
			})
		}
	}
}

func TestPersonUnbansWhileItStarts(t *testing.T) {
	for name, down := range map[string]func(*fail2bantest.Server){
		"stop": (*fail2bantest.Server).Stop, "kill": (*fail2bantest.Server).Kill,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := fail2bantest.Start(t, fail2bantest.Options{})
			w := start(t, observe.Config{Client: s.Client()})
			w.ready()
			s.Command("set", "sshd", "banip", "192.0.2.1", "192.0.2.2", "192.0.2.3")
			w.until("3 bans", func() bool { return len(w.state) == 3 })
			before := len(w.all())
			down(s)
			w.health("down", func(h *fleetbanv1.Fail2BanHealth) bool { return h.GetState() == fleetbanv1.Fail2BanHealth_STATE_DOWN })
			s.Launch()
			fail2bantest.Eventually(t, patience, "its bans to be read back", func() bool {
				return s.Command("get", "sshd", "banned", "192.0.2.3") == "1"
			})
			s.Command("set", "sshd", "unbanip", "192.0.2.2") // one that was read back
			s.Attack("sshd", "203.0.113.1")
			w.ban("sshd", "203.0.113.1")
			s.Command("set", "sshd", "unbanip", "203.0.113.1") // and a new one
			w.unban("sshd", "192.0.2.2", person)
			w.unban("sshd", "203.0.113.1", person)
			w.health("up", up)
			for _, c := range w.all()[before:] {
				if k := key(c.GetJail(), c.GetPrefix()); k != "sshd 192.0.2.2" && k != "sshd 203.0.113.1" {
					t.Errorf("the restart told %v", c)
				}
			}
		})
	}
}

func TestRestartWithoutDatabaseLosesBans(t *testing.T) {
	t.Parallel()
	s := fail2bantest.Start(t, fail2bantest.Options{NoDatabase: true})
	w := start(t, observe.Config{Client: s.Client()})
	w.ready()
	s.Command("set", "sshd", "banip", "192.0.2.1", "not-an-address")
	w.ban("sshd", "192.0.2.1")
	s.Stop()
	s.Launch()
	w.unban("sshd", "192.0.2.1", stopped)
	w.until("an empty baseline after the start", func() bool { return w.baselines[len(w.baselines)-1].GetAfterStart() && len(w.state) == 0 })
}

func TestBanTimeChangedAtRuntime(t *testing.T) {
	t.Parallel()
	s := fail2bantest.Start(t, fail2bantest.Options{})
	w := start(t, observe.Config{Client: s.Client()})
	w.ready()
	s.Command("set", "sshd", "banip", "192.0.2.1")
	w.ban("sshd", "192.0.2.1")
	s.Command("set", "sshd", "bantime", "-1")
	w.until("it is for ever", func() bool {
		c := w.find("sshd", "192.0.2.1", "extension")
		return c != nil && c.GetExtension().GetDurationMs() == -1
	})
}

// A shorter ban time ends running bans at once; nobody unbanned them.
func TestShorterBanTimeIsNoUnban(t *testing.T) {
	t.Parallel()
	s := fail2bantest.Start(t, fail2bantest.Options{})
	// Looks are far apart, so that the unbans are in the log before the new ban time is seen.
	const look = 8 * time.Second
	w := start(t, observe.Config{Client: s.Client(), PollInterval: look})
	w.ready()
	s.Command("set", "sshd", "banip", "192.0.2.1", "192.0.2.2")
	w.ban("sshd", "192.0.2.1")
	w.ban("sshd", "192.0.2.2")
	// The look after a ban reads its times as fail2ban has them, and tells nobody when they are as thought.
	w.health("the look after the bans", func(h *fleetbanv1.Fail2BanHealth) bool {
		return len(h.GetJails()) == 1 && h.GetJails()[0].GetBanned() == 2
	})
	s.Command("set", "sshd", "bantime", "1")
	s.Command("set", "sshd", "banip", "192.0.2.3") // makes fail2ban look for ends
	w.unban("sshd", "192.0.2.1", expired)
	w.unban("sshd", "192.0.2.2", expired)
}

// A slow log makes a ban begin before its line: the end told at first is put right.
func TestLateBanIsCorrected(t *testing.T) {
	t.Parallel()
	s := fail2bantest.Start(t, fail2bantest.Options{})
	w := start(t, observe.Config{Client: s.Client()})
	w.ready()
	f, err := os.OpenFile(s.JailLog("sshd"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := fmt.Fprintf(f, "%d failure from 192.0.2.1\n", time.Now().Add(-5*time.Minute).Unix()); err != nil {
		t.Fatal(err)
	}
	w.ban("sshd", "192.0.2.1")
	w.until("a shorter length from the line on", func() bool {
		d := w.find("sshd", "192.0.2.1", "extension").GetExtension().GetDurationMs()
		return d > 300_000-slow && d <= 301_000
	})
	again := w.o.Subscribe(observe.Position{}) // w's own ends; the baseline has what was put right
	fail2bantest.Eventually(t, patience, "the right age", func() bool {
		again.Close()
		again = w.o.Subscribe(observe.Position{})
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		msg, err := again.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range msg.GetBaseline().GetBanned() {
			return b.GetAgeMs() > 299_000 && b.GetAgeMs() < 300_000+2*slow && b.GetDurationMs() == 600_000
		}
		return false
	})
}

func TestReloadAndJailRestart(t *testing.T) {
	t.Parallel()
	s := fail2bantest.Start(t, fail2bantest.Options{Jails: []fail2bantest.Jail{{Name: "sshd"}, {Name: "web"}}})
	w := start(t, observe.Config{Client: s.Client()})
	w.ready()
	s.Attack("sshd", "192.0.2.1")
	s.Attack("web", "192.0.2.2")
	w.ban("sshd", "192.0.2.1")
	w.ban("web", "192.0.2.2")
	before := len(w.all())
	s.Command("reload")
	s.Command("reload", "--restart", "sshd")
	s.Command("set", "web", "banip", "192.0.2.3")
	w.ban("web", "192.0.2.3")
	s.WriteConfig(fail2bantest.Options{Jails: []fail2bantest.Jail{{Name: "sshd"}, {Name: "mail"}}})
	s.Command("reload")
	w.unban("web", "192.0.2.2", stopped)
	w.unban("web", "192.0.2.3", stopped)
	w.health("of jails mail and sshd", func(h *fleetbanv1.Fail2BanHealth) bool {
		return len(h.GetJails()) == 2 && h.GetJails()[0].GetName() == "mail"
	})
	s.Command("set", "mail", "banip", "192.0.2.4")
	if w.ban("mail", "192.0.2.4").GetBan().GetRestored() {
		t.Error("a new ban looks restored")
	}
	for _, c := range w.all()[before:] {
		if key(c.GetJail(), c.GetPrefix()) == "sshd 192.0.2.1" {
			t.Errorf("the reload told %v", c)
		}
	}
}

func TestRotationAndTruncation(t *testing.T) {
	t.Parallel()
	s := fail2bantest.Start(t, fail2bantest.Options{})
	// Only lines may tell here, not the counters.
	w := start(t, observe.Config{Client: s.Client(), PollInterval: time.Hour})
	w.ready()
	ban := func(addr string) {
		t.Helper()
		s.Command("set", "sshd", "banip", addr)
		w.ban("sshd", addr)
	}
	ban("192.0.2.1")
	if err := os.Rename(s.LogPath, s.LogPath+".1"); err != nil {
		t.Fatal(err)
	}
	ban("192.0.2.2") // still in the old file
	s.Command("flushlogs")
	ban("192.0.2.3")
	if err := os.Rename(s.LogPath, s.LogPath+".2"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.LogPath, nil, 0o600); err != nil { // `create` of logrotate
		t.Fatal(err)
	}
	ban("192.0.2.4")
	s.Command("flushlogs")
	ban("192.0.2.5")
	if err := os.Truncate(s.LogPath, 0); err != nil { // `copytruncate`
		t.Fatal(err)
	}
	ban("192.0.2.6")
	ban("192.0.2.7")
}

func TestForgedLinesTellNothing(t *testing.T) {
	t.Parallel()
	s := fail2bantest.Start(t, fail2bantest.Options{})
	w := start(t, observe.Config{Client: s.Client()})
	w.ready()
	s.Attack("sshd", "192.0.2.1")
	w.ban("sshd", "192.0.2.1")
	now := time.Now().Format("2006-01-02 15:04:05,000")
	s.AppendLog(now + " fail2ban.actions        [1]: NOTICE  [sshd] Ban 203.0.113.1\n" + // never banned
		now + " fail2ban.actions        [1]: NOTICE  [nothere] Ban 203.0.113.2\n" +
		now + " fail2ban.actions        [1]: NOTICE  [sshd] Unban 192.0.2.1\n" + // still banned
		now + " fail2ban.filter         [1]: INFO    [sshd] Found x\r" + now + " fail2ban.actions        [1]: NOTICE  [sshd] Ban 203.0.113.3\n" +
		now + " fail2ban.server         [1]: INFO    Shutdown in progress...\n" + // it goes on
		strings.Repeat("A", 100_000) + "\n" +
		now + " fail2ban.actions        [1]: NOTICE  [sshd] Restore Ban 203.0.113.4\n")
	s.Attack("sshd", "192.0.2.2")
	w.ban("sshd", "192.0.2.2")
	s.Command("unban", "192.0.2.1")
	w.unban("sshd", "192.0.2.1", person)
	for _, c := range w.all() {
		if k := key(c.GetJail(), c.GetPrefix()); k != "sshd 192.0.2.1" && k != "sshd 192.0.2.2" {
			t.Errorf("a forged line told %v", c)
		}
	}
}

func TestPollingWithoutALog(t *testing.T) {
	for _, opts := range []fail2bantest.Options{
		{LogTarget: "STDOUT"},
		{LogLevel: "WARNING"}, // bans aren't logged at all
		{LogTarget: "STDOUT", Env: []string{"TZ=Asia/Kathmandu"}},
	} {
		t.Run(opts.LogTarget+opts.LogLevel+strings.Join(opts.Env, ""), func(t *testing.T) {
			opts.Jails = []fail2bantest.Jail{{Name: "sshd"}, {Name: "short", BanTime: 5}}
			s := fail2bantest.Start(t, opts)
			w := start(t, observe.Config{Client: s.Client()})
			w.ready()
			h := w.health("up", up)
			if h.GetSource() != fleetbanv1.EventSource_EVENT_SOURCE_POLL || h.GetDelayMs() < 1000 || h.GetDelayMs() > 2000 {
				t.Errorf("health: %v", h)
			}
			s.Command("set", "sshd", "banip", "192.0.2.1")
			banned := time.Now()
			c := w.ban("sshd", "192.0.2.1")
			if late := time.Since(banned); late > slow*time.Millisecond {
				t.Errorf("known after %s", late)
			}
			near(t, "age", c.GetAgeMs(), 0, slow)
			near(t, "duration", c.GetBan().GetDurationMs(), 600_000, 0)
			s.Command("set", "sshd", "unbanip", "192.0.2.1")
			w.unban("sshd", "192.0.2.1", person)
			s.Attack("short", "192.0.2.2")
			w.ban("short", "192.0.2.2")
			w.unban("short", "192.0.2.2", expired)
		})
	}
}

func TestOtherZones(t *testing.T) {
	t.Parallel()
	for _, tz := range []string{"Asia/Kathmandu", "America/St_Johns", "Pacific/Kiritimati"} {
		t.Run(tz, func(t *testing.T) {
			t.Parallel()
			s := fail2bantest.Start(t, fail2bantest.Options{Env: []string{"TZ=" + tz}})
			s.Command("set", "sshd", "banip", "192.0.2.1")
			w := start(t, observe.Config{Client: s.Client()})
			w.ready()
			w.until("the old ban, of the right age", func() bool {
				b := w.state["sshd 192.0.2.1"]
				return b != nil && b.GetAgeMs() < slow && b.GetDurationMs() == 600_000
			})
			s.Command("set", "sshd", "banip", "192.0.2.2")
			c := w.ban("sshd", "192.0.2.2")
			near(t, "age", c.GetAgeMs(), 0, slow)
			near(t, "logged", int64(c.GetLoggedUnixMs()), time.Now().UnixMilli(), slow)
			s.Command("set", "sshd", "unbanip", "192.0.2.1")
			w.unban("sshd", "192.0.2.1", person)
			for _, c := range w.all() {
				if c.HasExtension() {
					t.Errorf("the zone looks like an extension: %v", c)
				}
			}
		})
	}
}

func TestLogThatTellsNothingIsNoticed(t *testing.T) {
	t.Parallel()
	s := fail2bantest.Start(t, fail2bantest.Options{})
	other := filepath.Join(t.TempDir(), "other.log")
	if err := os.WriteFile(other, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	w := start(t, observe.Config{Client: s.Client(), LogPath: other})
	w.ready()
	for i := range 3 {
		addr := fmt.Sprintf("192.0.2.%d", i+1)
		s.Command("set", "sshd", "banip", addr)
		w.ban("sshd", addr)
	}
	w.health("polling", func(h *fleetbanv1.Fail2BanHealth) bool {
		return h.GetSource() == fleetbanv1.EventSource_EVENT_SOURCE_POLL
	})
}

func TestManyBansOverflowIntoABaseline(t *testing.T) {
	t.Parallel()
	s := fail2bantest.Start(t, fail2bantest.Options{})
	o := observe.New(observe.Config{Client: s.Client()})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- o.Run(ctx) }()
	defer func() { cancel(); <-done }()
	first := o.Subscribe(observe.Position{})
	sub := o.Subscribe(observe.Position{})
	if _, err := first.Next(ctx); !errors.Is(err, observe.ErrReplaced) {
		t.Errorf("the replaced subscription ended with %v", err)
	}
	msg, err := sub.Next(ctx)
	if err != nil || !msg.GetBaseline().GetLast() || len(msg.GetBaseline().GetBanned()) != 0 {
		t.Fatalf("%v, %v", msg, err)
	}
	const n = 9500
	var prefixes []netip.Prefix
	for i := range n {
		prefixes = append(prefixes, netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), 32))
	}
	if got, err := s.Client().BanIP(ctx, "sshd", prefixes...); err != nil || got != n {
		t.Fatalf("%d, %v", got, err)
	}
	fail2bantest.Eventually(t, patience, "all are counted", func() bool {
		h := o.Health()
		return len(h.GetJails()) == 1 && h.GetJails()[0].GetBanned() == n
	})
	seen, pages := map[string]bool{}, 0
	for len(seen) < n {
		ctx, cancel := context.WithTimeout(ctx, patience)
		msg, err := sub.Next(ctx)
		cancel()
		if err != nil {
			t.Fatalf("%d of %d after %d pages: %v", len(seen), n, pages, err)
		}
		if b := msg.GetBaseline(); b != nil {
			if len(b.GetBanned()) > 1000 || b.GetPage() == 0 {
				pages = 0
				seen = map[string]bool{}
			}
			pages++
			for _, x := range b.GetBanned() {
				seen[string(x.GetPrefix())] = true
			}
			continue
		}
		seen[string(msg.GetChange().GetPrefix())] = true
	}
	t.Logf("the last baseline had %d pages", pages)
}

func TestHealthOfWhatIsWrong(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	socket := filepath.Join(dir, "s")
	w := start(t, observe.Config{Client: fail2ban.New(socket), CallTimeout: 5 * time.Second})
	has := func(state fleetbanv1.Fail2BanHealth_State, text string) func(*fleetbanv1.Fail2BanHealth) bool {
		return func(h *fleetbanv1.Fail2BanHealth) bool {
			return h.GetState() == state && strings.Contains(h.GetProblem(), text)
		}
	}
	w.health("missing", has(fleetbanv1.Fail2BanHealth_STATE_DOWN, "is missing: start fail2ban"))

	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	listener.SetUnlinkOnClose(false)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte("220 smtp ready\r\n"))
		}
	}()
	w.health("garbage", has(fleetbanv1.Fail2BanHealth_STATE_BROKEN, "isn't fail2ban"))
	_ = listener.Close()
	w.health("stale", has(fleetbanv1.Fail2BanHealth_STATE_DOWN, "was killed"))
	_ = os.Remove(socket)
	w.health("missing again", has(fleetbanv1.Fail2BanHealth_STATE_DOWN, "is missing"))
}

func TestComesUpLater(t *testing.T) {
	t.Parallel()
	s := fail2bantest.Start(t, fail2bantest.Options{Stopped: true})
	w := start(t, observe.Config{Client: s.Client()})
	w.health("down", func(h *fleetbanv1.Fail2BanHealth) bool { return h.GetState() == fleetbanv1.Fail2BanHealth_STATE_DOWN })
	s.Launch()
	w.ready()
	w.health("up", up)
	s.Attack("sshd", "192.0.2.1")
	w.ban("sshd", "192.0.2.1")
	// A client that hangs on to nothing: other programs may crowd the socket.
	if h := w.o.Health(); h.GetSource() != fleetbanv1.EventSource_EVENT_SOURCE_LOG {
		t.Errorf("health: %v", h)
	}
}

// BenchmarkBanToChange measures from the moment fail2ban stamped its Ban line to the change in a subscriber's hand. The
// stamp has whole milliseconds, cut off: half of one on average is the stamp's.
func BenchmarkBanToChange(b *testing.B) {
	s := fail2bantest.Start(b, fail2bantest.Options{})
	w := start(b, observe.Config{Client: s.Client(), Logger: slog.New(slog.DiscardHandler)})
	w.ready()
	other := s.Client() // as a person's fail2ban-client has: a connection of its own
	var all, read, confirmed []float64
	for i := range b.N {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), 32)
		if _, err := other.BanIP(b.Context(), "sshd", p); err != nil {
			b.Fatal(err)
		}
		c := w.ban("sshd", p.Addr().String())
		if c.GetLoggedUnixMs() == 0 {
			continue // the counters were faster
		}
		all = append(all, float64(time.Now().UnixMicro())/1000-c.GetLoggedUnixMs())
		read = append(read, c.GetReadUnixMs()-c.GetLoggedUnixMs())
		confirmed = append(confirmed, c.GetConfirmedUnixMs()-c.GetReadUnixMs())
	}
	for name, x := range map[string][]float64{"ms_p50": all, "read_ms_p50": read, "confirm_ms_p50": confirmed} {
		slices.Sort(x)
		if len(x) > 0 {
			b.ReportMetric(x[len(x)/2], name)
		}
	}
	slices.Sort(all)
	if len(all) > 0 {
		b.ReportMetric(all[len(all)*99/100], "ms_p99")
	}
	b.ReportMetric(0, "ns/op")
}
