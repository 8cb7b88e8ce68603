package stream

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"
)

// TestBusyFor: the delay that a control plane names in a TLS alert is obeyed; other alerts name none.
func TestBusyFor(t *testing.T) {
	for alert, want := range map[byte]time.Duration{80: 0, 112: 0, 201: time.Second, 207: 7 * time.Second, 255: 55 * time.Second} {
		server, client := net.Pipe()
		go func() {
			hello := make([]byte, 4096)
			_, _ = server.Read(hello)
			_, _ = server.Write([]byte{21, 3, 3, 0, 2, 2, alert})
			_ = server.Close()
		}()
		err := tls.Client(client, &tls.Config{ServerName: "test", MinVersion: tls.VersionTLS12}).HandshakeContext(t.Context())
		if got := busyFor(fmt.Errorf("dial: %w", err)); got > want || want > 0 && got <= want-time.Second {
			t.Errorf("alert %d: %s, want up to a second less than %s", alert, got, want)
		}
	}
	if got := busyFor(errors.New("tls: alert(207)")); got != 0 {
		t.Errorf("an error that is no alert names %s", got)
	}
}
