package spool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// The journal is one file of frames: length (4 bytes, little-endian), CRC-32C of what follows, kind (1 byte), body.
// Reading stops at the first frame that is cut or doesn't match its sum: a torn write, which was never acknowledged to
// anyone. The file is rewritten (compacted) to another name and renamed when most of it is dead.
const (
	frameHeader = 8
	// maxFrame bounds what is read; the largest frame written is a batch of one baseline page.
	maxFrame = 8 << 20

	kindHead   byte = 1 // spool id, last sequence that left the file, acknowledged, lost, primed
	kindTable  byte = 2 // one known ban
	kindEvents byte = 3 // changes: events with their sequence, applied to the table when read
	kindAck    byte = 4 // acknowledged through
	kindPrimed byte = 5 // the first baseline is through
	kindPlace  byte = 6 // through where observations are taken in, once the frame behind it is written too
)

// volatileMark stands alone at the start of the file, where it can be overwritten on a full disk: it says that events
// were sent that are not in the file, so that its sequence numbers must not be continued.
const volatileMark = 16

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)

	markClean    = []byte("fleetban spool 1")
	markVolatile = []byte("fleetban spool !")

	errNotJournal = errors.New("not a spool of this version; move the file away to begin a new one")
)

// frame makes a frame.
func frame(kind byte, body []byte) []byte {
	var h [frameHeader]byte
	binary.LittleEndian.PutUint32(h[:4], uint32(len(body)+1)) //nolint:gosec // bounded by maxFrame
	sum := crc32.Update(crc32.Checksum([]byte{kind}, castagnoli), castagnoli, body)
	binary.LittleEndian.PutUint32(h[4:], sum)
	return append(append(append(make([]byte, 0, len(h)+1+len(body)), h[:]...), kind), body...)
}

// scan reads frames from r, which stands behind the mark, and calls f with each frame's offset of its body in the file.
// It returns the length of the good part.
func scan(r io.Reader, f func(kind byte, body []byte, offset int64) error) (int64, error) {
	end := int64(volatileMark)
	var h [frameHeader]byte
	var buf []byte
	for {
		if _, err := io.ReadFull(r, h[:]); err != nil {
			return end, ignoreEOF(err)
		}
		n := binary.LittleEndian.Uint32(h[:4])
		if n < 1 || n > maxFrame {
			return end, nil
		}
		if cap(buf) < int(n) {
			buf = make([]byte, n)
		}
		buf = buf[:n]
		if _, err := io.ReadFull(r, buf); err != nil {
			return end, ignoreEOF(err)
		}
		if crc32.Checksum(buf, castagnoli) != binary.LittleEndian.Uint32(h[4:]) {
			return end, nil
		}
		if err := f(buf[0], buf[1:], end+frameHeader+1); err != nil {
			return end, err
		}
		end += frameHeader + int64(n)
	}
}

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return fmt.Errorf("read: %w", err)
}

// fdatasync makes what was written to f durable.
func fdatasync(f *os.File) error {
	for {
		err := unix.Fdatasync(int(f.Fd())) //nolint:gosec // a descriptor fits
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func syncDir(dir string) error {
	d, err := os.Open(dir) //nolint:gosec // our own path
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
