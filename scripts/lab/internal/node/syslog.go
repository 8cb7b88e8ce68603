package node

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// syslogSocket is where the C library sends what programs log.
const syslogSocket = "/dev/log"

// serveSyslog writes what is logged as rsyslog does on Debian: everything to /var/log/syslog but the auth facilities,
// which go to /var/log/auth.log. sshd's own log to stderr has neither time nor program, so fail2ban's filter misses it.
func serveSyslog(host string) error {
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: syslogSocket, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("listen for syslog: %w", err)
	}
	if err := os.Chmod(syslogSocket, 0o666); err != nil {
		return err
	}
	files := map[string]*os.File{}
	for _, name := range []string{"auth.log", "syslog"} {
		f, err := os.OpenFile(filepath.Join("/var/log", name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
		if err != nil {
			return err
		}
		files[name] = f
	}
	go func() {
		buf := make([]byte, 64<<10)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				return
			}
			name, line := formatSyslog(host, string(buf[:n]))
			// The log is opened anew when a test has rotated it, as rsyslog does at a SIGHUP.
			f := files[name]
			if moved(f) {
				if again, err := os.OpenFile(f.Name(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640); err == nil {
					_ = f.Close()
					f, files[name] = again, again
				}
			}
			_, _ = f.WriteString(line)
		}
	}()
	return nil
}

func moved(f *os.File) bool {
	held, err := f.Stat()
	if err != nil {
		return true
	}
	there, err := os.Stat(f.Name())
	return err != nil || !os.SameFile(held, there)
}

// formatSyslog turns "<38>Jan  2 15:04:05 sshd[7]: text" into "Jan  2 15:04:05 host sshd[7]: text" and names its file.
func formatSyslog(host, message string) (file, line string) {
	const (
		stampLen     = len("Jan _2 15:04:05 ")
		facilityAuth = 4
		facilityPriv = 10
	)
	file = "syslog"
	if rest, ok := strings.CutPrefix(message, "<"); ok {
		if number, text, ok := strings.Cut(rest, ">"); ok {
			if priority, err := strconv.Atoi(number); err == nil {
				message = text
				if facility := priority >> 3; facility == facilityAuth || facility == facilityPriv {
					file = "auth.log"
				}
			}
		}
	}
	message = strings.TrimRight(message, "\n\x00")
	if len(message) > stampLen {
		message = message[:stampLen] + host + " " + message[stampLen:]
	}
	return file, message + "\n"
}
