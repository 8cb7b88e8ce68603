package observe

import (
	"os"
	"strings"
	"testing"
	"time"
)

func TestParseLine(t *testing.T) {
	const head = "2026-01-02 03:04:05,678 "
	for in, want := range map[string]line{
		head + "fail2ban.actions        [1234]: NOTICE  [sshd] Ban 192.0.2.1":                                           {kind: kindBan, jail: "sshd"},
		head + "fail2ban.actions [1234]: NOTICE [web-1] Ban 192.0.2.1":                                                  {kind: kindBan, jail: "web-1"},
		head + "fail2ban.actions        [1234]: NOTICE  [sshd] Restore Ban 192.0.2.1":                                   {kind: kindRestore, jail: "sshd"},
		head + "fail2ban.actions        [1234]: NOTICE  [sshd] Unban 192.0.2.1":                                         {kind: kindUnban, jail: "sshd"},
		head + "fail2ban.actions        [1234]: WARNING [sshd] 192.0.2.1 already banned":                                {kind: kindAgain, jail: "sshd"},
		head + "fail2ban.observer       [1234]: NOTICE  [sshd] Increase Ban 192.0.2.1 (2 # 20m -> 2026-01-02 03:24:05)": {kind: kindIncrease, jail: "sshd"},
		head + "fail2ban.server         [1234]: INFO    Shutdown in progress...":                                        {kind: kindShutdown},
		head + "fail2ban.server         [1234]: INFO    Reload finished.":                                               {kind: kindReloaded},
		head + "fail2ban.server         [1234]: INFO    Reload all jails":                                               {kind: kindReload},
		head + "fail2ban.jail           [1234]: INFO    Jail 'sshd' started":                                            {kind: kindReload, jail: "sshd"},
		head + "fail2ban.jail           [1234]: INFO    Jail 'sshd' stopped":                                            {kind: kindReload, jail: "sshd"},
		head + "fail2ban.actions        [1234]: INFO      banTime: 600":                                                 {kind: kindReload},
		// Well-formed and of no interest, attackers' text among it.
		head + "fail2ban.filter         [1234]: INFO    [sshd] Found 192.0.2.1 - 2026-01-02 03:04:05":   {},
		head + "fail2ban.filter         [1234]: NOTICE  [sshd] Ban 192.0.2.1":                           {},
		head + "fail2ban.observer       [1234]: INFO    [sshd] Found 192.0.2.1, bad - x, 1 # -> 2, Ban": {},
		head + "fail2ban.actions        [1234]: NOTICE  [sshd] Ban root [sshd] Ban 192.0.2.1":           {},
		head + "fail2ban.actions        [1234]: NOTICE  [sshd] Ban 192.0.2.1 ":                          {},
		head + "fail2ban.actions        [1234]: NOTICE  [sshd] Ban example.com":                         {},
		head + "fail2ban.actions        [1234]: NOTICE  [sshd] Ban fe80::1%eth0":                        {},
		head + "fail2ban.actions        [1234]: NOTICE  [a b] Ban 192.0.2.1":                            {},
		head + "fail2ban.actions        [1234]: NOTICE  [--all] Ban 192.0.2.1":                          {},
		head + "fail2ban.actions        [1234]: ERROR   [sshd] Ban 192.0.2.1":                           {},
		head + "fail2ban.actions        [1234]: NOTICE  x [sshd] Ban 192.0.2.1":                         {},
		head + "fail2ban.server         [1234]: INFO    Shutdown in progress... [sshd] Ban 192.0.2.1":   {},
		head + "fail2ban.actions        [1234]: NOTICE  [sshd] Flush ticket(s) with nftables":           {},
	} {
		got, ok := parseLine([]byte(in))
		if !ok || got.kind != want.kind || got.jail != want.jail {
			t.Errorf("%q is %+v, %v; want %+v", in, got, ok, want)
		}
		if want.jail != "" && want.kind != kindReload && got.prefix.String() != "192.0.2.1/32" {
			t.Errorf("%q is about %s", in, got.prefix)
		}
		if want := time.Date(2026, 1, 2, 3, 4, 5, 678e6, time.UTC); !got.at.Equal(want) {
			t.Errorf("%q was written at %s", in, got.at)
		}
	}
	for _, in := range []string{
		"", "x", head, "2026-13-02 03:04:05,678 fail2ban.actions [1]: NOTICE [a] Ban 192.0.2.1",
		" " + head + "fail2ban.actions [1]: NOTICE [a] Ban 192.0.2.1",
		"fail2ban.actions [1]: NOTICE [a] Ban 192.0.2.1",
		head + "sshd [1]: NOTICE [a] Ban 192.0.2.1", head + "fail2ban.actions [x]: NOTICE [a] Ban 192.0.2.1",
		head + "fail2ban.actions [1]: NOTICE [a] Ban " + strings.Repeat("1", maxLine),
	} {
		if got, ok := parseLine([]byte(in)); ok && got.kind != kindOther {
			t.Errorf("%.80q is %+v", in, got)
		}
	}
}

