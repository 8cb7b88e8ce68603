package spool

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"

	hostv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/host/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// writer gathers changes into frames. Each is applied to the table when it is gathered, so that the next one is
// compared with it.
type writer struct {
	s       *Spool
	now     instant
	records [][]byte
	at      place // through which all is in records, or written
}

// reach notes that all that an observation means was emitted.
func (w *writer) reach(o *hostv1.ObserveResponse) {
	if o.GetFeed() != 0 && o.GetPosition() != 0 {
		w.at = place{o.GetFeed(), o.GetPosition()}
	}
}

func (p place) frame() []byte {
	if p.feed == 0 {
		return nil
	}
	b := binary.LittleEndian.AppendUint64(make([]byte, 0, 16), p.feed)
	return frame(kindPlace, binary.LittleEndian.AppendUint64(b, p.through))
}

// emit takes a change if there is room; else the table stays as it is, for a later baseline to find it.
func (w *writer) emit(c change) bool {
	if len(w.records) >= batch {
		w.flush()
	}
	if w.s.room() <= len(w.records) {
		w.s.lost++
		w.s.skipped = true
		return true
	}
	w.s.table.apply(c)
	w.records = append(w.records, appendRecord(nil, c))
	return true
}

// flush makes what was gathered durable, or keeps it in memory, and tells the sender.
func (w *writer) flush() {
	if len(w.records) == 0 {
		return
	}
	s := w.s
	var body []byte
	head := w.at.frame()
	offsets := make([]int64, 0, len(w.records))
	for _, rec := range w.records {
		offsets = append(offsets, s.size+int64(len(head))+frameHeader+1+int64(len(body)))
		body = append(body, rec...)
	}
	written := s.write(append(head, frame(kindEvents, body)...))
	s.at = w.at
	if written {
		s.safe = s.at
		s.offsets = append(s.offsets, offsets...)
	} else {
		for _, rec := range w.records {
			s.offsets = append(s.offsets, onlyMemory)
			s.memory = append(s.memory, rec)
		}
	}
	w.records = w.records[:0]
	s.maintain()
	select {
	case s.notify <- struct{}{}:
	default:
	}
}

// room is how many more events may be taken.
func (s *Spool) room() int {
	room := s.o.MaxEvents - s.waiting()
	switch {
	case s.broken:
		room = min(room, s.o.MaxMemory-len(s.memory))
	case s.size >= s.o.MaxBytes:
		room = 0
	}
	return max(0, room)
}

// maintain writes the journal anew where most of it is dead or the disk refused it. Not to be called with changes in
// the table that aren't written yet: they would be in the new journal without their events.
func (s *Spool) maintain() {
	if s.broken && s.o.now().bootMS >= s.retryAt || !s.broken && s.size > s.compactAt {
		s.compact()
	}
}

// write appends frames and makes them durable.
func (s *Spool) write(frames []byte) bool {
	if s.broken {
		return false
	}
	_, err := s.file.WriteAt(frames, s.size)
	if err == nil {
		err = fdatasync(s.file)
	}
	if err != nil {
		s.refused(err)
		return false
	}
	s.size += int64(len(frames))
	return true
}

// refused notes that the disk refuses. The file is read on and not written before all of it was written anew, for
// after a failed sync nobody knows what it holds. The mark at its start, which takes no space, says that its sequence
// numbers are not the last.
func (s *Spool) refused(err error) {
	s.problem = fmt.Sprintf("events can't be written to %s: %v; make room or mend the disk: until then they wait in memory", s.dir, err)
	s.retryAt = s.o.now().bootMS + retryDisk
	if !s.broken && s.file != nil {
		_ = s.file.Truncate(s.size)
		_, _ = s.file.WriteAt(markVolatile, 0)
		_ = fdatasync(s.file)
	}
	s.broken = true
}

// rotate gives the spool a new id: sequence numbers begin anew, with the events that wait.
func (s *Spool) rotate() {
	drop := min(s.acked+1, s.next()) - s.first
	s.dropFirst(drop)
	s.id, s.first, s.acked = newID(), 1, 0
	s.marks = nil
}

