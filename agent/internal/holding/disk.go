package holding

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

// The file is a magic and then frames, all numbers big-endian:
//
//	frame    length of payload (4 bytes), its CRC-32C (4), payload
//	payload  op (1), set kind (1), flags (1), length of name (1), name, epoch (8), version (8), digest (8),
//	         number of records (4), records
//	record   length of packed prefix (1), packed prefix, kind (1), since (8), expires (8), version (8), length of MAC (1), MAC
//
// Each frame carries the cursor that the set is at after it.
const (
	fileName = "sets"
	magic    = "FBSETS1\n"

	frameHead = 8
	maxFrame  = 64 << 20

	compactAbove = 1 << 20
	imageRecords = 5000 // a frame of an image has at most so many

	flagMerged = 1
	flagFirst  = 2
	flagLast   = 4
)

type op uint8

const (
	opDelta  op = 1
	opImage  op = 2 // the whole set, in one or more frames from flagFirst to flagLast
	opCursor op = 3
	opDrop   op = 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// frame is what append writes.
type frame struct {
	op      op
	set     *set
	records []keyed // of opDelta
}

// disk is the file. What can't be written is remembered as missing, and maintain writes everything anew until it works.
type disk struct {
	log *slog.Logger
	dir string
	// lock keeps a second process out.
	lock *os.File

	maintaining sync.Mutex // held by maintain throughout, before mu

	mu       sync.Mutex
	file     *os.File
	size     int64 // good bytes in file
	live     int64 // size after the last compaction
	unsynced bool
	// missing: memory is ahead of the file.
	missing bool
	problem string
	buf     []byte
}

func openDisk(dir string, log *slog.Logger, replay func(loaded) error) (*disk, error) {
	lock, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("lock %s: %w; another helper uses this state folder", dir, err)
	}
	d := &disk{log: log, dir: dir, lock: lock}
	if err := d.load(replay); err != nil {
		_ = lock.Close()
		return nil, err
	}
	return d, nil
}

// unlock lets go of the folder. Closing alone would leave the lock to a child that is between its fork and its exec.
func (d *disk) unlock() error {
	return errors.Join(unix.Flock(int(d.lock.Fd()), unix.LOCK_UN), d.lock.Close())
}

func (d *disk) path() string { return filepath.Join(d.dir, fileName) }

func (d *disk) load(replay func(loaded) error) error {
	f, err := os.OpenFile(d.path(), os.O_RDWR|os.O_CREATE, 0o600)
	if errors.Is(err, unix.EROFS) || errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return d.loadOnly(err, replay)
	}
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return err
	}
	good, why := read(f, info.Size(), replay)
	if why != nil && good == 0 && info.Size() > int64(len(magic)) {
		// Not our file at all, or of a later version: put aside rather than overwritten.
		aside := d.path() + ".unreadable"
		if err := os.Rename(d.path(), aside); err != nil {
			_ = f.Close()
			return err
		}
		_ = f.Close()
		d.log.Error("The saved sets can't be read and are put aside; they come again from the control plane", "file", aside, "error", why)
		return d.load(replay)
	}
	if good < info.Size() {
		d.log.Warn("The end of the saved sets was cut off by a crash; the state before it is used", "file", d.path(), "at", good, "of", info.Size(), "error", why)
		if err := f.Truncate(good); err != nil {
			_ = f.Close()
			return err
		}
	}
	d.file, d.size, d.live = f, good, good
	if good == 0 {
		if _, err := f.WriteAt([]byte(magic), 0); err != nil {
			d.missing, d.problem = true, "the state folder can't be written: "+err.Error()
		} else {
			d.size = int64(len(magic))
		}
	}
	return nil
}

// loadOnly reads what is saved where nothing can be written because of why: a file system that turned read-only or is full.
// What is held must be enforced all the same; maintain tries to write it anew until it can.
func (d *disk) loadOnly(why error, replay func(loaded) error) error {
	f, err := os.Open(d.path())
	if errors.Is(err, fs.ErrNotExist) {
		f, err = os.Open(os.DevNull) // nothing is held yet
	}
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return err
	}
	good, _ := read(f, info.Size(), replay)
	d.file, d.size, d.live, d.missing = f, good, good, true
	d.setProblem(why)
	return nil
}

