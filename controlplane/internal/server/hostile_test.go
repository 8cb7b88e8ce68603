package server_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/fleetban/fleetban/controlplane/internal/server"
	"github.com/fleetban/fleetban/controlplane/internal/store/redistest"
	"github.com/fleetban/fleetban/controlplane/internal/testwait"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1/operatorv1connect"
)

// lone is one replica over TLS with an owner.
func lone(t *testing.T, c server.Config) *process {
	t.Helper()
	return several(t, c, 1)[0]
}

// several are n replicas of one fleet, with an owner.
func several(t *testing.T, c server.Config, n int) []*process {
	t.Helper()
	c.Backend = server.Backend{RedisURL: redistest.Start(t).URL(), SecretFile: secretFile(t, secretFill), PublicURL: c.PublicURL}
	if _, err := setupOwner(t, c.Backend, ownerEmail, ownerPassword); err != nil {
		t.Fatal(err)
	}
	c.MetricsListen = "off"
	out := make([]*process, n)
	for i := range out {
		out[i] = serve(t, c)
	}
	return out
}

var versionLike = regexp.MustCompile(`(?i)\bv?\d+\.\d+\.\d+|go1\.|devel`)

// Every answer to a stranger tells a browser what not to do with it, and nobody which release this is.
func TestHeadersForStrangers(t *testing.T) {
	t.Parallel()
	for _, p := range several(t, server.Config{}, 2) {
		headersForStrangers(t, p)
	}
}

func headersForStrangers(t *testing.T, p *process) {
	t.Helper()
	p.awaitReady(t)
	client := httpClient(t, p.Pin())
	for _, path := range []string{"/", "/healthz", "/nothing", "/invitation", operatorv1connect.SessionServiceGetMeProcedure, "/..%2f..%2fetc/passwd", "/index.php?x=<script>"} {
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			req, err := http.NewRequestWithContext(t.Context(), method, "https://"+p.addr()+path, strings.NewReader("{}"))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", "application/json")
			res, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(res.Body)
			_ = res.Body.Close()
			for name, want := range map[string]string{
				"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cross-Origin-Opener-Policy": "same-origin", "X-Frame-Options": "DENY",
				"Cross-Origin-Resource-Policy": "same-origin", "Strict-Transport-Security": "max-age=31536000", "Server": "", "X-Powered-By": "", "Access-Control-Allow-Origin": "",
			} {
				if got := res.Header.Get(name); got != want {
					t.Errorf("%s %s: %s is %q, not %q", method, path, name, got, want)
				}
			}
			policy := res.Header.Get("Content-Security-Policy")
			if !strings.Contains(policy, "default-src 'none'") || !strings.Contains(policy, "frame-ancestors 'none'") || strings.Contains(policy, "unsafe") {
				t.Errorf("%s %s: Content-Security-Policy is %q", method, path, policy)
			}
			said := string(body) + fmt.Sprint(res.Header)
			if found := versionLike.FindString(strings.ReplaceAll(said, "127.0.0.1", "")); found != "" {
				t.Errorf("%s %s says %q: %s", method, path, found, said)
			}
			if strings.Contains(string(body), "<script>") {
				t.Errorf("%s %s reflects: %s", method, path, body)
			}
		}
	}
	// TLS below 1.2, and 1.2 with what isn't AEAD, is not spoken.
	for name, c := range map[string]*tls.Config{
		"TLS 1.1": {MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11, InsecureSkipVerify: true},                                                                                                //nolint:gosec // that is the test
		"CBC":     {MaxVersion: tls.VersionTLS12, InsecureSkipVerify: true, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA, tls.TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA}},                  //nolint:gosec // that is the test
		"RSA":     {MaxVersion: tls.VersionTLS12, InsecureSkipVerify: true, CipherSuites: []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_RSA_WITH_AES_128_CBC_SHA, tls.TLS_RSA_WITH_RC4_128_SHA}}, //nolint:gosec // that is the test
	} {
		if conn, err := tls.Dial("tcp", p.addr(), c); err == nil {
			_ = conn.Close()
			t.Errorf("%s is spoken", name)
		}
	}
	good, err := tls.Dial("tcp", p.addr(), &tls.Config{MaxVersion: tls.VersionTLS12, InsecureSkipVerify: true}) //nolint:gosec // the key isn't what is looked at
	if err != nil {
		t.Fatal("TLS 1.2: ", err)
	}
	_ = good.Close()
}