// dropFirst forgets the n oldest events.
func (s *Spool) dropFirst(n uint64) {
	if kept := uint64(len(s.offsets)) - n; uint64(len(s.memory)) > kept {
		s.memory = append([][]byte(nil), s.memory[uint64(len(s.memory))-kept:]...)
	}
	s.offsets = append([]int64(nil), s.offsets[n:]...)
	s.first += n
}

// prune forgets acknowledged events that need not be sent again.
func (s *Spool) prune() {
	old := uint64(0) // acknowledged longer ago than KeepFor
	limit := s.o.now().bootMS - s.o.KeepFor.Milliseconds()
	i := 0
	for ; i < len(s.marks) && s.marks[i].atMS <= limit; i++ {
		old = s.marks[i].through
	}
	s.marks = append([]mark(nil), s.marks[i:]...)
	if keep := uint64(s.o.KeepEvents); s.acked > keep { //nolint:gosec // positive
		old = max(old, s.acked-keep)
	}
	if old = min(old, s.acked); old >= s.first {
		s.dropFirst(old + 1 - s.first)
	}
}

// compact writes the journal anew: the table, and the events that wait or are kept. Until the new file is in its place
// the old one is whole.
func (s *Spool) compact() {
	s.prune()
	file, size, offsets, err := s.writeNew()
	if err != nil {
		s.refused(err)
		return
	}
	if s.file != nil {
		_ = s.file.Close()
	}
	s.file, s.size, s.offsets, s.memory = file, size, offsets, nil
	s.compactAt = max(compactFrom, 2*size)
	s.broken, s.problem, s.safe = false, "", s.at
}

func (s *Spool) writeNew() (*os.File, int64, []int64, error) {
	temp := filepath.Join(s.dir, fileName+".new")
	f, err := os.OpenFile(temp, os.O_CREATE|os.O_RDWR|os.O_TRUNC, 0o600) //nolint:gosec // our own path
	if err != nil {
		return nil, 0, nil, err
	}
	offsets, size, err := s.fill(f)
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = os.Rename(temp, filepath.Join(s.dir, fileName))
	}
	if err == nil {
		err = syncDir(s.dir)
	}
	if err != nil {
		_ = f.Close()
		_ = os.Remove(temp)
		return nil, 0, nil, err
	}
	return f, size, offsets, nil
}

// fill writes everything to f and returns where each event's record came to lie, and the length.
func (s *Spool) fill(f *os.File) ([]int64, int64, error) {
	w := bufio.NewWriterSize(f, 64<<10)
	size := int64(0)
	put := func(b []byte) error {
		n, err := w.Write(b)
		size += int64(n)
		return err
	}
	if err := put(markClean); err != nil {
		return nil, 0, err
	}
	if err := put(frame(kindHead, s.head())); err != nil {
		return nil, 0, err
	}
	// In force with the frame of events behind it, which has none.
	if err := put(append(s.at.frame(), frame(kindEvents, nil)...)); err != nil {
		return nil, 0, err
	}
	var body []byte
	n := 0
	flush := func(kind byte, always bool) error {
		if n == 0 || n < batch && !always {
			return nil
		}
		err := put(frame(kind, body))
		body, n = body[:0], 0
		return err
	}
	for jail, bans := range s.table {
		for packed, b := range bans {
			body = appendRecord(body, newBan(b.start, jail, packed, fleetbanv1.ObservedBan_builder{DurationMs: b.duration}))
			n++
			if err := flush(kindTable, false); err != nil {
				return nil, 0, err
			}
		}
	}
	if err := flush(kindTable, true); err != nil {
		return nil, 0, err
	}
	offsets := make([]int64, 0, len(s.offsets))
	for seq := s.first; seq < s.next(); seq++ {
		rec, err := s.record(seq)
		if err != nil {
			return nil, 0, err
		}
		offsets = append(offsets, size+frameHeader+1+int64(len(body)))
		body = binary.AppendUvarint(body, uint64(len(rec)))
		body = append(body, rec...)
		n++
		if err := flush(kindEvents, false); err != nil {
			return nil, 0, err
		}
	}
	if err := flush(kindEvents, true); err != nil {
		return nil, 0, err
	}
	return offsets, size, w.Flush()
}
