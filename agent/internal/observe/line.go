package observe

import (
	"bytes"
	"net/netip"
	"time"

	"github.com/fleetban/fleetban/agent/internal/fail2ban"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

// maxLine bounds what is kept of a line. Those that count are short.
const maxLine = 8 << 10

type kind uint8

const (
	kindOther    kind = iota // well-formed, of no interest
	kindBan                  // a new ban
	kindRestore              // a ban read back from the database
	kindUnban                // a ban lifted: run out, by a person, or by a stop
	kindIncrease             // a ban made longer
	kindAgain                // failures of an address that is banned: its ban may have grown
	kindShutdown             // the server begins to stop
	kindReload               // jails or their settings may have changed
	kindReloaded             // the same, at the end of a reload
)

// line is one line of fail2ban's log. Only a hint: nothing in it is believed.
type line struct {
	kind   kind
	jail   string
	prefix netip.Prefix
	// at is the server's clock on the wall, kept as if it were UTC.
	at time.Time
	// read is when this process read it.
	read time.Time
}

// parseLine reads one line without its newline. It accepts exactly fail2ban's own form, anchored at both ends:
//
//	2026-01-02 03:04:05,678 fail2ban.actions        [1234]: NOTICE  [sshd] Ban 192.0.2.1
func parseLine(b []byte) (line, bool) {
	const stamp = len("2026-01-02 03:04:05,678")
	if len(b) <= stamp+1 || len(b) > maxLine || b[stamp] != ' ' {
		return line{}, false
	}
	at, ok := parseStamp(b[:stamp])
	if !ok {
		return line{}, false
	}
	b = b[stamp+1:]
	name, b, ok := bytes.Cut(b, []byte("["))
	if !ok {
		return line{}, false
	}
	module, ok := bytes.CutPrefix(bytes.TrimRight(name, " "), []byte("fail2ban"))
	if !ok {
		return line{}, false
	}
	pid, b, ok := bytes.Cut(b, []byte("]: "))
	if !ok || len(pid) == 0 || len(pid) > 10 || !digits(pid) {
		return line{}, false
	}
	level, msg, ok := bytes.Cut(b, []byte(" "))
	if !ok {
		return line{}, false
	}
	// Levels are padded to seven characters.
	for pad := len("WARNING") - len(level); pad > 0 && len(msg) > 0 && msg[0] == ' '; pad-- {
		msg = msg[1:]
	}
	l := line{at: at}
	switch string(module) {
	case ".actions":
		l.actions(string(level), msg)
	case ".observer":
		l.observer(string(level), msg)
	case ".server":
		switch {
		case bytes.Equal(msg, []byte("Shutdown in progress...")):
			l.kind = kindShutdown
		case bytes.Equal(msg, []byte("Reload finished.")):
			l.kind = kindReloaded
		case bytes.HasPrefix(msg, []byte("Reload ")):
			l.kind = kindReload
		}
	case ".jail":
		if bytes.HasPrefix(msg, []byte("Jail '")) && (bytes.HasSuffix(msg, []byte("' started")) || bytes.HasSuffix(msg, []byte("' stopped"))) {
			l.kind = kindReload
			if name := string(msg[len("Jail '") : len(msg)-len("' stopped")]); fail2ban.ValidJail(name) {
				l.jail = name
			}
		}
	}
	return l, true
}

// actions reads "[jail] Ban ADDR" and its kin, and "  banTime: N".
func (l *line) actions(level string, msg []byte) {
	if bytes.HasPrefix(msg, []byte("  banTime: ")) || bytes.HasPrefix(msg, []byte(" banTime: ")) {
		l.kind = kindReload
		return
	}
	jail, rest, ok := inBrackets(msg)
	if !ok {
		return
	}
	k := kindOther
	switch {
	case level == "NOTICE" && cut(&rest, "Ban "):
		k = kindBan
	case level == "NOTICE" && cut(&rest, "Restore Ban "):
		k = kindRestore
	case level == "NOTICE" && cut(&rest, "Unban "):
		k = kindUnban
	case bytes.HasSuffix(rest, []byte(" already banned")):
		rest, k = bytes.TrimSuffix(rest, []byte(" already banned")), kindAgain
	}
	l.about(k, jail, rest)
}

// observer reads "[jail] Increase Ban ADDR (2 # 20m -> 2026-01-02 03:04:05)".
func (l *line) observer(level string, msg []byte) {
	jail, rest, ok := inBrackets(msg)
	if !ok || level != "NOTICE" || !cut(&rest, "Increase Ban ") || !bytes.HasSuffix(rest, []byte(")")) {
		return
	}
	addr, _, ok := bytes.Cut(rest, []byte(" ("))
	if ok {
		l.about(kindIncrease, jail, addr)
	}
}

func (l *line) about(k kind, jail, addr []byte) {
	const longest = len("2001:0db8:0000:0000:0000:0000:255.255.255.255/128")
	if k == kindOther || len(addr) == 0 || len(addr) > longest || bytes.IndexByte(addr, ' ') >= 0 || !fail2ban.ValidJail(string(jail)) {
		return
	}
	p, err := prefix.Parse(string(addr))
	if err != nil {
		return
	}
	l.kind, l.jail, l.prefix = k, string(jail), p
}

func cut(b *[]byte, prefix string) bool {
	rest, ok := bytes.CutPrefix(*b, []byte(prefix))
	if ok {
		*b = rest
	}
	return ok
}

func inBrackets(msg []byte) (name, rest []byte, ok bool) {
	if len(msg) == 0 || msg[0] != '[' {
		return nil, nil, false
	}
	return bytes.Cut(msg[1:], []byte("] "))
}

func digits(b []byte) bool {
	for _, c := range b {
		if c < '0' || c > '9' {
			return false
		}
	}
	return true
}

// parseStamp reads "2026-01-02 03:04:05,678". time.Parse would do, at ten times the cost; every line has one.
func parseStamp(b []byte) (time.Time, bool) {
	if b[4] != '-' || b[7] != '-' || b[10] != ' ' || b[13] != ':' || b[16] != ':' || b[19] != ',' {
		return time.Time{}, false
	}
	number := func(from, to int) int {
		n := 0
		for _, c := range b[from:to] {
			if c < '0' || c > '9' {
				return -1 << 20
			}
			n = n*10 + int(c-'0')
		}
		return n
	}
	year, month, day := number(0, 4), number(5, 7), number(8, 10)
	hour, minute, second, milli := number(11, 13), number(14, 16), number(17, 19), number(20, 23)
	if year < 1970 || month < 1 || month > 12 || day < 1 || day > 31 || hour < 0 || hour > 23 || minute < 0 || minute > 59 ||
		second < 0 || second > 60 || milli < 0 {
		return time.Time{}, false
	}
	return time.Date(year, time.Month(month), day, hour, minute, second, milli*int(time.Millisecond), time.UTC), true
}
