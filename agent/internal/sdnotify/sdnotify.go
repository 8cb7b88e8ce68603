// Package sdnotify tells systemd that a service is ready and alive. Without systemd it does nothing.
package sdnotify

import (
	"context"
	"net"
	"os"
	"strconv"
	"time"
)

// Ready says that the service is up.
func Ready() { send("READY=1") }

// Watchdog says that the service is alive, twice as often as systemd wants to hear it, until the function it returns is
// called or ctx ends; then it says that the service stops.
func Watchdog(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	us, err := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64)
	if err != nil || us <= 0 || os.Getenv("NOTIFY_SOCKET") == "" {
		return ctx, cancel
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		t := time.NewTicker(time.Duration(us) * time.Microsecond / 2)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				send("STOPPING=1")
				return
			case <-t.C:
				send("WATCHDOG=1")
			}
		}
	}()
	return ctx, func() { cancel(); <-done }
}

func send(state string) {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return
	}
	if name[0] == '@' {
		name = "\x00" + name[1:]
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return
	}
	defer conn.Close() //nolint:errcheck // a datagram
	_, _ = conn.Write([]byte(state))
}