// exchange sends bytes and reads all answers until the server closes, or patience ends.
func exchange(t *testing.T, addr, text string) string {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(within))
	if _, err := io.WriteString(conn, text); err != nil {
		return ""
	}
	// What is left to be answered is answered by then: the server reads on and sees the end.
	_ = conn.(*net.TCPConn).CloseWrite() //nolint:forcetypeassert // dialled
	answer, _ := io.ReadAll(conn)
	return string(answer)
}

// What two servers could read differently is refused: nobody hides a request in another one's body.
func TestSmuggling(t *testing.T) {
	t.Parallel()
	for _, p := range several(t, server.Config{TLSOff: true}, 2) {
		smuggle(t, p)
	}
}

func smuggle(t *testing.T, p *process) {
	t.Helper()
	const hidden = "GET /hidden HTTP/1.1\r\nHost: x\r\n\r\n"
	for name, text := range map[string]string{
		"two lengths":                 "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: 35\r\n\r\n" + hidden,
		"two lengths in one":          "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0, 35\r\n\r\n" + hidden,
		"a length with a sign":        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +35\r\n\r\n" + hidden,
		"a negative length":           "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n" + hidden,
		"a length in hex":             "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0x23\r\n\r\n" + hidden,
		"a huge length":               "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n" + hidden,
		"a blank before the colon":    "POST / HTTP/1.1\r\nHost: x\r\nContent-Length : 35\r\n\r\n" + hidden,
		"another encoding":            "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n" + hidden,
		"two encodings":               "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n" + hidden,
		"encodings twice":             "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + hidden,
		"a vertical tab":              "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n" + hidden,
		"a folded line":               "POST / HTTP/1.1\r\nHost: x\r\nX: y\r\nTransfer-Encoding:\r\n chunked\x00\r\n\r\n0\r\n\r\n" + hidden,
		"a name with a NUL":           "POST / HTTP/1.1\r\nHost: x\r\nContent-Length\x00: 35\r\n\r\n" + hidden,
		"no host":                     "GET / HTTP/1.1\r\n\r\n" + hidden,
		"two hosts":                   "GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n" + hidden,
		"a chunk's size with a sign":  "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n" + hidden,
		"a chunk's size that is long": "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nhello\r\n0\r\n\r\n" + hidden,
		"a chunk that goes on":        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nhello\r\n0\r\n\r\n" + hidden,
		"another protocol's preface":  "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n" + hidden,
		"a PROXY header of nobody's":  "PROXY TCP4 6.6.6.6 127.0.0.1 1 2\r\n" + hidden,
	} {
		answer := exchange(t, p.addr(), text)
		// Refused and closed, or cut without a word: in no case is what was hidden answered too.
		if n := strings.Count(answer, "HTTP/1.1 "); n > 1 || strings.HasPrefix(answer, "HTTP/1.1 200") {
			t.Errorf("%s: %d answers: %s", name, n, answer)
		}
	}
	// A length beside an encoding: the encoding counts, as RFC 9112 has it, and a proxy in front reads it so too.
	if answer := exchange(t, p.addr(), "POST /both HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"); strings.Count(answer, "HTTP/1.1 ") != 1 {
		t.Errorf("both: %s", answer)
	}
	for name, text := range map[string]string{
		"a header that is too long": "GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("a", 64<<10) + "\r\n\r\n",
		"too many headers":          "GET /healthz HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("X: y\r\n", 20_000) + "\r\n",
		"a path that is too long":   "GET /" + strings.Repeat("a", 64<<10) + " HTTP/1.1\r\nHost: x\r\n\r\n",
	} {
		if answer := exchange(t, p.addr(), text); answer != "" && !strings.HasPrefix(answer, "HTTP/1.1 431 ") {
			t.Errorf("%s: %.200s", name, answer)
		}
	}
	// A newline in what is reflected stays in its header.
	req := "GET /healthz HTTP/1.1\r\nHost: x\r\nX-Request-Id: a%0d%0aSet-Cookie: b\r\n\r\n"
	if answer := exchange(t, p.addr(), req); strings.Contains(answer, "\nSet-Cookie") {
		t.Errorf("a header was made up: %s", answer)
	}
}

