package fail2ban_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fleetban/fleetban/agent/internal/fail2ban"
	"github.com/fleetban/fleetban/agent/internal/fail2ban/fail2bantest"
)

func pfx(s string) netip.Prefix {
	if !strings.Contains(s, "/") {
		a := netip.MustParseAddr(s)
		return netip.PrefixFrom(a, a.BitLen())
	}
	return netip.MustParsePrefix(s)
}

func check[T any](t *testing.T, got T, err error, want T) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("got %v, want %v", got, want)
	}
}

func TestClientAgainstRealServer(t *testing.T) {
	s := fail2bantest.Start(t, fail2bantest.Options{Jails: []fail2bantest.Jail{{Name: "sshd", BanTime: 600, MaxRetry: 3}, {Name: "web-1"}}})
	c := s.Client()
	ctx := t.Context()

	if err := c.Ping(ctx); err != nil {
		t.Fatal(err)
	}
	version, err := c.Version(ctx)
	if err != nil || version == "" {
		t.Fatalf("version %q, %v", version, err)
	}
	jails, err := c.Jails(ctx)
	check(t, jails, err, []string{"sshd", "web-1"})
	d, err := c.BanTime(ctx, "sshd")
	check(t, d, err, 600*time.Second)
	d, err = c.FindTime(ctx, "sshd")
	check(t, d, err, 600*time.Second)
	n, err := c.MaxRetry(ctx, "sshd")
	check(t, n, err, 3)
	target, err := c.LogTarget(ctx)
	check(t, target, err, s.LogPath)
	level, err := c.LogLevel(ctx)
	check(t, level, err, "INFO")
	db, err := c.DBFile(ctx)
	check(t, db, err, s.Database)

	banned, err := c.BanIP(ctx, "sshd", pfx("192.0.2.1"), pfx("2001:db8::1"), pfx("198.51.100.0/24"))
	check(t, banned, err, 3)
	banned, err = c.BanIP(ctx, "web-1", pfx("192.0.2.1"))
	check(t, banned, err, 1)
	s.Command("set", "sshd", "banip", "not-an-address")
	yes, err := c.Banned(ctx, "sshd", pfx("192.0.2.1"))
	check(t, yes, err, []bool{true})
	yes, err = c.Banned(ctx, "sshd", pfx("192.0.2.2"), pfx("2001:db8::1"), pfx("198.51.100.0/24"), pfx("198.51.100.9"))
	check(t, yes, err, []bool{false, true, true, false})

	many := []netip.Prefix{pfx("192.0.2.1"), pfx("2001:db8::1"), pfx("198.51.100.0/24"), pfx("::ffff:192.0.2.1")}
	for i := range 20 {
		many = append(many, pfx(fmt.Sprintf("203.0.113.%d", i)))
	}
	yes, err = c.Banned(ctx, "sshd", many...)
	check(t, yes[:5], err, []bool{true, true, true, true, false})
	yes, err = c.Banned(ctx, "sshd", many[:4]...)
	check(t, yes, err, []bool{true, true, true, true})

	listing, err := c.BannedWithTime(ctx, "sshd")
	if err != nil || !listing.Times || listing.Unparsable != 1 || len(listing.Entries) != 3 {
		t.Fatalf("listing %+v, %v", listing, err)
	}
	for _, e := range listing.Entries {
		age := time.Now().In(time.Local).Sub(time.Date(e.BannedAt.Year(), e.BannedAt.Month(), e.BannedAt.Day(), e.BannedAt.Hour(),
			e.BannedAt.Minute(), e.BannedAt.Second(), 0, time.Local))
		if e.Duration != 600*time.Second || age < 0 || age > time.Hour/2 {
			t.Errorf("entry %+v of age %s", e, age)
		}
	}
	counts, err := c.JailCounts(ctx, "sshd")
	check(t, counts, err, fail2ban.Counts{Banned: 4, TotalBanned: 4})

	if err := c.SetBanTime(ctx, "sshd", fail2ban.Forever); err != nil {
		t.Fatal(err)
	}
	listing, err = c.BannedWithTime(ctx, "sshd")
	if err != nil || listing.Entries[0].Duration != fail2ban.Forever {
		t.Fatalf("permanent: %+v, %v", listing, err)
	}

	count, err := c.UnbanIP(ctx, "sshd", pfx("198.51.100.0/24"), pfx("203.0.113.77"))
	check(t, count, err, 1)
	count, err = c.UnbanEverywhere(ctx, pfx("192.0.2.1"))
	check(t, count, err, 2)

	if err := c.AddIgnoreIP(ctx, "sshd", pfx("203.0.113.0/24"), pfx("192.0.2.9")); err != nil {
		t.Fatal(err)
	}
	if err := c.DelIgnoreIP(ctx, "sshd", pfx("192.0.2.9"), pfx("192.0.2.10")); err != nil {
		t.Fatal(err)
	}
	ignored, err := c.IgnoreIPs(ctx, "sshd")
	check(t, ignored, err, []netip.Prefix{pfx("203.0.113.0/24")})
	if err := c.FlushLogs(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestUnknownJailAndRefusedArguments(t *testing.T) {
	s := fail2bantest.Start(t, fail2bantest.Options{})
	c := s.Client()
	_, err := c.JailCounts(t.Context(), "nothere")
	var se *fail2ban.ServerError
	if !errors.Is(err, fail2ban.ErrUnknownJail) || !errors.As(err, &se) {
		t.Fatalf("unknown jail: %v", err)
	}
	for _, jail := range []string{"", "--all", "a b", "a<F2B_END_COMMAND>\x00", strings.Repeat("a", 129), "é"} {
		if _, err := c.BanIP(t.Context(), jail, pfx("192.0.2.1")); !errors.Is(err, fail2ban.ErrArgument) {
			t.Errorf("jail %q: %v", jail, err)
		}
	}
	if _, err := c.BanIP(t.Context(), "sshd", netip.Prefix{}); !errors.Is(err, fail2ban.ErrArgument) {
		t.Errorf("invalid prefix: %v", err)
	}
	if err := c.SetBanTime(t.Context(), "sshd", 0); !errors.Is(err, fail2ban.ErrArgument) {
		t.Errorf("no ban time: %v", err)
	}
}

func TestManyCallersShareOneConnection(t *testing.T) {
	s := fail2bantest.Start(t, fail2bantest.Options{})
	c := s.Client()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 20 {
				p := netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 51, byte(100 + i), byte(j)}), 32)
				if n, err := c.BanIP(t.Context(), "sshd", p); err != nil || n != 1 {
					t.Errorf("ban %s: %d, %v", p, n, err)
				}
			}
		})
	}
	// Other programs crowd the socket meanwhile: a dial in that crowd is refused with EAGAIN and tried again.
	for range 4 {
		wg.Go(func() {
			for range 10 {
				other := fail2ban.New(s.Socket)
				if err := other.Ping(t.Context()); err != nil {
					t.Error(err)
				}
				_ = other.Close()
			}
		})
	}
	wg.Wait()
	counts, err := c.JailCounts(t.Context(), "sshd")
	check(t, counts.Banned, err, 160)
}