// read goes through the frames of a file of size bytes and returns how far they are good, and why not further.
func read(f io.ReaderAt, size int64, replay func(loaded) error) (int64, error) {
	r := bufio.NewReaderSize(io.NewSectionReader(f, 0, size), 1<<16)
	var head [frameHead]byte
	if _, err := io.ReadFull(r, head[:len(magic)]); err != nil {
		return 0, err
	}
	if string(head[:]) != magic {
		return 0, errors.New("unknown format")
	}
	at := int64(len(magic))
	var payload []byte
	var records []keyed
	for {
		if _, err := io.ReadFull(r, head[:]); err != nil {
			if errors.Is(err, io.EOF) {
				return at, nil
			}
			return at, err
		}
		n := int64(binary.BigEndian.Uint32(head[:]))
		if n > maxFrame || n > size-at-frameHead {
			return at, fmt.Errorf("frame of %d bytes", n)
		}
		if int64(cap(payload)) < n {
			payload = make([]byte, n)
		}
		payload = payload[:n]
		if _, err := io.ReadFull(r, payload); err != nil {
			return at, err
		}
		if crc32.Checksum(payload, castagnoli) != binary.BigEndian.Uint32(head[4:]) {
			return at, errors.New("wrong checksum")
		}
		l, err := decode(payload, records[:0])
		if err != nil {
			return at, err
		}
		if err := replay(l); err != nil {
			return at, err
		}
		records = l.records
		at += frameHead + n
	}
}

// loaded is a frame that was read.
type loaded struct {
	op                     op
	kind                   fleetbanv1.SetKind
	flags                  uint8
	name                   string
	epoch, version, digest uint64
	records                []keyed
}

var errShort = errors.New("frame is too short for what it says")

func decode(b []byte, records []keyed) (loaded, error) {
	if len(b) < 4 {
		return loaded{}, errShort
	}
	nameEnd := 4 + int(b[3])
	if len(b) < nameEnd+28 {
		return loaded{}, errShort
	}
	l := loaded{op: op(b[0]), kind: fleetbanv1.SetKind(b[1]), flags: b[2], name: string(b[4:nameEnd]), records: records}
	b = b[nameEnd:]
	l.epoch, l.version, l.digest = binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint64(b[16:])
	count := binary.BigEndian.Uint32(b[24:])
	b = b[28:]
	for range count {
		if len(b) < 1 || len(b) < 1+int(b[0])+26 {
			return l, errShort
		}
		n := int(b[0])
		p, err := prefix.Unpack(b[1 : 1+n])
		if err != nil {
			return l, err
		}
		b = b[1+n:]
		kr := keyed{key: keyOf(p), record: record{
			kind: b[0], since: int64(binary.BigEndian.Uint64(b[1:])), expires: int64(binary.BigEndian.Uint64(b[9:])), //nolint:gosec // bits
			version: binary.BigEndian.Uint64(b[17:]), macLen: b[25],
		}}
		b = b[26:]
		if kr.macLen > macLen || len(b) < int(kr.macLen) || kr.kind < present || kr.kind > expired {
			return l, errShort
		}
		copy(kr.mac[:], b[:kr.macLen])
		b = b[kr.macLen:]
		l.records = append(l.records, kr)
	}
	if len(b) != 0 {
		return l, errors.New("frame is longer than what it says")
	}
	return l, nil
}

