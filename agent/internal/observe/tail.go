package observe

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"time"
)

const (
	// What is read at one go before the socket is asked.
	tailChunk = 64 << 10
	// A log that appears or is rotated longer than this isn't read from its start.
	tailBacklog = 4 << 20
)

// tail reads a log as it grows, through rotation and truncation. It keeps the old file until the new one has something in
// it, for fail2ban writes to the old one until it is told of the rotation.
type tail struct {
	path string
	file *os.File
	info fs.FileInfo
	at   int64
	rest []byte // the beginning of a line
	skip bool   // in a line that is too long
	// lost is set when lines may have been missed. The reader clears it.
	lost bool
	// swapped is set when another file is to be watched. The reader clears it.
	swapped bool
	// rotated and truncated are set when that was found. The reader clears them.
	rotated, truncated bool
	// waiting is a file that has the log's name and nothing in it yet: what is to be watched.
	waiting fs.FileInfo
}

// open opens the log. At its end on the first look, when what it holds is history.
func (t *tail) open(atEnd bool) error {
	file, err := os.Open(t.path)
	if err != nil {
		return err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("isn't a file")
	}
	if err != nil {
		_ = file.Close()
		return err
	}
	t.close()
	t.file, t.info, t.swapped = file, info, true
	t.at, t.rest, t.skip, t.waiting = 0, nil, false, nil
	if atEnd || info.Size() > tailBacklog {
		t.at = info.Size()
		t.skip = t.at > 0 && !t.endsLine()
		t.lost = t.lost || !atEnd
	}
	return nil
}

func (t *tail) endsLine() bool {
	var b [1]byte
	_, err := t.file.ReadAt(b[:], t.at-1)
	return err == nil && b[0] == '\n'
}

func (t *tail) close() {
	if t.file != nil {
		_ = t.file.Close()
	}
	t.file, t.info = nil, nil
}

// lastLine returns the time of the last line of the log and when the file was written.
func (t *tail) lastLine() (at, written time.Time, ok bool) {
	info, err := t.file.Stat()
	if err != nil {
		return at, written, false
	}
	b := make([]byte, min(info.Size(), 4<<10))
	if _, err := t.file.ReadAt(b, info.Size()-int64(len(b))); err != nil {
		return at, written, false
	}
	lines := bytes.Split(bytes.TrimSuffix(b, []byte("\n")), []byte("\n"))
	l, ok := parseLine(lines[len(lines)-1])
	return l.at, info.ModTime(), ok
}

// read hands over the whole lines of one chunk and reports whether there may be more at once.
func (t *tail) read(each func([]byte)) (more bool) {
	if t.file == nil {
		return false
	}
	info, err := t.file.Stat()
	if err != nil {
		t.lost = true
		t.close()
		return false
	}
	if info.Size() < t.at { // truncated in place: what stood between is gone
		t.at, t.rest, t.skip, t.lost, t.truncated = 0, nil, false, true, true
	}
	b := make([]byte, tailChunk)
	n, err := t.file.ReadAt(b, t.at)
	t.at += int64(n)
	t.split(b[:n], each)
	if err != nil && !errors.Is(err, io.EOF) {
		t.lost = true
	}
	if n == len(b) {
		return true
	}
	return t.follow()
}

func (t *tail) split(b []byte, each func([]byte)) {
	for len(b) > 0 {
		i := bytes.IndexByte(b, '\n')
		if i < 0 {
			if !t.skip {
				if t.rest = append(t.rest, b...); len(t.rest) > maxLine {
					t.rest, t.skip = nil, true
				}
			}
			return
		}
		if !t.skip {
			l := b[:i]
			if len(t.rest) > 0 {
				l = append(t.rest, l...)
			}
			if len(l) <= maxLine {
				each(l)
			}
		}
		b, t.skip, t.rest = b[i+1:], false, t.rest[:0]
	}
}

// follow goes over to the file that now has the log's name, once it has something in it. The old one was read to its end
// just before, but fail2ban may have written since: it is read once more first.
func (t *tail) follow() (more bool) {
	info, err := os.Stat(t.path)
	if err != nil || os.SameFile(info, t.info) {
		return false
	}
	if info.Size() == 0 {
		if t.waiting != nil && os.SameFile(info, t.waiting) {
			return false
		}
		t.waiting, t.swapped = info, true
		return true // once it is watched, look again
	}
	if old, err := t.file.Stat(); err == nil && old.Size() > t.at {
		return true
	}
	t.rotated = t.open(false) == nil
	return t.rotated
}
