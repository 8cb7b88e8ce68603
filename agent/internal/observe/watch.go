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
	log  int
}

// newWatch never fails: where inotify has no more to give, the bell stays silent.
func newWatch() *watch {
	w := &watch{bell: make(chan struct{}, 1), done: make(chan struct{}), log: -1}
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

// follow watches the file that has the log's name now, and its folder for another to take it. The one before is watched no
// more once another was opened.
func (w *watch) follow(path string, opened bool) {
	w.add(filepath.Dir(path), unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_ONLYDIR)
	wd := w.add(path, unix.IN_MODIFY|unix.IN_MOVE_SELF|unix.IN_DELETE_SELF|unix.IN_ATTRIB)
	if opened && wd != w.log {
		if w.log >= 0 {
			if raw, err := w.file.SyscallConn(); err == nil {
				_ = raw.Control(func(fd uintptr) { _, _ = unix.InotifyRmWatch(int(fd), uint32(w.log)) })
			}
		}
		w.log = wd
	}
}

func (w *watch) close() {
	if w.file != nil {
		_ = w.file.Close()
	}
	<-w.done
}