func TestDownStaleAndBack(t *testing.T) {
	s := fail2bantest.Start(t, fail2bantest.Options{})
	c := s.Client()
	before, err := c.Peer(t.Context())
	if err != nil || before.PID != int32(s.PID()) {
		t.Fatalf("peer %+v of process %d, %v", before, s.PID(), err)
	}
	s.Kill()
	if err := c.Ping(t.Context()); !errors.Is(err, fail2ban.ErrRefused) {
		t.Fatalf("killed: %v", err)
	}
	s.Launch()
	if err := c.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after, err := c.Peer(t.Context()); err != nil || after == before {
		t.Fatalf("a new server looks like the old one: %+v, %v", after, err)
	}
	s.Stop()
	if err := c.Ping(t.Context()); !errors.Is(err, fail2ban.ErrNoSocket) {
		t.Fatalf("stopped: %v", err)
	}
}

func TestGarbageOnTheSocket(t *testing.T) {
	for name, answer := range map[string]string{
		"http":       "HTTP/1.1 400 Bad Request\r\n\r\n",
		"no tuple":   "\x80\x02]." + "<F2B_END_COMMAND>",
		"bad pickle": "\x80\x05cos\nsystem\n(Vid\ntR.<F2B_END_COMMAND>",
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s")
			listener, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			defer listener.Close()
			go func() {
				for {
					conn, err := listener.Accept()
					if err != nil {
						return
					}
					_, _ = conn.Write([]byte(answer))
				}
			}()
			c := fail2ban.New(path)
			defer c.Close()
			if err := c.Ping(t.Context()); !errors.Is(err, fail2ban.ErrGarbage) {
				t.Fatalf("got %v", err)
			}
		})
	}
	t.Run("silence", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "s")
		listener, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		c := fail2ban.New(path)
		defer c.Close()
		if err := c.Ping(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("got %v", err)
		}
	})
}

// TestDeadlinesMeetAnswers gives requests about the time that an answer takes, so that contexts end at every point of one.
func TestDeadlinesMeetAnswers(t *testing.T) {
	s := fail2bantest.Start(t, fail2bantest.Options{})
	c := s.Client()
	late, inTime := 0, 0
	for i := range 400 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i%80)*5*time.Microsecond)
		switch err := c.Ping(ctx); {
		case err == nil:
			inTime++
		case errors.Is(err, context.DeadlineExceeded):
			late++
		default:
			t.Fatalf("a short ping: %v", err)
		}
		cancel()
		if err := c.Ping(t.Context()); err != nil {
			t.Fatalf("the next request pays for the last one's deadline: %v", err)
		}
	}
	if late == 0 {
		t.Fatal("no deadline came first")
	}
	t.Logf("%d in time, %d late", inTime, late)
}
