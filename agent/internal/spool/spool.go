package spool

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	hostv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/host/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// Options bounds a spool. The zero value gives the defaults.
type Options struct {
	// MaxEvents is how many events may wait for an acknowledgement. Default: 100,000.
	MaxEvents int
	// MaxBytes is how large the journal may be. Default: 32 MiB.
	MaxBytes int64
	// MaxMemory is how many events wait in memory while the disk refuses. Default: 4,096.
	MaxMemory int
	// KeepEvents and KeepFor say how many acknowledged events are kept to be sent again, and for how long. Defaults:
	// 10,000 and 10 minutes; whichever is reached first.
	KeepEvents int
	KeepFor    time.Duration

	// now replaces the kernel's clocks in tests.
	now func() instant
}

const (
	fileName = "events.journal"
	// batch is how many changes go into one frame of the journal.
	batch = 1000
	// compactFrom is the size below which a journal is left alone.
	compactFrom = 1 << 20
	// retryDisk is how long a refusing disk is left alone.
	retryDisk = 5000 // ms
)

// ErrRotated says that the control plane has acknowledged more than this spool has: it was rolled back. It has a new id
// and new sequence numbers now; the next Hello must name it.
var ErrRotated = errors.New("the spool was rolled back and began anew")

// Spool is the table of known bans and the queue of events. Safe for concurrent use.
type Spool struct {
	dir    string
	o      Options
	notify chan struct{}

	mu    sync.Mutex
	id    string
	table table
	// first is the sequence of offsets[0]; next the one that the next event gets.
	first   uint64
	offsets []int64 // where each kept event's record is in the file; onlyMemory for those of memory
	memory  [][]byte
	acked   uint64
	marks   []mark
	lost    uint64
	primed  bool
	skipped bool
	under   *baseline
	// at is the place through which observations are in the table, safe the one through which they are on the disk.
	at, safe place

	file      *os.File // nil if there never was one
	broken    bool     // nothing is to be appended to file
	size      int64
	compactAt int64
	problem   string
	retryAt   int64
}

const onlyMemory = -1

// place is a position in what the helper told.
type place struct{ feed, through uint64 }

// mark remembers when a sequence was acknowledged.
type mark struct {
	through uint64
	atMS    int64
}

// Open reads the spool in dir or begins one. It fails only where there is something in dir that it doesn't understand:
// a disk that refuses is a Problem, not an error.
func Open(dir string, o Options) (*Spool, error) {
	if o.MaxEvents == 0 {
		o.MaxEvents = 100_000
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = 32 << 20
	}
	if o.MaxMemory == 0 {
		o.MaxMemory = 4096
	}
	if o.KeepEvents == 0 {
		o.KeepEvents = 10_000
	}
	if o.KeepFor == 0 {
		o.KeepFor = 10 * time.Minute
	}
	if o.now == nil {
		o.now = systemClock()
	}
	s := &Spool{broken: true, dir: dir, o: o, notify: make(chan struct{}, 1), id: newID(), table: table{}, first: 1}
	rewrite, err := s.load()
	if err != nil {
		return nil, fmt.Errorf("open spool %s: %w", filepath.Join(dir, fileName), err)
	}
	if rewrite {
		s.compact()
	}
	s.marks = []mark{{s.acked, s.o.now().bootMS}}
	return s, nil
}