// appendFrame writes one frame with the records that next gives until it returns false.
func appendFrame(buf []byte, o op, flags uint8, s *set, next func() (key, record, bool)) []byte {
	at := len(buf)
	buf = append(buf, make([]byte, frameHead)...)
	if s.merged {
		flags |= flagMerged
	}
	buf = append(buf, byte(o), byte(s.kind), flags, byte(len(s.name)))
	buf = append(buf, s.name...)
	buf = binary.BigEndian.AppendUint64(buf, s.epoch)
	buf = binary.BigEndian.AppendUint64(buf, s.version)
	buf = binary.BigEndian.AppendUint64(buf, s.digest)
	countAt, count := len(buf), uint32(0)
	buf = binary.BigEndian.AppendUint32(buf, 0)
	for k, r, ok := next(); ok; k, r, ok = next() {
		lenAt := len(buf)
		buf = append(buf, 0)
		buf = prefix.AppendPacked(buf, k.prefix())
		buf[lenAt] = byte(len(buf) - lenAt - 1) //nolint:gosec // 5 or 17
		buf = append(buf, r.kind)
		buf = binary.BigEndian.AppendUint64(buf, uint64(r.since))   //nolint:gosec // bits
		buf = binary.BigEndian.AppendUint64(buf, uint64(r.expires)) //nolint:gosec // bits
		buf = binary.BigEndian.AppendUint64(buf, r.version)
		buf = append(buf, r.macLen)
		buf = append(buf, r.mac[:r.macLen]...)
		count++
	}
	binary.BigEndian.PutUint32(buf[countAt:], count)
	payload := buf[at+frameHead:]
	binary.BigEndian.PutUint32(buf[at:], uint32(len(payload))) //nolint:gosec // bounded by maxRecords
	binary.BigEndian.PutUint32(buf[at+4:], crc32.Checksum(payload, castagnoli))
	return buf
}

func nothing() (key, record, bool) { return key{}, record{}, false }

// writeImage writes the whole set to w, a few frames at a time.
func writeImage(w io.Writer, s *set, buf []byte) ([]byte, error) {
	keys := make([]key, 0, imageRecords)
	first := uint8(flagFirst)
	flush := func(flags uint8) error {
		i := -1
		buf = appendFrame(buf[:0], opImage, first|flags, s, func() (key, record, bool) {
			if i++; i == len(keys) {
				return nothing()
			}
			return keys[i], s.records[keys[i]], true
		})
		first, keys = 0, keys[:0]
		_, err := w.Write(buf)
		return err
	}
	for k := range s.records {
		if keys = append(keys, k); len(keys) == imageRecords {
			if err := flush(0); err != nil {
				return buf, err
			}
		}
	}
	return buf, flush(flagLast)
}

// append writes f. It doesn't fail: what can't be written is written later, by maintain.
func (d *disk) append(f frame) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.missing || d.file == nil {
		d.missing = true
		return
	}
	w := &offsetWriter{f: d.file, at: d.size}
	var err error
	if f.op == opImage {
		d.buf, err = writeImage(w, f.set, d.buf)
	} else {
		i := -1
		d.buf = appendFrame(d.buf[:0], f.op, 0, f.set, func() (key, record, bool) {
			if i++; i >= len(f.records) {
				return nothing()
			}
			return f.records[i].key, f.records[i].record, true
		})
		_, err = w.Write(d.buf)
	}
	if cap(d.buf) > 1<<20 {
		d.buf = nil
	}
	if err != nil {
		_ = d.file.Truncate(d.size)
		d.missing = true
		d.setProblem(err)
		return
	}
	d.size = w.at
	d.unsynced = true
}

type offsetWriter struct {
	f  *os.File
	at int64
}

func (w *offsetWriter) Write(b []byte) (int, error) {
	n, err := w.f.WriteAt(b, w.at)
	w.at += int64(n)
	return n, err
}

func (d *disk) setProblem(err error) {
	text := "the sets can't be saved: " + err.Error()
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		text = "the sets can't be saved, the disk is full: free some space on the file system of " + d.dir
	case errors.Is(err, unix.EROFS), errors.Is(err, fs.ErrPermission):
		text = "the sets can't be saved: make " + d.dir + " writable (" + err.Error() + ")"
	}
	if d.problem == "" { // while it lasts, its words may change with each try
		d.log.Error("The held sets can't be saved; they stay in force and it is tried again", "dir", d.dir, "error", err)
	}
	d.problem = text
}

func (d *disk) problemText() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.problem
}

