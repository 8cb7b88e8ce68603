package server_test

import (
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// Who closes the sending half before the answer is there has the call broken off, and is told that: Redis has done nothing wrong.
func TestHalfClosed(t *testing.T) {
	t.Parallel()
	h := newPostHouse(t)
	token := h.signIn(0, ownerEmail, ownerPassword).GetTokens().GetAccessToken()
	h.redis.Pause()
	defer h.redis.Resume()
	for i, p := range h.replicas {
		conn, err := net.Dial("tcp", p.addr())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		_ = conn.SetDeadline(time.Now().Add(within))
		const body = "{}"
		if _, err := fmt.Fprintf(conn, "POST /fleetban.operator.v1.SessionService/ListSessions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"+
			"Authorization: Bearer %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", token, len(body), body); err != nil {
			t.Fatal(err)
		}
		half, ok := conn.(*net.TCPConn)
		if !ok {
			t.Fatalf("%T", conn)
		}
		if err := half.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		answer, err := io.ReadAll(conn)
		if err != nil || !strings.Contains(string(answer), `"canceled"`) || !strings.Contains(string(answer), "its sending half") || strings.Contains(string(answer), "Redis") {
			t.Errorf("replica %d: %v: %s", i, err, answer)
		}
	}
}