// load reads the journal and reports whether it must be written anew.
func (s *Spool) load() (rewrite bool, err error) {
	f, err := os.OpenFile(filepath.Join(s.dir, fileName), os.O_RDWR, 0o600) //nolint:gosec // our own path
	if errors.Is(err, os.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	m := make([]byte, volatileMark)
	_, err = io.ReadFull(f, m)
	rotate := bytes.Equal(m, markVolatile)
	if err != nil || (!rotate && !bytes.Equal(m, markClean)) {
		_ = f.Close()
		return false, errNotJournal
	}
	head := false
	var next place
	end, err := scan(bufio.NewReaderSize(f, 64<<10), func(kind byte, body []byte, offset int64) error {
		switch kind {
		case kindPlace:
			if len(body) == 16 {
				next = place{binary.LittleEndian.Uint64(body), binary.LittleEndian.Uint64(body[8:])}
			}
		case kindEvents, kindPrimed:
			s.at, s.safe = next, next
		}
		if kind == kindHead {
			head = true
			return s.readHead(body)
		}
		if !head {
			return errNotJournal
		}
		return s.replay(kind, body, offset)
	})
	if err == nil && !head {
		err = errNotJournal
	}
	if err == nil {
		err = f.Truncate(end)
	}
	if err != nil {
		_ = f.Close()
		return false, err
	}
	s.file, s.broken, s.size, s.compactAt = f, false, end, max(compactFrom, 2*end)
	if rotate {
		s.rotate()
	}
	return rotate, nil
}

func (s *Spool) replay(kind byte, body []byte, offset int64) error {
	switch kind {
	case kindTable, kindEvents:
		return eachRecord(body, func(at int, rec []byte) error {
			c, err := readRecord(rec)
			if err != nil {
				return err
			}
			s.table.apply(c)
			if kind == kindEvents {
				s.offsets = append(s.offsets, offset+int64(at))
			}
			return nil
		})
	case kindAck:
		if len(body) == 8 {
			s.acked = max(s.acked, min(binary.LittleEndian.Uint64(body), s.last()))
		}
	case kindPrimed:
		s.primed = true
	}
	return nil // a kind of a later version that this one can do without
}

// A head is the id's length and the id, then the next sequence, acknowledged, lost, and a byte that says primed.
func (s *Spool) head() []byte {
	b := append([]byte{byte(len(s.id))}, s.id...)
	b = binary.LittleEndian.AppendUint64(b, s.first)
	b = binary.LittleEndian.AppendUint64(b, s.acked)
	b = binary.LittleEndian.AppendUint64(b, s.lost)
	if s.primed {
		return append(b, 1)
	}
	return append(b, 0)
}

func (s *Spool) readHead(b []byte) error {
	if len(b) < 1 || len(b) != 1+int(b[0])+25 || b[0] == 0 || b[0] > 64 {
		return errNotJournal
	}
	n := int(b[0]) + 1
	s.id, b = string(b[1:n]), b[n:]
	s.first, s.acked, s.lost = binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:]), binary.LittleEndian.Uint64(b[16:])
	s.primed = b[24] != 0
	if s.first == 0 {
		return errNotJournal
	}
	return nil
}

// A record is its length (varint), when it happened, and the event.
func appendRecord(dst []byte, c change) []byte {
	body, err := proto.Marshal(c.event)
	if err != nil {
		body = nil // never: valid saw to it
	}
	dst = binary.AppendUvarint(dst, uint64(instantLen+len(body)))
	dst = c.at.append(dst)
	return append(dst, body...)
}

func eachRecord(b []byte, f func(at int, rec []byte) error) error {
	for at := 0; at < len(b); {
		n, w := binary.Uvarint(b[at:])
		if w <= 0 || n < instantLen || n > uint64(len(b)-at-w) {
			return errNotJournal
		}
		end := at + w + int(n) //nolint:gosec // bounded above
		if err := f(at, b[at+w:end]); err != nil {
			return err
		}
		at = end
	}
	return nil
}

func readRecord(rec []byte) (change, error) {
	e := new(fleetbanv1.Event)
	if err := proto.Unmarshal(rec[instantLen:], e); err != nil {
		return change{}, fmt.Errorf("event: %w", err)
	}
	return change{readInstant(rec), e}, nil
}

func (s *Spool) next() uint64 { return s.first + uint64(len(s.offsets)) }
func (s *Spool) last() uint64 { return s.next() - 1 }

func (s *Spool) waiting() int { return int(s.last() - min(s.acked, s.last())) } //nolint:gosec // bounded by MaxEvents

// Observe takes in observations, in order. What they change is durable when it returns, or in memory where the disk
// refuses.
func (s *Spool) Observe(observations ...*hostv1.ObserveResponse) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.maintain()
	w := writer{s: s, now: s.o.now()}
	w.at = s.at
	for _, o := range observations {
		switch o.WhichObservation() {
		case hostv1.ObserveResponse_Baseline_case:
			s.observePage(&w, o)
		case hostv1.ObserveResponse_Change_case:
			if s.under != nil {
				if len(s.under.behind) < maxBaseline {
					s.under.behind = append(s.under.behind, o.GetChange())
				}
				continue
			}
			s.table.observeChange(w.now, o.GetChange(), w.emit)
			w.reach(o)
		}
	}
	w.flush()
	s.at = w.at
}

func (s *Spool) observePage(w *writer, o *hostv1.ObserveResponse) {
	page := o.GetBaseline()
	if page.GetPage() == 0 || s.under == nil {
		s.under = &baseline{jails: map[string]bool{}, bans: table{}, at: w.now}
	}
	s.under.add(w.now, page)
	if !page.GetLast() {
		return
	}
	b := s.under
	s.under, s.skipped = nil, false
	s.table.observeBaseline(w.now, b, !s.primed, w.emit)
	w.reach(o)
	w.flush()
	if !s.primed && !s.skipped {
		s.primed = true
		s.write(append(w.at.frame(), frame(kindPrimed, nil)...))
	}
	for _, c := range b.behind {
		s.table.observeChange(w.now, c, w.emit)
	}
}

// Taken returns through where of which feed observations are taken in: what Observe need not be told again.
func (s *Spool) Taken() (feed, through uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.at.feed, s.at.through
}

