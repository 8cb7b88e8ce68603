package server_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/fleetban/fleetban/controlplane/internal/operatorapi"
	"github.com/fleetban/fleetban/controlplane/internal/testwait"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1/operatorv1connect"
)

// planted is what is to become a line, or a header, of its own.
const planted = "X-Planted: yes"

const banBody = `{"prefixes":["203.0.113.9"],"durationS":60}`

// Lines in headers and in what people type stay where they are, or are refused: at both replicas they become no header of an answer, no
// line of a log, no header of a letter and no recipient.
func TestLinesStayInTheirPlace(t *testing.T) {
	t.Parallel()
	h := newPostHouse(t)
	owner := h.signIn(0, ownerEmail, ownerPassword).GetTokens().GetAccessToken()
	for i, p := range h.replicas {
		linesOverHTTP1(t, p.addr(), owner)
		linesOverHTTP2(t, p.addr(), owner)
		linesInFields(t, h, i, owner)
	}
	// A reset that is asked for in another's name, by what is in headers, goes to the owner, and leads here.
	body := `{"email":"` + ownerEmail + `"}`
	for i, p := range h.replicas {
		answer := whole(t, p.addr(), "POST "+operatorv1connect.AccountServiceRequestPasswordResetProcedure+" HTTP/1.1\r\nHost: evil.example\r\nX-Forwarded-Host: evil.example\r\n"+
			"User-Agent: x\r\n "+planted+"\r\nConnection: close\r\nContent-Type: application/json\r\n"+fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(body), body))
		if !strings.HasPrefix(answer, "HTTP/1.1 200 ") {
			t.Errorf("replica %d: %s", i, answer)
		}
	}
	testwait.For(t, "both letters are there", func() bool { return len(h.post.Letters()) >= len(h.replicas) })
	for _, letter := range h.post.Letters() {
		if letter.To != ownerEmail || !strings.Contains(letter.Text, publicURL+operatorapi.ResetPath+"#") || letter.Header.Get("X-Planted") != "" || letter.Header.Get("Bcc") != "" || strings.Contains(letter.Text, "evil.example") {
			t.Errorf("a letter to %s: %v\n%s", letter.To, letter.Header, letter.Text)
		}
	}
	for i, p := range h.replicas {
		for line := range strings.Lines(p.log.String()) {
			var entry map[string]any
			if err := json.Unmarshal([]byte(line), &entry); err != nil || entry["msg"] == nil || strings.ContainsAny(strings.TrimSuffix(line, "\n"), "\r\x00\x1b\u2028") {
				t.Errorf("replica %d: %q is no line of its log: %v", i, line, err)
			}
		}
	}
	for _, e := range h.entries(owner, "") {
		if strings.ContainsAny(e.GetUserAgent()+e.GetAddress()+e.GetRequestId()+e.GetAction(), "\r\n\x00") {
			t.Errorf("the audit log has lines of a stranger: %v", e)
		}
	}
}

// whole writes a request after which the server closes, and is what it answers; unlike exchange it stays until then.
func whole(t *testing.T, addr, request string) string {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(within))
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	answer, _ := io.ReadAll(conn) // refused, it may be reset after the answer
	return string(answer)
}

// linesOverHTTP1 bans, as an owner, with each of the headers beside. What HTTP knows no such header for is refused; a line that goes on is
// one line, and done.
func linesOverHTTP1(t *testing.T, addr, owner string) {
	t.Helper()
	for name, header := range map[string]string{
		"CR in a value": "User-Agent: a\r" + planted, "NUL in a value": "User-Agent: a\x00" + planted, "an escape": "User-Agent: \x1b[2J" + planted,
		"CR in a name": "User\r-Agent: a", "LF in a name": "User\n-Agent: a", "a name that goes on": "User-Agent\r\n : a", "no name": ": a", "no colon": "X-Planted\r\nA: b",
		"CR in an id": "X-Request-Id: a\r" + planted, "CR in an address": "X-Forwarded-For: 198.51.100.1\r" + planted, "CR in a cookie": "Cookie: __Host-fleetban=a\r" + planted,
		"CR in an origin": "Origin: https://a\r" + planted, "CR in a timeout": "Connect-Timeout-Ms: 1\r" + planted,
		"a line that goes on": "User-Agent: a\r\n " + planted, "an id that goes on": "X-Request-Id: a\r\n\t" + planted, "an address that goes on": "X-Forwarded-For: 198.51.100.1\r\n " + planted,
		"escaped lines in an id": "X-Request-Id: a%0d%0a" + planted, "U+2028": "User-Agent: a\u2028" + planted, "halves of letters": "User-Agent: \x8a\x8d" + planted,
	} {
		answer := whole(t, addr, "POST "+operatorv1connect.BanServiceBanProcedure+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nAuthorization: Bearer "+owner+
			"\r\n"+header+fmt.Sprintf("\r\nContent-Length: %d\r\n\r\n%s", len(banBody), banBody))
		head, _, _ := strings.Cut(answer, "\r\n\r\n")
		if strings.Contains(strings.ReplaceAll(head, "\r", "\n"), "\n"+planted) {
			t.Errorf("%s is answered with what was planted: %s", name, answer)
		}
		want := "HTTP/1.1 400 "
		switch name {
		case "a line that goes on", "an id that goes on", "an address that goes on", "escaped lines in an id", "U+2028", "halves of letters":
			want = "HTTP/1.1 200 "
		}
		if !strings.HasPrefix(answer, want) {
			t.Errorf("%s: want %s, got %s", name, want, answer)
		}
	}
}