func FuzzParseLine(f *testing.F) {
	f.Add([]byte("2026-01-02 03:04:05,678 fail2ban.actions        [1234]: NOTICE  [sshd] Ban 192.0.2.1"))
	f.Add([]byte("2026-01-02 03:04:05,678 fail2ban.observer       [1]: NOTICE  [sshd] Increase Ban 2001:db8::1 (2 # 20m -> x)"))
	f.Add([]byte("2026-01-02 03:04:05,678 fail2ban.server         [1]: INFO    Shutdown in progress..."))
	f.Add([]byte("2026-01-02 03:04:05,678 fail2ban.actions        [1]: WARNING [a] ::1/64 already banned"))
	f.Fuzz(func(t *testing.T, in []byte) {
		l, ok := parseLine(in)
		if !ok && l.kind != kindOther {
			t.Fatalf("refused and yet %+v", l)
		}
		switch l.kind {
		case kindOther, kindShutdown, kindReload, kindReloaded:
		default:
			if !l.prefix.IsValid() || l.jail == "" || l.prefix.Addr().Zone() != "" || l.prefix != l.prefix.Masked() {
				t.Fatalf("%q is %+v", in, l)
			}
		}
	})
}

func TestZoneIsLearned(t *testing.T) {
	now := time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)
	for _, offset := range []time.Duration{0, time.Hour, -3*time.Hour - 30*time.Minute, 5*time.Hour + 45*time.Minute, 14 * time.Hour, -12 * time.Hour} {
		for _, late := range []time.Duration{0, time.Second, 80 * time.Second} {
			var z zone
			naive := now.Add(offset - late)
			z.learn(naive, now, freshlyPrinted)
			if got := z.utc(naive); !z.known || !got.Equal(now.Add(-late)) {
				t.Errorf("offset %s, %s late: %s", offset, late, got)
			}
		}
	}
	for _, off := range []time.Duration{7 * time.Minute, 20 * time.Hour, -20 * time.Hour, 10 * time.Second} {
		var z zone
		if z.learn(now.Add(off), now, liveLine); z.known {
			t.Errorf("%s away from any zone taught %s", off, z.offset)
		}
	}
}

// Where fail2ban's zone is this process's, summer time that ends moves no ban.
func TestSummerTimeEnds(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	was := time.Local
	t.Cleanup(func() { time.Local = was })
	time.Local = berlin
	wall := func(at time.Time) time.Time {
		_, seconds := at.In(berlin).Zone()
		return at.UTC().Add(time.Duration(seconds) * time.Second)
	}
	summer := time.Date(2026, 10, 24, 20, 0, 0, 0, time.UTC)
	winter := summer.Add(12 * time.Hour)
	var z zone
	for _, now := range []time.Time{summer, winter} {
		if shift := z.learn(wall(now), now, liveLine); shift != 0 || z.foreign {
			t.Errorf("%s moved everything by %s", now, shift)
		}
		for _, at := range []time.Time{summer, winter} {
			if got := z.utc(wall(at)); !got.Equal(at) {
				t.Errorf("at %s, %s is read as %s", now, at, got)
			}
		}
	}
	// One that has its own zone, without summer time, moves neither.
	tokyo := 9 * time.Hour
	z = zone{}
	if z.learn(summer.Add(tokyo), summer, liveLine); !z.foreign {
		t.Error("it takes Tokyo for Berlin")
	}
	if shift := z.learn(winter.Add(tokyo), winter, liveLine); shift != 0 || !z.utc(summer.Add(tokyo)).Equal(summer) {
		t.Errorf("Tokyo moved by %s", shift)
	}
}

func TestTailThroughChunksAndLongLines(t *testing.T) {
	path := t.TempDir() + "/log"
	w := func(text string) { appendTo(t, path, text) }
	var got []string
	tl := tail{path: path}
	read := func() {
		for tl.read(func(b []byte) { got = append(got, string(b)) }) {
			continue
		}
	}
	w("history\nhalf a li")
	if err := tl.open(true); err != nil {
		t.Fatal(err)
	}
	defer tl.close()
	read()
	w("ne\none\ntw")
	read()
	w("o\n" + strings.Repeat("x", 3*tailChunk) + "\nthree\n" + strings.Repeat("y", maxLine) + "\nfour\n")
	read()
	want := []string{"one", "two", "three", strings.Repeat("y", maxLine), "four"}
	if strings.Join(got, "|") != strings.Join(want, "|") {
		t.Fatalf("got %.200q", got)
	}
	if tl.lost {
		t.Error("nothing was lost")
	}
	if cap(tl.rest) > 4*maxLine {
		t.Errorf("%d bytes are kept of a line", cap(tl.rest))
	}
}

func appendTo(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
}
