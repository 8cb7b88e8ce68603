package run_test

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fleetban/fleetban/agent/internal/fail2ban/fail2bantest"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/banset"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

// halves are the processes of a host and the stream that its control plane has.
type halves struct {
	*host
	p             *controlPlane
	whole         *testing.T // what both processes live for
	helper, agent *exec.Cmd
	c             *call
	settings      uint64
	// told has, for each address, the events that said it was banned.
	told map[string]map[uint64]bool
}

func (x *halves) start(verb string) {
	now := x.t
	x.t = x.whole
	if verb == "helper" {
		x.helper = x.host.start(true, verb)
	} else {
		x.agent = x.host.start(false, verb)
	}
	x.t = now
}

func (x *halves) kill(cmd *exec.Cmd) {
	_ = cmd.Process.Signal(syscall.SIGKILL)
	_ = cmd.Wait()
}

// renewed waits for the agent's next stream.
func (x *halves) renewed() {
	x.t.Helper()
	x.c = x.p.next(x.t, 0)
}

// saySettings makes the agent tell its helper the time.
func (x *halves) saySettings() {
	x.t.Helper()
	x.settings++
	x.c.send(fleetbanv1.ConnectResponse_builder{Settings: fleetbanv1.Settings_builder{Version: x.settings, Mode: fleetbanv1.Mode_MODE_ENFORCE}.Build()}.Build())
}

// observed waits until the control plane was told that fail2ban bans an address.
func (x *halves) observed(addr string) {
	x.t.Helper()
	limit := time.After(patience)
	for x.told[addr] == nil {
		select {
		case m := <-x.c.in:
			for _, e := range m.GetEvents().GetEvents() {
				p, err := prefix.Unpack(e.GetPrefix())
				if err != nil || !e.HasBan() {
					continue
				}
				a := p.Addr().String()
				if x.told[a] == nil {
					x.told[a] = map[uint64]bool{}
				}
				x.told[a][e.GetSeq()] = true
			}
		case <-limit:
			x.t.Fatalf("the control plane was never told of %s", addr)
		}
	}
}

// said are the lines of a half, from a place in its log on, that have all the words.
func (x *halves) said(verb string, from int, words string) (lines []string) {
	x.t.Helper()
	text, err := os.ReadFile(x.log(verb))
	if err != nil {
		x.t.Fatal(err)
	}
	for line := range strings.Lines(string(text[from:])) {
		if strings.Contains(line, words) {
			lines = append(lines, line)
		}
	}
	return lines
}

func (x *halves) length(verb string) int {
	x.t.Helper()
	info, err := os.Stat(x.log(verb))
	if err != nil {
		x.t.Fatal(err)
	}
	return int(info.Size())
}

// incident and state are what `status -o json` says.
type incident struct{ Code, What, Count string }

type state struct {
	Agent, Helper struct{ Incidents []incident }
	Findings      []struct{ Severity, Code, Problem, Fix string }
}

func (x *halves) status() (s state, human string) {
	x.t.Helper()
	// It ends with another status than 0 where something is wrong.
	out, _ := x.command("status", "-o", "json").Output()
	if err := json.Unmarshal(out, &s); err != nil {
		x.t.Fatalf("%v in\n%s", err, out)
	}
	text, _ := x.command("status").Output()
	return s, string(text)
}

// times is how often something happened, and what the human status says of it.
func (s state) times(code string) (n int, what string) {
	for _, i := range append(s.Agent.Incidents, s.Helper.Incidents...) {
		if i.Code == code {
			_, _ = fmt.Sscan(i.Count, &n)
			what = i.What
		}
	}
	return n, what
}

// fault is something that goes wrong, what the agent says of it, and how it ends.
type fault struct {
	name string
	// begin makes it, end ends it; nil where it is over at once.
	begin, end func()
	// half logs the line with the words once, and the line with mended when it is over.
	half, words, mended string
	// finding is what status has while it lasts, incident what it counts afterwards.
	finding, incident string
	// deaf: fail2ban can't ban while it lasts.
	deaf bool
	// look is done before each look at what is said. Optional.
	look func()
}