// Safe is Taken, less what would be lost if this process died: through there nobody need remember observations.
func (s *Spool) Safe() (feed, through uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.broken && len(s.memory) == 0 {
		return s.at.feed, s.at.through // nothing came of what was taken in since it was written
	}
	return s.safe.feed, s.safe.through
}

// Interrupted forgets a baseline under way: the observer went away between its pages.
func (s *Spool) Interrupted() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.under = nil
}

// WantsBaseline reports whether changes were left out for want of room and there is room again: only a new baseline
// brings them back.
func (s *Spool) WantsBaseline() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.skipped && s.room() > s.o.MaxMemory/2
}

// ID names the spool: 32 hexadecimal digits.
func (s *Spool) ID() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.id
}

// Positions returns the last sequence that is acknowledged and the last that was written.
func (s *Spool) Positions() (acked, last uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.acked, s.last()
}

// Appended is signalled when there are more events.
func (s *Spool) Appended() <-chan struct{} { return s.notify }

// Begin says what the control plane has: events go on from through+1. ErrRotated means that it has more than the spool
// ever had.
func (s *Spool) Begin(through uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if through > s.last() {
		s.rotate()
		s.compact()
		return ErrRotated
	}
	s.ack(through)
	return nil
}

// Ack says that the control plane has stored everything through a sequence of the spool of that id.
func (s *Spool) Ack(id string, through uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if id != s.id || through > s.last() {
		return
	}
	s.ack(through)
}

func (s *Spool) ack(through uint64) {
	if through <= s.acked {
		return
	}
	s.acked = through
	now := s.o.now().bootMS
	if n := len(s.marks); n > 0 && now-s.marks[n-1].atMS < s.o.KeepFor.Milliseconds()/16 && n > 1 {
		s.marks[n-1].through = through // keeps those a little longer
		s.marks[n-1].atMS = now
	} else {
		s.marks = append(s.marks, mark{through, now})
	}
	// Not synced: the control plane's Welcome says it again.
	if !s.broken {
		f := frame(kindAck, binary.LittleEndian.AppendUint64(nil, through))
		if _, err := s.file.WriteAt(f, s.size); err == nil {
			s.size += int64(len(f))
		}
	}
	s.maintain()
}

// Next returns up to limit events after a sequence, oldest first, with their ages as of now. It starts at the oldest
// that is kept where the one asked for is gone.
func (s *Spool) Next(after uint64, limit int) ([]*fleetbanv1.Event, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	from := max(after+1, s.first)
	if from > s.last() {
		return nil, nil
	}
	n := min(uint64(limit), s.next()-from) //nolint:gosec // limit is positive
	events := make([]*fleetbanv1.Event, 0, n)
	now := s.o.now()
	for seq := from; seq < from+n; seq++ {
		rec, err := s.record(seq)
		if err != nil {
			return nil, fmt.Errorf("read event %d of spool: %w", seq, err)
		}
		c, err := readRecord(rec)
		if err != nil {
			return nil, fmt.Errorf("read event %d of spool: %w", seq, err)
		}
		c.event.SetSeq(seq)
		c.event.SetAgeMs(c.at.age(now))
		events = append(events, c.event)
	}
	return events, nil
}

// record reads one event's record.
func (s *Spool) record(seq uint64) ([]byte, error) {
	i := seq - s.first
	offset := s.offsets[i]
	if offset == onlyMemory {
		rec := s.memory[i-uint64(len(s.offsets)-len(s.memory))] //nolint:gosec // memory holds the last of offsets
		_, w := binary.Uvarint(rec)
		return rec[w:], nil
	}
	if s.file == nil {
		return nil, errors.New("its file is gone")
	}
	// One read gets all but the largest.
	var buf [256]byte
	got, err := s.file.ReadAt(buf[:], offset)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	n, w := binary.Uvarint(buf[:got])
	if w <= 0 || n < instantLen || n > maxFrame {
		return nil, errNotJournal
	}
	rec := make([]byte, n)
	if copied := copy(rec, buf[w:got]); uint64(copied) < n {
		if _, err := s.file.ReadAt(rec[copied:], offset+int64(w+copied)); err != nil {
			return nil, err
		}
	}
	return rec, nil
}

// Health is the spool's part of a host's health.
func (s *Spool) Health() *fleetbanv1.SpoolHealth {
	s.mu.Lock()
	defer s.mu.Unlock()
	problem := s.problem
	if problem == "" && s.skipped {
		problem = fmt.Sprintf("%d events wait for the control plane and there is room for no more; they are found again once it answers", s.waiting())
	}
	return fleetbanv1.SpoolHealth_builder{
		Waiting: uint64(s.waiting()), Bytes: uint64(s.size), Lost: s.lost, Problem: problem, //nolint:gosec // neither is negative
	}.Build()
}

// Close writes what can be written.
func (s *Spool) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.file == nil {
		return nil
	}
	err := errors.Join(fdatasync(s.file), s.file.Close())
	s.file, s.broken = nil, true
	return err
}

func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}