// heap is what is in use after a collection, and how many goroutines there are.
func heap() (uint64, int) {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse, runtime.NumGoroutine()
}

// Clients that send slowly, or nothing, neither keep others out nor stay for ever.
func TestSlowClients(t *testing.T) {
	t.Parallel()
	replicas := several(t, server.Config{TLSOff: true}, 2)
	began := time.Now()
	var slow []net.Conn
	for i := range 300 {
		conn, err := net.Dial("tcp", replicas[i/3%2].addr())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		text := []string{"", "GET / HTTP/1.1\r\nHost: x\r\nX-a: ", http2.ClientPreface[:10]}[i%3]
		if _, err := io.WriteString(conn, text); err != nil {
			t.Fatal(err)
		}
		slow = append(slow, conn)
	}
	for i, p := range replicas {
		res, err := http.Get("http://" + p.addr() + "/healthz")
		if err != nil || res.StatusCode != http.StatusOK {
			t.Fatalf("replica %d, beside slow clients: %v, %v", i, res, err)
		}
		_ = res.Body.Close()
	}
	// A byte now and then buys no time.
	var all sync.WaitGroup
	for i, conn := range slow {
		all.Go(func() {
			_ = conn.SetReadDeadline(began.Add(90 * time.Second))
			if i%3 == 1 {
				_, _ = io.WriteString(conn, "b")
			}
			if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("connection %d stands after %s", i, time.Since(began))
			}
		})
	}
	all.Wait()
	if took := time.Since(began); took > 60*time.Second {
		t.Errorf("they stayed for %s", took)
	}
}

// flood is one client's HTTP/2 connection that keeps to no rules.
func flood(t *testing.T, addr string) (*http2.Framer, net.Conn) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(3 * time.Minute))
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	w := bufio.NewWriterSize(conn, 64<<10)
	framer := http2.NewFramer(flushing{w}, conn)
	framer.AllowIllegalWrites = true
	if err := framer.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	return framer, conn
}

type flushing struct{ *bufio.Writer }

func (f flushing) Write(p []byte) (int, error) {
	n, err := f.Writer.Write(p)
	if err == nil && f.Buffered() > 32<<10 {
		err = f.Flush()
	}
	return n, err
}

// Streams that are begun and reset at once, and headers without end, cost their sender the connection, and nobody else
// anything.
//
//nolint:paralleltest // the memory of the whole process is looked at
func TestHTTP2Floods(t *testing.T) {
	p := lone(t, server.Config{TLSOff: true})
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	for _, f := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":authority", "x"}, {":path", operatorv1connect.SessionServiceGetMeProcedure}, {"content-type", "application/proto"}} {
		_ = encoder.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	before, _ := heap()
	var all sync.WaitGroup
	ends := make([]string, 6)
	for i := range ends {
		all.Go(func() {
			framer, conn := flood(t, p.addr())
			if i%2 == 0 {
				go func() {
					for id := uint32(1); id < 20_000; id += 2 {
						if framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndHeaders: true}) != nil || framer.WriteRSTStream(id, http2.ErrCodeCancel) != nil {
							return
						}
					}
					_ = conn.(*net.TCPConn).CloseWrite() //nolint:forcetypeassert // dialled
				}()
			} else {
				go func() {
					if framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes()}) != nil {
						return
					}
					for range 20_000 {
						if framer.WriteContinuation(1, false, bytes.Repeat([]byte{0x00, 0x01, 'a', 0x01, 'b'}, 200)) != nil {
							return
						}
					}
				}()
			}
			for {
				frame, err := framer.ReadFrame()
				if err != nil {
					ends[i] += err.Error()
					return
				}
				if away, ok := frame.(*http2.GoAwayFrame); ok {
					ends[i] += away.ErrCode.String() + " "
				}
			}
		})
	}
	// Meanwhile others are served.
	for range 20 {
		ctx, cancel := context.WithTimeout(t.Context(), within)
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.addr()+"/healthz", nil)
		res, err := http.DefaultClient.Do(req)
		if err != nil || res.StatusCode != http.StatusOK {
			t.Errorf("beside the floods: %v, %v", res, err)
		} else {
			_ = res.Body.Close()
		}
		cancel()
	}
	all.Wait()
	for i, end := range ends {
		if strings.Contains(end, "i/o timeout") {
			t.Errorf("flood %d: %s", i, end)
		}
	}
	after, goroutines := heap()
	t.Logf("floods ended with %q; memory went from %d to %d KiB, %d goroutines", ends, before>>10, after>>10, goroutines)
	if after > before+128<<20 {
		t.Errorf("memory went from %d to %d KiB", before>>10, after>>10)
	}
}