// linesOverHTTP2 does so where headers have lengths, and lines can be in them.
func linesOverHTTP2(t *testing.T, addr, owner string) {
	t.Helper()
	for _, field := range [][2]string{
		{"user-agent", "a\r\n" + planted},
		{"user-agent", "a\n" + planted},
		{"user-agent", "a\x00b"},
		{"x-request-id", "a\r\n" + planted},
		{"x-forwarded-for", "198.51.100.1\n" + planted},
		{"user-agent\r\nx-planted", "yes"},
		{"x\nplanted", "yes"},
		{"cookie", "__Host-fleetban=a\r\n" + planted},
		{":path", "/x\r\n" + planted},
		{":authority", "x\r\n" + planted},
	} {
		if status := banOverHTTP2(t, addr, owner, field); status != "reset" && status != "closed" && status != "400" {
			t.Errorf("%q: %s", field, status)
		}
	}
	if status := banOverHTTP2(t, addr, owner, [2]string{"user-agent", "a"}); status != "200" {
		t.Errorf("the test's own way of asking: %s", status)
	}
}

// banOverHTTP2 is the status of a ban with one header more, or another pseudo-header; or "reset" or "closed".
func banOverHTTP2(t *testing.T, addr, owner string, field [2]string) string {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(within))
	fields := [][2]string{
		{":method", "POST"},
		{":scheme", "http"},
		{":authority", "x"},
		{":path", operatorv1connect.BanServiceBanProcedure},
		{"content-type", "application/json"},
		{"authorization", "Bearer " + owner},
		field,
	}
	if at := slices.IndexFunc(fields, func(f [2]string) bool { return f[0] == field[0] }); at < len(fields)-1 {
		fields[at], fields = field, fields[:len(fields)-1]
	}
	var block, out bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	for _, f := range fields {
		_ = encoder.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	out.WriteString(http2.ClientPreface)
	framer := http2.NewFramer(&out, conn)
	framer.AllowIllegalWrites = true
	framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if err := errors.Join(framer.WriteSettings(),
		framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true}), framer.WriteData(1, true, []byte(banBody))); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(out.Bytes()); err != nil {
		return "closed"
	}
	for {
		frame, err := framer.ReadFrame()
		if err != nil {
			return "closed"
		}
		switch f := frame.(type) {
		case *http2.RSTStreamFrame:
			return "reset"
		case *http2.GoAwayFrame:
			return "closed"
		case *http2.MetaHeadersFrame:
			if slices.ContainsFunc(f.RegularFields(), func(f hpack.HeaderField) bool { return strings.EqualFold(f.Name, "x-planted") }) {
				return "planted"
			}
			return f.PseudoValue("status")
		}
	}
}

// linesInFields types lines where people and programs type: addresses are refused; names and reasons are refused or kept as they are, as
// data, for who shows them to escape.
func linesInFields(t *testing.T, h *postHouse, i int, owner string) {
	t.Helper()
	ctx := t.Context()
	hostile := "bob@example.com\r\nBcc: eve@example.com\r\n" + planted
	for what, err := range map[string]error{
		"a reset": h.requestReset(i, hostile),
		"an address": func() error {
			_, err := h.account(i, owner).ChangeEmail(ctx, connect.NewRequest(operatorv1.ChangeEmailRequest_builder{NewEmail: hostile}.Build()))
			return err
		}(),
		"an invitation": func() error {
			_, err := h.members(i, owner).Invite(ctx, connect.NewRequest(operatorv1.InviteRequest_builder{Email: hostile, Role: operatorv1.Role_ROLE_VIEWER}.Build()))
			return err
		}(),
	} {
		if connect.CodeOf(err) != connect.CodeInvalidArgument {
			t.Errorf("replica %d: %s: %v", i, what, err)
		}
	}
	_, err := operatorv1connect.NewBanServiceClient(http.DefaultClient, h.url(i), h.as(owner)).Ban(ctx, connect.NewRequest(operatorv1.BanRequest_builder{
		Prefixes: []string{fmt.Sprintf("203.0.113.%d", 20+i)}, DurationS: 60, Reason: "x\r\n" + planted,
	}.Build()))
	if err != nil && connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("replica %d: a reason: %v", i, err)
	}
}
