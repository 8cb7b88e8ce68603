package observe

import (
	"encoding/json"
	"errors"
	"hash/crc32"
	"io"
	"log/slog"
	"os"
	"syscall"
	"time"

	"github.com/fleetban/fleetban/agent/internal/fail2ban"
	hostv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/host/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// While this process is away, fail2ban's log goes on. The place up to which its lines were read, and all that they told
// was acknowledged, is saved; the process after reads on from there. Of those lines only unbans count, for all else is
// found by reading fail2ban in full, and only where the full read finds the address not banned. Whether such a ban had run
// out by then or a person lifted it is left to the subscriber, who knows when it began and how long it was to last: lines
// that were read before, and told, are thus no harm.
//
// Where anything might make another cause of it, nothing is told and the baseline says only that the ban is gone: another
// server than the one that wrote the lines before, a jail that was stopped or restarted behind the unban, another ban time,
// a log level at which stops aren't logged.

const (
	// savePlaceEvery bounds how often the place is saved while the log grows.
	savePlaceEvery = 5 * time.Second
	// maxMissed unbans are remembered, of maxBacklog bytes of the log.
	maxMissed, maxBacklog = 4096, 16 << 20
	// The last so many bytes before the place tell whether it is the same file.
	sumLength = 256
)

// savedPlace is a place in a log, with what must be as it was for its lines to be understood.
type savedPlace struct {
	Path          string
	Device, Inode uint64
	Offset        int64
	Sum           uint32
	Server        fail2ban.Peer
	// Zone is fail2ban's offset from UTC in seconds, where it is known not to be this process's.
	Zone      int64
	ZoneKnown bool
	// BanTimes are the jails' ban times, nanoseconds.
	BanTimes map[string]time.Duration
}

// place is one that waits until all that was told before it is acknowledged.
type place struct {
	savedPlace
	told   uint64
	waits  bool
	next   time.Time
	failed bool
}

// missed is what lines said that were written while this process was away. A nil one takes nothing.
type missed struct {
	banTimes map[string]time.Duration
	unbans   map[expectKey]line
	restart  line // the last that tells of a jail's
}

func (o *Observer) loadPlace() {
	if o.cfg.StatePath == "" {
		return
	}
	b, err := os.ReadFile(o.cfg.StatePath)
	if err == nil {
		err = json.Unmarshal(b, &o.saved)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		o.saved = savedPlace{}
		o.log.Warn("how far fail2ban's log was read isn't known: what was unbanned meanwhile has no cause", slog.String("error", err.Error()))
	}
}

// savePlace saves how far the log was read, at rest and once all that it told is acknowledged.
func (o *Observer) savePlace() {
	if o.cfg.StatePath == "" || o.state != stateUp || !o.synced || o.resync || o.tail.file == nil || o.tail.skip || len(o.pending) > 0 {
		return
	}
	p, now := &o.place, o.now()
	if !p.waits {
		at := o.tail.at - int64(len(o.tail.rest))
		if now.Before(p.next) || (at == p.Offset && o.peer == p.Server) {
			return
		}
		id, ok := o.tail.info.Sys().(*syscall.Stat_t)
		sum, err := sumBefore(o.tail.file, at)
		if !ok || err != nil {
			return
		}
		p.savedPlace = savedPlace{
			Path: o.tail.path, Device: id.Dev, Inode: id.Ino, Offset: at, Sum: sum, Server: o.peer,
			Zone: int64(o.clock.offset / time.Second), ZoneKnown: o.clock.foreign, BanTimes: map[string]time.Duration{},
		}
		for _, j := range o.jails {
			if j.settling {
				return
			}
			p.BanTimes[j.name] = j.banTime
		}
		p.told, _ = o.feed.told(0)
		p.waits = true
	}
	if _, acked := o.feed.told(p.told); !acked {
		return
	}
	p.waits, p.next = false, now.Add(savePlaceEvery)
	b, err := json.Marshal(p.savedPlace)
	if err == nil {
		err = os.WriteFile(o.cfg.StatePath+".new", b, 0o600)
	}
	if err == nil {
		err = os.Rename(o.cfg.StatePath+".new", o.cfg.StatePath)
	}
	if failed := err != nil; failed != p.failed {
		p.failed = failed
		if failed {
			o.log.Warn("how far fail2ban's log was read can't be saved", slog.String("error", err.Error()))
		}
	}
}

func sumBefore(file *os.File, at int64) (uint32, error) {
	b := make([]byte, min(at, sumLength))
	_, err := file.ReadAt(b, at-int64(len(b)))
	return crc32.ChecksumIEEE(b), err
}

// is reports whether a file is the one of the place, and still holds what was read of it.
func (p *savedPlace) is(file *os.File) bool {
	info, err := file.Stat()
	if err != nil || info.Size() < p.Offset {
		return false
	}
	id, ok := info.Sys().(*syscall.Stat_t)
	if !ok || id.Dev != p.Device || id.Ino != p.Inode {
		return false
	}
	sum, err := sumBefore(file, p.Offset)
	return err == nil && sum == p.Sum
}

// catchUp reads the lines between the place that was saved and the end at which the log was just opened.
func (o *Observer) catchUp() {
	p := o.saved
	o.saved = savedPlace{}
	if p.Path == "" || o.synced {
		return
	}
	var why string
	switch {
	case p.Path != o.tail.path:
		why = "it is another log"
	case p.Server != o.peer:
		why = "fail2ban was restarted"
	case o.level != "INFO" && o.level != "DEBUG" && o.level != "TRACEDEBUG" && o.level != "HEAVYDEBUG":
		why = "its level hides when jails stop"
	default:
		if p.ZoneKnown && !o.clock.known {
			o.clock = zoneOf(time.Duration(p.Zone)*time.Second, o.now())
		}
		why = o.readMissed(&p)
	}
	if why != "" {
		o.missed = nil
		o.log.Info("lines of fail2ban's log from while this process was away don't count", slog.String("because", why))
	}
}

// readMissed returns why it couldn't.
func (o *Observer) readMissed(p *savedPlace) string {
	o.missed = &missed{banTimes: p.BanTimes, unbans: map[expectKey]line{}}
	from := p.Offset
	if !p.is(o.tail.file) {
		old, err := os.Open(p.Path + ".1")
		if err != nil {
			return "it was replaced"
		}
		defer old.Close() //nolint:errcheck // only read
		if !p.is(old) {
			return "it was replaced"
		}
		info, err := old.Stat()
		if err != nil || !o.missed.read(&tail{file: old, at: from}, info.Size()) {
			return "there are too many"
		}
		from = 0
	}
	t := tail{file: o.tail.file, at: from}
	if !o.missed.read(&t, o.tail.at) {
		return "there are too many"
	}
	// The log may have been opened within a line.
	o.tail.rest, o.tail.skip = t.rest, t.skip
	return ""
}

// read takes the lines from where t is to an end, if they aren't too many.
func (m *missed) read(t *tail, end int64) bool {
	if end-t.at > maxBacklog {
		return false
	}
	b := make([]byte, tailChunk)
	for t.at < end {
		n, err := t.file.ReadAt(b[:min(int64(len(b)), end-t.at)], t.at)
		t.at += int64(n)
		t.split(b[:n], func(text []byte) {
			if l, ok := parseLine(text); ok {
				m.take([]line{l})
			}
		})
		if err != nil && !errors.Is(err, io.EOF) || n == 0 {
			return false
		}
	}
	return len(m.unbans) < maxMissed
}

// take notes what lines say.
func (m *missed) take(lines []line) {
	if m == nil {
		return
	}
	for _, l := range lines {
		switch {
		case l.kind == kindUnban && len(m.unbans) < maxMissed:
			m.unbans[expectKey{l.jail, l.prefix}] = l
		case l.kind == kindShutdown:
			clear(m.unbans)
		case l.kind == kindRestore, l.kind == kindReload && l.jail != "":
			m.restart = l
			for key := range m.unbans {
				if key.jail == l.jail {
					delete(m.unbans, key)
				}
			}
		}
	}
}

// restarting reports whether a jail may be reading its bans back yet.
func (o *Observer) restarting() bool {
	if o.missed == nil || o.missed.restart.jail == "" {
		return false
	}
	ago := o.now().Sub(o.clock.utc(o.missed.restart.at))
	return ago > -slack && ago < 2*settleStill
}

// tellMissed tells the unbans that were missed, once all was read in full.
func (o *Observer) tellMissed() {
	if o.missed == nil {
		return
	}
	told := 0
	for key, l := range o.missed.unbans {
		j := o.jails[key.jail]
		before, known := o.missed.banTimes[key.jail]
		if j == nil || !known || before != j.banTime {
			continue // a shorter ban time ends bans too
		}
		if _, banned := j.bans[key.prefix]; banned {
			continue
		}
		c := change(key.jail, key.prefix)
		u := &hostv1.Unban{}
		if id := o.ordered("", key.prefix); id != "" {
			u.SetCause(fleetbanv1.UnbanCause_UNBAN_CAUSE_COMMAND)
			u.SetCommandId(id)
		}
		c.SetUnban(u)
		o.emit(c, o.clock.utc(l.at))
		told++
	}
	o.log.Info("fail2ban's log was read from where the process before had stopped", slog.Int("unbans", told))
	o.missed = nil
}
