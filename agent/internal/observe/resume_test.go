package observe_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
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
	"github.com/fleetban/fleetban/agent/internal/spool"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

// halves are an observer and a spool that can each be killed: what they leave is what is on the disk.
type halves struct {
	t      *testing.T
	server *fail2bantest.Server
	dir    string
	logged logBuffer

	helper, run *half
	observer    *observe.Observer
	spool       *spool.Spool
}

type half struct {
	cancel context.CancelFunc
	ended  chan struct{}
}

func (h *half) kill() {
	h.cancel()
	<-h.ended
}

// logBuffer keeps what was logged.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logBuffer) has(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.b.String(), text)
}

func newHalves(t *testing.T, opts fail2bantest.Options) *halves {
	t.Helper()
	h := &halves{t: t, server: fail2bantest.Start(t, opts), dir: t.TempDir()}
	t.Cleanup(func() {
		for _, half := range []*half{h.run, h.helper} {
			if half != nil {
				half.kill()
			}
		}
		if t.Failed() {
			t.Logf("observer:\n%s", h.logged.b.String())
		}
	})
	h.startHelper()
	h.startRun()
	return h
}

func (h *halves) place() string { return filepath.Join(h.dir, "observed") }

func (h *halves) startHelper() {
	client := fail2ban.New(h.server.Socket)
	h.observer = observe.New(observe.Config{
		Client: client, StatePath: h.place(), PollInterval: 200 * time.Millisecond, Logger: slog.New(slog.NewTextHandler(&h.logged, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	ctx, cancel := context.WithCancel(context.Background())
	h.helper = &half{cancel, make(chan struct{})}
	go func(o *observe.Observer, ended chan struct{}) {
		defer close(ended)
		_ = o.Run(ctx)
		_ = client.Close()
	}(h.observer, h.helper.ended)
}

func (h *halves) startRun() {
	h.t.Helper()
	s, err := spool.Open(h.dir, spool.Options{})
	if err != nil {
		h.t.Fatal(err)
	}
	h.spool = s
	ctx, cancel := context.WithCancel(context.Background())
	h.run = &half{cancel, make(chan struct{})}
	go func(o *observe.Observer, ended chan struct{}) {
		defer close(ended)
		defer s.Close()
		feed, through := s.Taken()
		sub := o.Subscribe(observe.Position{Feed: feed, Through: through})
		defer sub.Close()
		for {
			m, err := sub.Next(ctx)
			if err != nil {
				return
			}
			s.Observe(m)
			feed, through := s.Safe()
			o.Ack(observe.Position{Feed: feed, Through: through})
		}
	}(h.observer, h.run.ended)
}

// story is what the spool tells of an address, as "ban", "unban CAUSE" and so on, extensions left out.
func (h *halves) story(addr string) (told []string) {
	h.t.Helper()
	events, err := h.spool.Next(0, 100_000)
	if err != nil {
		h.t.Fatal(err)
	}
	want := prefix.Pack(netip.PrefixFrom(netip.MustParseAddr(addr), 32))
	for _, e := range events {
		switch {
		case !bytes.Equal(e.GetPrefix(), want):
		case e.HasBan():
			told = append(told, "ban")
		case e.HasUnban():
			told = append(told, "unban "+strings.TrimPrefix(e.GetUnban().GetCause().String(), "UNBAN_CAUSE_"))
		}
	}
	return told
}

func (h *halves) awaitStory(addr string, want ...string) {
	h.t.Helper()
	fail2bantest.Eventually(h.t, patience, fmt.Sprintf("of %s is told %q", addr, want), func() bool { return slices.Equal(h.story(addr), want) })
}

// wants checks all stories at once.
func (h *halves) wants(stories map[string][]string) {
	h.t.Helper()
	for addr, want := range stories {
		if got := h.story(addr); !slices.Equal(got, want) {
			h.t.Errorf("of %s is told %q, want %q", addr, got, want)
		}
	}
}

func (h *halves) ban(jail string, addrs ...string) {
	h.t.Helper()
	h.server.Command(append([]string{"set", jail, "banip"}, addrs...)...)
}

// logs waits until fail2ban has logged something.
func (h *halves) logs(text string) {
	h.t.Helper()
	fail2bantest.Eventually(h.t, patience, "fail2ban logs "+text, func() bool {
		b, err := os.ReadFile(h.server.LogPath)
		return err == nil && bytes.Contains(b, []byte(text))
	})
}

// saved waits until a place is saved.
func (h *halves) saved() {
	h.t.Helper()
	fail2bantest.Eventually(h.t, patience, "a place in the log is saved", func() bool {
		_, err := os.Stat(h.place())
		return err == nil
	})
}

// A person's unban is known as one, and an expiry as one, whichever half was dead at the time; each is told once.
func TestUnbansWhileAHalfIsDead(t *testing.T) {
	t.Parallel()
	const byPerson, stays, runsOut, isNew, comesAndGoes = "192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.5"
	for name, c := range map[string]struct {
		run, helper bool
		between     func(h *halves)
		// within is what is told of a ban that was made and lifted in the meantime.
		within []string
	}{
		"run":    {run: true, within: []string{"ban", "unban PERSON"}},
		"helper": {helper: true},
		"both":   {run: true, helper: true},
		"both, and the log was rotated": {run: true, helper: true, between: func(h *halves) {
			if err := os.Rename(h.server.LogPath, h.server.LogPath+".1"); err != nil {
				h.t.Fatal(err)
			}
			h.server.Command("flushlogs")
		}},
		"both, and fail2ban was reloaded": {run: true, helper: true, between: func(h *halves) { h.server.Command("reload") }},
		"run, then the helper": {run: true, between: func(h *halves) {
			fail2bantest.Eventually(h.t, patience, "the helper knows", func() bool {
				return h.observer.Health().GetJails()[1].GetBanned() == 1
			})
			h.helper.kill()
			h.startHelper()
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHalves(t, fail2bantest.Options{Jails: []fail2bantest.Jail{{Name: "short", BanTime: 6}, {Name: "sshd"}}})
			h.saved()
			h.ban("sshd", byPerson, stays)
			h.ban("short", runsOut)
			for _, addr := range []string{byPerson, stays, runsOut} {
				h.awaitStory(addr, "ban")
			}
			if c.run {
				h.run.kill()
			}
			if c.helper {
				h.helper.kill()
			}
			h.server.Command("set", "sshd", "unbanip", byPerson)
			h.ban("sshd", comesAndGoes)
			h.server.Command("set", "sshd", "unbanip", comesAndGoes)
			h.logs("[short] Unban " + runsOut)
			if c.between != nil {
				c.between(h)
			}
			h.ban("sshd", isNew)
			if c.helper {
				h.helper = nil
				h.startHelper()
			}
			if !c.run {
				h.run.kill() // it goes on with another helper
			}
			h.startRun()
			h.awaitStory(isNew, "ban")
			h.awaitStory(byPerson, "ban", "unban PERSON")
			h.wants(map[string][]string{
				stays: {"ban"}, runsOut: {"ban", "unban EXPIRED"}, comesAndGoes: c.within,
			})
		})
	}
}

// Where anything might have made an unban that no person did, none is told as a person's.
func TestUnbansThatNobodyDid(t *testing.T) {
	t.Parallel()
	const lifted, stays, later = "192.0.2.1", "192.0.2.2", "192.0.2.9"
	for name, c := range map[string]struct {
		level   string
		between func(h *halves)
		// cause is what is told of what fail2ban lifted, stays of what it bans again.
		cause, stays string
	}{
		"fail2ban was restarted": {between: func(h *halves) {
			h.server.Stop()
			h.server.Launch()
		}, cause: "JAIL_STOPPED"},
		"fail2ban was killed and forgot": {between: func(h *halves) {
			h.server.Kill()
			if err := os.Remove(h.server.Database); err != nil {
				h.t.Fatal(err)
			}
			h.server.Launch()
		}, cause: "JAIL_STOPPED", stays: "JAIL_STOPPED"},
		"the jail was restarted": {between: func(h *halves) { h.server.Command("reload", "--restart", "sshd") }, cause: "UNSPECIFIED"},
		"the jail was stopped":   {between: func(h *halves) { h.server.Command("stop", "sshd") }, cause: "JAIL_STOPPED", stays: "JAIL_STOPPED"},
		"a shorter ban time": {between: func(h *halves) {
			h.server.Command("set", "sshd", "bantime", "1")
			h.ban("sshd", "192.0.2.3") // makes fail2ban look for ends
			h.logs("[sshd] Unban " + stays)
		}, cause: "UNSPECIFIED", stays: "UNSPECIFIED"},
		"the log was replaced": {between: func(h *halves) {
			if err := os.Remove(h.server.LogPath); err != nil {
				h.t.Fatal(err)
			}
			h.server.Command("flushlogs")
		}, cause: "UNSPECIFIED"},
		"the log was cut": {between: func(h *halves) {
			if err := os.Truncate(h.server.LogPath, 0); err != nil {
				h.t.Fatal(err)
			}
		}, cause: "UNSPECIFIED"},
		"the log doesn't tell of stops": {level: "NOTICE", between: func(*halves) {}, cause: "UNSPECIFIED"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHalves(t, fail2bantest.Options{Jails: []fail2bantest.Jail{{Name: "other"}, {Name: "sshd"}}, LogLevel: c.level})
			h.saved()
			h.ban("sshd", lifted, stays)
			h.awaitStory(lifted, "ban")
			h.awaitStory(stays, "ban")
			h.helper.kill()
			h.run.kill()
			h.server.Command("set", "sshd", "unbanip", lifted)
			c.between(h)
			h.startHelper()
			h.startRun()
			h.awaitStory(lifted, "ban", "unban "+c.cause)
			h.ban("other", later)
			h.awaitStory(later, "ban")
			want := []string{"ban"}
			if c.stays != "" {
				want = append(want, "unban "+c.stays)
			}
			h.wants(map[string][]string{stays: want})
		})
	}
}

// More than can wait is found again in a baseline: each ban is told once, and that there was no room is said.
func TestTooMuchForADeadRun(t *testing.T) {
	t.Parallel()
	h := newHalves(t, fail2bantest.Options{})
	h.ban("sshd", "192.0.2.1")
	h.awaitStory("192.0.2.1", "ban")
	h.run.kill()
	const n = 5000
	var prefixes []netip.Prefix
	for i := range n {
		prefixes = append(prefixes, netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), 32))
	}
	client := h.server.Client()
	if got, err := client.BanIP(t.Context(), "sshd", prefixes...); err != nil || got != n {
		t.Fatalf("%d, %v", got, err)
	}
	fail2bantest.Eventually(t, patience, "it says that there is no room", func() bool { return h.logged.has("there is room for no more") })
	h.startRun()
	count := func() (bans int) {
		events, err := h.spool.Next(0, 100_000)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events {
			if e.HasBan() {
				bans++
			}
		}
		return bans
	}
	fail2bantest.Eventually(t, patience, "all are told", func() bool { return count() == n+1 })
	h.ban("sshd", "192.0.2.2")
	h.awaitStory("192.0.2.2", "ban")
	if got := count(); got != n+2 {
		t.Errorf("%d bans are told, want %d", got, n+2)
	}
	if !h.logged.has("a baseline stands in for changes") {
		t.Error("nothing says what stands in")
	}
}

// A second ban of the same address is another one, also where its unban was read late.
func TestBannedAgainWhileDead(t *testing.T) {
	t.Parallel()
	h := newHalves(t, fail2bantest.Options{})
	h.saved()
	h.ban("sshd", "192.0.2.1")
	h.awaitStory("192.0.2.1", "ban")
	h.helper.kill()
	h.run.kill()
	h.server.Command("set", "sshd", "unbanip", "192.0.2.1")
	h.ban("sshd", "192.0.2.1", "192.0.2.2")
	h.startHelper()
	h.startRun()
	h.awaitStory("192.0.2.2", "ban")
	h.wants(map[string][]string{"192.0.2.1": {"ban"}}) // as it is banned now
	h.server.Command("set", "sshd", "unbanip", "192.0.2.1")
	h.awaitStory("192.0.2.1", "ban", "unban PERSON")
	// The place is older than all of this: read again, it says nothing new.
	h.helper.kill()
	h.run.kill()
	h.startHelper()
	h.startRun()
	h.ban("sshd", "192.0.2.3")
	h.awaitStory("192.0.2.3", "ban")
	h.wants(map[string][]string{"192.0.2.1": {"ban", "unban PERSON"}, "192.0.2.2": {"ban"}})
}
