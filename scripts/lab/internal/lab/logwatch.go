package lab

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// BanLines tells when each "Ban" line came into a host's fail2ban log, to some microseconds, by inotify.
type BanLines struct {
	log    *os.File
	notify *os.File
	done   chan struct{}

	mu    sync.Mutex
	lines map[netip.Addr]time.Time
}

// WatchBanLines begins to read the host's fail2ban log at its end.
func (n *Node) WatchBanLines() (*BanLines, error) {
	log, err := os.Open(n.Fail2banLog())
	if err != nil {
		return nil, err
	}
	if _, err := log.Seek(0, io.SeekEnd); err != nil {
		return nil, errors.Join(err, log.Close())
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, errors.Join(err, log.Close())
	}
	if _, err := unix.InotifyAddWatch(fd, n.Fail2banLog(), unix.IN_MODIFY); err != nil {
		return nil, errors.Join(fmt.Errorf("watch %s: %w", filepath.Base(n.Fail2banLog()), err), log.Close(), unix.Close(fd))
	}
	b := &BanLines{log: log, notify: os.NewFile(uintptr(fd), "inotify"), done: make(chan struct{}), lines: map[netip.Addr]time.Time{}}
	go b.read()
	return b, nil
}

func (b *BanLines) read() {
	defer close(b.done)
	events, text := make([]byte, 4096), make([]byte, 64<<10)
	rest := ""
	for {
		if _, err := b.notify.Read(events); err != nil {
			return
		}
		now := time.Now()
		n, err := b.log.Read(text)
		if err != nil && !errors.Is(err, io.EOF) {
			return
		}
		rest += string(text[:n])
		for {
			line, after, ok := strings.Cut(rest, "\n")
			if !ok {
				break
			}
			rest = after
			_, word, ok := strings.Cut(line, "] Ban ")
			if !ok {
				continue
			}
			if addr, err := netip.ParseAddr(strings.TrimSpace(word)); err == nil {
				b.mu.Lock()
				b.lines[addr] = now
				b.mu.Unlock()
			}
		}
	}
}

// At tells when an address's line came.
func (b *BanLines) At(addr netip.Addr) (time.Time, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	at, ok := b.lines[addr]
	return at, ok
}

// Close ends the watch.
func (b *BanLines) Close() {
	_ = b.notify.Close()
	<-b.done
	_ = b.log.Close()
}