func (d *disk) maintain(h *Holding) {
	d.maintaining.Lock()
	defer d.maintaining.Unlock()
	d.mu.Lock()
	missing, unsynced, file := d.missing, d.unsynced, d.file
	grown := d.size > max(compactAbove, 2*d.live)
	d.unsynced = false
	d.mu.Unlock()
	if file == nil {
		return
	}
	if missing || grown {
		if err := d.compact(h); err != nil {
			d.mu.Lock()
			d.setProblem(err)
			d.mu.Unlock()
		}
		return
	}
	if !unsynced {
		return
	}
	// Without mu, so that no Apply waits for the disk. Only maintain changes which file it is.
	if err := unix.Fdatasync(int(file.Fd())); err != nil {
		// Whether the pages were written is unknown after this: write everything anew.
		d.mu.Lock()
		d.missing = true
		d.setProblem(err)
		d.mu.Unlock()
	}
}

// compact writes everything into a new file and puts it in the old one's place. Applies go on while the disk is synced:
// what they append to the old file meanwhile is copied behind.
func (d *disk) compact(h *Holding) (err error) {
	f, err := os.OpenFile(d.path()+".new", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(d.path() + ".new")
		}
	}()
	h.mu.RLock()
	d.mu.Lock()
	mark := d.size
	d.missing = false
	d.mu.Unlock()
	size, err := writeAll(f, h)
	h.mu.RUnlock()
	if err == nil {
		err = f.Sync()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		d.missing = true
		return err
	}
	live := size
	if n := d.size - mark; n > 0 {
		if _, err = io.Copy(&offsetWriter{f: f, at: size}, io.NewSectionReader(d.file, mark, n)); err != nil {
			d.missing = true
			return err
		}
		size += n
		d.unsynced = true
	}
	if err = os.Rename(d.path()+".new", d.path()); err != nil {
		d.missing = true
		return err
	}
	_ = d.lock.Sync() // the folder's entry
	_ = d.file.Close()
	d.file, d.size, d.live = f, size, live
	if !d.missing {
		if d.problem != "" {
			d.log.Info("The held sets are saved again", "dir", d.dir)
		}
		d.problem = ""
	}
	return nil
}

func writeAll(f *os.File, h *Holding) (int64, error) {
	w := bufio.NewWriterSize(f, 1<<16)
	if _, err := w.WriteString(magic); err != nil {
		return 0, err
	}
	var buf []byte
	var err error
	for _, name := range h.names {
		if s := h.sets[name]; s.epoch != 0 || len(s.records) > 0 {
			if buf, err = writeImage(w, s, buf); err != nil {
				return 0, err
			}
		}
	}
	if err := w.Flush(); err != nil {
		return 0, err
	}
	return f.Seek(0, io.SeekCurrent)
}

func (d *disk) close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.file == nil {
		return os.ErrClosed
	}
	err := errors.Join(d.file.Sync(), d.file.Close(), d.unlock())
	d.file = nil
	return err
}

// replay applies a frame that was read at Open.
func (h *Holding) replay(l loaded) error {
	if err := checkName(l.name); err != nil || !known(l.kind) {
		return errors.New("frame of an unknown set")
	}
	s := h.get(l.name)
	switch l.op {
	case opDelta, opCursor:
		s.apply(l.records)
	case opImage:
		if l.flags&flagFirst != 0 {
			s.pending = &pending{records: make(map[key]record, len(l.records))}
		}
		if s.pending == nil {
			return errors.New("image without its beginning")
		}
		for _, kr := range l.records {
			s.pending.records[kr.key] = kr.record
		}
		if l.flags&flagLast == 0 {
			s.kind = l.kind
			h.keep(s)
			return nil
		}
		records := s.pending.records
		*s = set{name: s.name, records: records}
		for k, r := range records {
			s.digest ^= r.hash(k)
			if r.kind == present {
				s.present++
			}
		}
	case opDrop:
		delete(h.sets, l.name)
		h.forget(l.name)
		return nil
	default:
		return fmt.Errorf("frame of unknown kind %d", l.op)
	}
	s.kind, s.epoch, s.version = l.kind, l.epoch, l.version
	s.merged = l.flags&flagMerged != 0
	// Said with each frame; what counts is the last.
	s.stale = s.digest != l.digest
	h.keep(s)
	return nil
}