// haproxy runs a real one in front, in TCP mode with the PROXY protocol or in HTTP mode with X-Forwarded-For.
func haproxy(t *testing.T, backend, mode, serverOptions string) string {
	t.Helper()
	dir := t.TempDir()
	forwarded := ""
	if mode == "http" {
		forwarded = "  option forwardfor\n  http-request set-header X-Forwarded-Proto https\n"
	}
	text := fmt.Sprintf("global\n  maxconn 200\ndefaults\n  mode %s\n  timeout connect 10s\n  timeout client 60s\n  timeout server 60s\n"+
		"frontend f\n  bind fd@3\n%s  default_backend b\nbackend b\n  server s %s %s\n", mode, forwarded, backend, serverOptions)
	config := filepath.Join(dir, "haproxy.cfg")
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f, err := l.(*net.TCPListener).File() //nolint:forcetypeassert // it is
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	cmd := exec.Command("haproxy", "-db", "-f", config)
	cmd.ExtraFiles = []*os.File{f} // no port is free for a moment
	cmd.Stderr = t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal("haproxy is needed, make setup installs it: ", err)
	}
	_ = f.Close()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return l.Addr().String()
}

// addressOf signs in through front and asks from where, as sessions are shown.
func addressOf(t *testing.T, client *http.Client, front string, header http.Header) string {
	t.Helper()
	opt := connect.WithInterceptors(connect.UnaryInterceptorFunc(func(next connect.UnaryFunc) connect.UnaryFunc {
		return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
			for name, values := range header {
				req.Header()[name] = values
			}
			return next(ctx, req)
		}
	}))
	api := operatorv1connect.NewSessionServiceClient(client, front, opt)
	var res *connect.Response[operatorv1.SignInResponse]
	testwait.For(t, "signed in through the proxy", func() (ok bool) {
		var err error
		res, err = api.SignIn(t.Context(), connect.NewRequest(operatorv1.SignInRequest_builder{Email: ownerEmail, Password: ownerPassword}.Build()))
		return err == nil
	})
	req := connect.NewRequest(&operatorv1.ListSessionsRequest{})
	req.Header().Set("Authorization", "Bearer "+res.Msg.GetTokens().GetAccessToken())
	list, err := api.ListSessions(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(list.Msg.GetSessions(), func(s *operatorv1.Session) bool { return s.GetCurrent() })
	return list.Msg.GetSessions()[i].GetAddress()
}

// from is a client with an address of its own: all of 127/8 is this machine.
func from(t *testing.T, address string) *http.Client {
	t.Helper()
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
	transport := &http.Transport{DialContext: dialer.DialContext}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: within}
}

