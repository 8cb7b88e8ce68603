package observe

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// watch rings when something happened to the log or near the socket. It is a doorbell: who hears it looks for himself, and
// looks once a second even if it never rings.
type watch struct {
	file *os.File
	bell chan struct{}
	done chan struct{}
	// Of the log now, and of the file that had its name before.
	log, before int
}

// newWatch never fails: where inotify has no more to give, the bell stays silent.
func newWatch() *watch {
	w := &watch{bell: make(chan struct{}, 1), done: make(chan struct{}), log: -1, before: -1}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		close(w.done)
		return w
	}
	w.file = os.NewFile(uintptr(fd), "inotify")
	go func() {
		defer close(w.done)
		var buf [4096]byte
		for {
			if n, err := w.file.Read(buf[:]); err != nil || n == 0 {
				return
			}
			select {
			case w.bell <- struct{}{}:
			default:
			}
		}
	}()
	return w
}

// works reports whether the bell can ring.
func (w *watch) works() bool { return w.file != nil }

func (w *watch) add(path string, mask uint32) int {
	if w.file == nil {
		return -1
	}
	raw, err := w.file.SyscallConn()
	if err != nil {
		return -1
	}
	wd := -1
	_ = raw.Control(func(fd uintptr) {
		// One folder may be watched for two reasons.
		if wd, err = unix.InotifyAddWatch(int(fd), path, mask|unix.IN_MASK_ADD); err != nil {
			wd = -1
		}
	})
	return wd
}

// socket watches for a socket to come and go.
func (w *watch) socket(path string) {
	w.add(filepath.Dir(path), unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_DELETE|unix.IN_ONLYDIR)
}

// follow watches the file that has the log's name now, and its folder for another to take it. The file before stays
// watched, for fail2ban may still write to it; the one before that doesn't.
func (w *watch) follow(path string) {
	w.add(filepath.Dir(path), unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_ONLYDIR)
	wd := w.add(path, unix.IN_MODIFY|unix.IN_MOVE_SELF|unix.IN_DELETE_SELF|unix.IN_ATTRIB)
	if wd < 0 || wd == w.log {
		return
	}
	if w.before >= 0 && w.before != wd {
		if raw, err := w.file.SyscallConn(); err == nil {
			_ = raw.Control(func(fd uintptr) { _, _ = unix.InotifyRmWatch(int(fd), uint32(w.before)) })
		}
	}
	w.log, w.before = wd, w.log
}

func (w *watch) close() {
	if w.file != nil {
		_ = w.file.Close()
	}
	<-w.done
}