// TestFaultsAreTold brings about what may go wrong around one host, with real fail2ban, the real kernel and the real binary.
// Each is told in one line and in status, with what to do; meanwhile what is known is enforced; afterwards nothing is wrong,
// status remembers it, and what fail2ban banned is told once.
func TestFaultsAreTold(t *testing.T) {
	h := newHost(t)
	x := &halves{host: h, whole: t, told: map[string]map[uint64]bool{}}
	var url string
	x.p, url = serve(t)
	h.enrol(url)
	x.start("helper")
	x.start("run")
	x.renewed()
	x.c.set(banset.All, fleetbanv1.SetKind_SET_KIND_BAN, 5, "198.51.0.1")
	x.c.awaitAck(banset.All, 5)
	x.ban("192.0.2.250")
	x.observed("192.0.2.250")

	f2b := h.fail2ban
	var garbage *net.UnixListener
	for i, f := range []fault{
		{
			name: "fail2ban stopped", begin: f2b.Stop, end: f2b.Launch, deaf: true,
			half: "helper", words: "fail2ban can't be asked", mended: "fail2ban answers", finding: "fail2ban-socket-missing", incident: "fail2ban-away",
		},
		{
			name: "fail2ban killed", begin: f2b.Kill, end: f2b.Launch, deaf: true,
			half: "helper", words: "fail2ban can't be asked", mended: "fail2ban answers", finding: "fail2ban-socket-refuses", incident: "fail2ban-started",
		},
		{
			name: "fail2ban reloaded", begin: func() { f2b.Command("reload") },
			half: "helper", words: "fail2ban was reloaded", incident: "fail2ban-reloaded",
		},
		{
			name: "another program on fail2ban's socket",
			begin: func() {
				f2b.Stop()
				var err error
				if garbage, err = net.ListenUnix("unix", &net.UnixAddr{Name: f2b.Socket, Net: "unix"}); err != nil {
					t.Fatal(err)
				}
				go babble(garbage)
			},
			end: func() {
				_ = garbage.Close()
				f2b.Launch()
			}, deaf: true,
			half: "helper", words: "isn't fail2ban", mended: "fail2ban answers", finding: "fail2ban-broken", incident: "fail2ban-away",
		},
		{
			name: "its log rotated",
			begin: func() {
				if err := os.Rename(f2b.LogPath, f2b.LogPath+".1"); err != nil {
					t.Fatal(err)
				}
				f2b.Command("flushlogs")
			},
			half: "helper", words: "fail2ban's log was rotated", incident: "fail2ban-log-rotated",
		},
		{
			name: "its log truncated",
			begin: func() {
				if err := os.Truncate(f2b.LogPath, 0); err != nil {
					t.Fatal(err)
				}
			},
			half: "helper", words: "fail2ban's log was truncated", incident: "fail2ban-log-truncated",
		},
		{
			name: "all rules flushed by somebody else",
			begin: func() {
				if out, err := exec.Command("ip", "netns", "exec", h.namespace, "nft", "flush", "ruleset").CombinedOutput(); err != nil { //nolint:gosec // a test's own
					t.Fatalf("%v\n%s", err, out)
				}
			},
			half: "helper", words: "Somebody changed our nftables table; it is put back", incident: "nftables-changed",
		},
		{
			name: "helper killed", begin: func() { x.kill(x.helper) },
			end: func() {
				x.start("helper")
				x.renewed()
			},
			half: "run", words: "the helper doesn't answer", mended: "the helper answers", finding: "helper-away", incident: "helper-away",
		},
		{
			name: "the unprivileged half killed", begin: func() { x.kill(x.agent) },
			end: func() {
				x.start("run")
				x.renewed()
			},
			half: "helper", words: "the unprivileged half left", mended: "the unprivileged half is back", finding: "agent-away", incident: "agent-left",
		},
		{
			name: "the control plane's Redis away", begin: func() { x.p.storeAway.Store(true) }, end: func() { x.p.storeAway.Store(false) },
			half: "run", words: "the control plane can't reach its Redis", mended: "reaches its Redis again", finding: "store-away", incident: "store-away",
		},
		{
			name: "the control plane's Redis emptied",
			begin: func() {
				x.c.send(fleetbanv1.ConnectResponse_builder{OfferRequest: fleetbanv1.OfferRequest_builder{Set: banset.All}.Build()}.Build())
				x.c.await("what it holds", func(m *fleetbanv1.ConnectRequest) bool {
					return m.GetOffer().GetSet() == banset.All && m.GetOffer().GetLast()
				})
			},
			end:  func() { x.c.set(banset.All, fleetbanv1.SetKind_SET_KIND_BAN, 6, "198.51.0.1") },
			half: "run", words: "the control plane's Redis lost bans", mended: "is rebuilt", incident: "store-rebuilt",
		},
		{
			name:  "its clock an hour off",
			begin: func() { x.p.ahead.Store(time.Hour.Milliseconds()) }, end: func() { x.p.ahead.Store(0) },
			half: "helper", words: "this host's clock differs", mended: "clock agrees", finding: "clock-skew",
			// The helper hears the time with what it is told, and compares clocks once a minute and when it is asked.
			look: func() {
				x.saySettings()
				_, _ = x.status()
			},
		},
	} {
		ok := t.Run(f.name, func(t *testing.T) {
			x.t, x.c.t, h.t = t, t, t
			addr := fmt.Sprintf("192.0.2.%d", i+1)
			from := x.length(f.half)
			before, _ := x.status()
			f.begin()
			look := func() {
				if f.look != nil {
					f.look()
				}
			}
			x.eventually("one line: "+f.words, func() bool {
				look()
				return len(x.said(f.half, from, f.words)) > 0
			})
			if f.finding != "" {
				x.eventually("status to find "+f.finding, func() bool { return x.finds(f.finding) })
			}
			if !f.deaf {
				x.ban(addr)
			}
			if f.end != nil {
				// Whatever is away, the kernel goes on.
				if k := x.kernel(); !strings.Contains(k, "198.51.0.1 ") {
					t.Errorf("meanwhile nothing is enforced:\n%s", k)
				}
				f.end()
			}
			if f.deaf {
				x.ban(addr)
			}
			x.observed(addr)
			if f.mended != "" {
				x.eventually("a line: "+f.mended, func() bool {
					look()
					return len(x.said(f.half, from, f.mended)) > 0
				})
			}
			x.eventually("nothing to be wrong, and the kernel to be whole", func() bool {
				s, _ := x.status()
				for _, found := range s.Findings {
					if found.Severity != "SEVERITY_INFO" {
						return false
					}
				}
				return strings.Contains(x.kernel(), "198.51.0.1 ")
			})
			if f.incident != "" {
				s, human := x.status()
				was, _ := before.times(f.incident)
				now, what := s.times(f.incident)
				if now != was+1 || !strings.Contains(human, what+" (") {
					t.Errorf("status counts %s %d times, before %d, and says:\n%s", f.incident, now, was, human)
				}
			}
			for _, words := range []string{f.words, f.mended} {
				if lines := x.said(f.half, from, words); words != "" && len(lines) != 1 {
					t.Errorf("it was said %d times:\n%s", len(lines), strings.Join(lines, ""))
				}
			}
		})
		if !ok {
			break // what comes after stands on it
		}
	}
	x.t, x.c.t, h.t = t, t, t
	x.ban("192.0.2.251") // whatever is told twice was told before this
	x.observed("192.0.2.251")
	for addr, events := range x.told {
		if len(events) != 1 {
			t.Errorf("%s was told %d times", addr, len(events))
		}
	}
}

func (x *halves) ban(addr string) {
	x.t.Helper()
	x.fail2ban.Command("set", "sshd", "banip", addr)
}

func (x *halves) eventually(what string, cond func() bool) {
	x.t.Helper()
	fail2bantest.Eventually(x.t, patience, what, cond)
}

// finds reports whether status has a finding that says what to do, for programs and for people.
func (x *halves) finds(code string) bool {
	x.t.Helper()
	s, human := x.status()
	for _, f := range s.Findings {
		if f.Code != code {
			continue
		}
		if f.Problem == "" || f.Fix == "" || !strings.Contains(human, f.Fix) {
			x.t.Errorf("status says %+v, and to people:\n%s", f, human)
		}
		return true
	}
	return false
}

// babble answers whoever connects as no fail2ban would.
func babble(l *net.UnixListener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = conn.Write([]byte("220 smtp ready\r\n"))
	}
}