// A proxy that is named is believed, about where its clients are and that they came by HTTPS; nobody else is.
func TestProxies(t *testing.T) {
	t.Parallel()
	lie := http.Header{"X-Forwarded-For": {"6.6.6.6"}, "X-Forwarded-Proto": {"https"}, "Forwarded": {"for=6.6.6.6"}, "X-Real-Ip": {"6.6.6.6"}, "True-Client-Ip": {"6.6.6.6"}}
	t.Run("the PROXY protocol", func(t *testing.T) {
		t.Parallel()
		p := lone(t, server.Config{TLSOff: true, ProxyProtocol: []string{"127.0.0.1/32"}})
		for _, version := range []string{"send-proxy", "send-proxy-v2"} {
			front := haproxy(t, p.addr(), "tcp", version)
			if got := addressOf(t, from(t, "127.0.0.77"), "http://"+front, lie); got != "127.0.0.77" {
				t.Errorf("%s: the client's address is %q", version, got)
			}
		}
		// Not from the proxy: no header is expected, and one is nonsense.
		if got := addressOf(t, from(t, "127.0.0.78"), "http://"+p.addr(), lie); got != "127.0.0.78" {
			t.Errorf("beside the proxy: %q", got)
		}
		conn, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("127.0.0.79")}}).Dial("tcp", p.addr())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		_, _ = io.WriteString(conn, "PROXY TCP4 6.6.6.6 127.0.0.1 1 2\r\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
		if answer, _ := io.ReadAll(conn); bytes.Contains(answer, []byte(" 200 ")) {
			t.Errorf("a stranger's PROXY header is taken: %s", answer)
		}
		// From the proxy, nothing is answered without a whole one.
		for name, text := range map[string]string{
			"none": "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", "cut": "PROXY TCP4 6.6.6.6\r\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
			"long": "PROXY " + strings.Repeat("A", 4000) + "\r\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", "nonsense in binary": "\r\n\r\n\x00\r\nQUIT\n\xff\xff\xff\xffGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
		} {
			if answer := exchange(t, p.addr(), text); strings.Contains(answer, " 200 ") {
				t.Errorf("%s: %s", name, answer)
			}
		}
	})
	t.Run("X-Forwarded-For", func(t *testing.T) {
		t.Parallel()
		p := lone(t, server.Config{TLSOff: true, TrustedProxies: []string{"127.0.0.1"}})
		front := haproxy(t, p.addr(), "http", "")
		if got := addressOf(t, from(t, "127.0.0.77"), "http://"+front, lie); got != "127.0.0.77" {
			t.Errorf("through the proxy: %q", got)
		}
		if got := addressOf(t, from(t, "127.0.0.78"), "http://"+p.addr(), lie); got != "127.0.0.78" {
			t.Errorf("beside the proxy: %q", got)
		}
		for name, tc := range map[string]struct {
			client *http.Client
			url    string
			want   string
		}{
			"through the proxy": {from(t, "127.0.0.77"), "http://" + front, "max-age=31536000"},
			"beside it":         {from(t, "127.0.0.78"), "http://" + p.addr(), ""},
		} {
			req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, tc.url+"/", nil)
			req.Header = lie.Clone()
			res, err := tc.client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			_ = res.Body.Close()
			if got := res.Header.Get("Strict-Transport-Security"); got != tc.want {
				t.Errorf("%s: Strict-Transport-Security is %q", name, got)
			}
		}
		// A request with a length and an encoding, through the proxy: the next client gets its own answer.
		_ = exchange(t, front, "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 47\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /hidden HTTP/1.1\r\nHost: x\r\nX: ")
		for range 5 {
			res, err := from(t, "127.0.0.80").Get("http://" + front + "/healthz")
			if err != nil || res.StatusCode != http.StatusOK {
				t.Fatalf("the next client got %v, %v", res, err)
			}
			_ = res.Body.Close()
		}
	})
}

// One limit, however many replicas: what three of them count is counted together.
func TestOneLimitOverThree(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.replicas = append(h.replicas, serve(t, server.Config{Backend: h.backend, TLSOff: true, TrustedProxies: []string{"127.0.0.0/8"}, MetricsListen: "off"}))
	began := time.Now()
	heard, told := 0, false
	for n := range 200 {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, h.url(n%3)+operatorv1connect.FleetServiceGetFleetProcedure, strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Authorization", "Bearer fbt_wrong")
		req.Header.Set("X-Forwarded-For", "203.0.113.9")
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		switch res.StatusCode {
		case http.StatusUnauthorized:
			heard++
		case http.StatusTooManyRequests:
			wait, err := strconv.Atoi(res.Header.Get("Retry-After"))
			if told = true; err != nil || wait < 1 || res.Header.Get("RateLimit-Limit") != "30" || res.Header.Get("RateLimit-Remaining") != "0" {
				t.Errorf("a refusal says %v", res.Header)
			}
		case http.StatusServiceUnavailable: // not ready yet
		default:
			t.Errorf("status %d", res.StatusCode)
		}
	}
	if most := 30 + int(time.Since(began).Minutes()*30) + 1; heard < 30 || heard > most || !told {
		t.Errorf("three replicas heard %d wrong tokens of one address in %s", heard, time.Since(began))
	}
}
