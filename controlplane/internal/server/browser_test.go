package server_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/fleetban/fleetban/controlplane/internal/browser"
	"github.com/fleetban/fleetban/controlplane/internal/testwait"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1/operatorv1connect"
)

// tab is a browser's page. Tabs of one browser share its cookies.
type tab struct {
	h    *house
	jar  *jar
	site string // Sec-Fetch-Site
}

type jar struct {
	mu      sync.Mutex
	cookies map[string]*http.Cookie
}

func newTab(h *house) *tab {
	return &tab{h: h, jar: &jar{cookies: map[string]*http.Cookie{}}, site: "same-origin"}
}

func (j *jar) take(t *testing.T, header http.Header) {
	t.Helper()
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, line := range header.Values("Set-Cookie") {
		c, err := http.ParseSetCookie(line)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(c.Name, "__Host-") || !c.Secure || !c.HttpOnly || c.Path != "/" || c.Domain != "" || c.SameSite != http.SameSiteStrictMode || c.MaxAge == 0 {
			t.Errorf("a cookie that others may get at: %s", line)
		}
		if c.MaxAge < 0 {
			delete(j.cookies, c.Name)
		} else {
			j.cookies[c.Name] = c
		}
	}
}

func (j *jar) value(name string) string {
	j.mu.Lock()
	defer j.mu.Unlock()
	if c := j.cookies[name]; c != nil {
		return c.Value
	}
	return ""
}

func (j *jar) line() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	pairs := []string{"theme=dark"}
	for _, c := range j.cookies {
		pairs = append(pairs, c.Name+"="+c.Value)
	}
	return strings.Join(pairs, "; ")
}

// call sends one unary call as the console does.
func (b *tab) call(i int, procedure string, in, out proto.Message) (int, http.Header) {
	b.h.t.Helper()
	body, err := protojson.Marshal(in)
	if err != nil {
		b.h.t.Fatal(err)
	}
	req := b.request(i, http.MethodPost, procedure, "application/json", body)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		b.h.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		b.h.t.Fatal(err)
	}
	b.jar.take(b.h.t, res.Header)
	if res.StatusCode == http.StatusOK && out != nil {
		if err := protojson.Unmarshal(answer, out); err != nil {
			b.h.t.Fatal(err)
		}
	}
	return res.StatusCode, res.Header
}

func (b *tab) request(i int, method, procedure, contentType string, body []byte) *http.Request {
	req, err := http.NewRequestWithContext(b.h.t.Context(), method, b.h.url(i)+procedure, bytes.NewReader(body))
	if err != nil {
		b.h.t.Fatal(err)
	}
	as{"", &b.h.calls}.set(req.Header)
	req.Header.Set(browser.Header, browser.Cookie)
	req.Header.Set("Cookie", b.jar.line())
	req.Header.Set("Content-Type", contentType)
	req.Header.Set("Origin", b.h.url(i))
	req.Header.Set("Sec-Fetch-Site", b.site)
	return req
}

func (b *tab) signIn(i int) *operatorv1.SignInResponse {
	b.h.t.Helper()
	var res operatorv1.SignInResponse
	code, header := b.call(i, operatorv1connect.SessionServiceSignInProcedure, operatorv1.SignInRequest_builder{Email: ownerEmail, Password: ownerPassword}.Build(), &res)
	if code != http.StatusOK || b.jar.value(browser.AccessCookie) == "" || b.jar.value(browser.RefreshCookie) == "" {
		b.h.t.Fatal(code, header)
	}
	if res.GetTokens().GetAccessToken() != "" || res.GetTokens().GetRefreshToken() != "" || res.GetTokens().GetAccessS() <= 0 || res.GetPerson().GetEmail() != ownerEmail {
		b.h.t.Fatalf("what scripts can read: %v", &res)
	}
	return &res
}

const (
	getMe    = operatorv1connect.SessionServiceGetMeProcedure
	refresh  = operatorv1connect.SessionServiceRefreshProcedure
	signOut  = operatorv1connect.SessionServiceSignOutProcedure
	banProc  = operatorv1connect.BanServiceBanProcedure
	watching = operatorv1connect.FleetServiceWatchProcedure
)

// Tabs of a browser share a session, on whichever replica; a sign-out in one is one in all.
func TestBrowserSession(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	first := newTab(h)
	second := &tab{h: h, jar: first.jar, site: "same-origin"}
	if code, _ := first.call(0, getMe, &operatorv1.GetMeRequest{}, nil); code != http.StatusUnauthorized {
		t.Errorf("without a session: %d", code)
	}
	if code, _ := first.call(0, refresh, &operatorv1.RefreshRequest{}, nil); code != http.StatusUnauthorized {
		t.Errorf("refreshed without a session: %d", code)
	}
	session := first.signIn(0).GetPerson().GetSessionId()
	var me operatorv1.GetMeResponse
	if code, _ := second.call(1, getMe, &operatorv1.GetMeRequest{}, &me); code != http.StatusOK || me.GetPerson().GetSessionId() != session {
		t.Fatalf("another tab at the other replica: %d, %v", code, &me)
	}

	// Both see that the access token's time is up, and get another at once.
	var both sync.WaitGroup
	for i, page := range []*tab{first, second} {
		both.Go(func() {
			var res operatorv1.RefreshResponse
			if code, _ := page.call(i, refresh, &operatorv1.RefreshRequest{}, &res); code != http.StatusOK || res.GetTokens().GetRefreshToken() != "" {
				t.Errorf("tab %d: %d, %v", i, code, &res)
			}
		})
	}
	both.Wait()
	for i, page := range []*tab{first, second, first} {
		if code, _ := page.call(i%2, refresh, &operatorv1.RefreshRequest{}, nil); code != http.StatusOK {
			t.Errorf("after both refreshed at once, tab %d: %d", i, code)
		}
	}

	// A stream by cookie ends with the session.
	frame := binary.BigEndian.AppendUint32([]byte{0}, 2)
	res, err := http.DefaultClient.Do(second.request(1, http.MethodPost, watching, "application/connect+json", append(frame, "{}"...)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	if code, _ := first.call(0, banProc, operatorv1.BanRequest_builder{Prefixes: []string{"198.18.6.6"}, DurationS: 3600}.Build(), nil); code != http.StatusOK {
		t.Fatal(code)
	}
	if err := firstMessage(res.Body); err != nil {
		t.Fatal(err)
	}
	access, refreshToken := first.jar.value(browser.AccessCookie), first.jar.value(browser.RefreshCookie)
	if code, header := first.call(0, signOut, &operatorv1.SignOutRequest{}, nil); code != http.StatusOK || len(header.Values("Set-Cookie")) != 2 {
		t.Errorf("sign-out: %d, %v", code, header)
	}
	rest, err := io.ReadAll(res.Body) // ends, or the test does not
	if err != nil || !bytes.Contains(rest, []byte("REASON_BAD_CREDENTIAL")) && !bytes.Contains(rest, []byte(`"unauthenticated"`)) {
		t.Errorf("the stream ended with %v: %s", err, rest)
	}
	if first.jar.value(browser.AccessCookie) != "" || first.jar.value(browser.RefreshCookie) != "" {
		t.Errorf("left in the browser: %v", first.jar.cookies)
	}
	// What was copied before is worth nothing.
	first.jar.cookies[browser.AccessCookie] = &http.Cookie{Name: browser.AccessCookie, Value: access}
	first.jar.cookies[browser.RefreshCookie] = &http.Cookie{Name: browser.RefreshCookie, Value: refreshToken}
	for i := range h.replicas {
		testwait.For(t, "the copied cookie is refused", func() bool {
			code, _ := second.call(i, getMe, &operatorv1.GetMeRequest{}, nil)
			return code == http.StatusUnauthorized
		})
		if code, _ := second.call(i, refresh, &operatorv1.RefreshRequest{}, nil); code != http.StatusUnauthorized {
			t.Errorf("a session that ended was refreshed: %d", code)
		}
	}
	// Signing out of it again still empties the browser.
	if code, _ := second.call(1, signOut, &operatorv1.SignOutRequest{}, nil); code != http.StatusUnauthorized || first.jar.value(browser.AccessCookie) != "" || first.jar.value(browser.RefreshCookie) != "" {
		t.Errorf("signed out of what was over: %d, %v", code, first.jar.cookies)
	}
}

// firstMessage reads one message of a stream of Connect.
func firstMessage(r io.Reader) error {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	message := make([]byte, binary.BigEndian.Uint32(head[1:]))
	if _, err := io.ReadFull(r, message); err != nil {
		return err
	}
	if head[0] != 0 {
		return fmt.Errorf("the stream ended with %s", message)
	}
	return nil
}

// A session that somebody planted in a browser is not the one that its owner signs in to, nor is one in a message taken.
func TestSessionFixation(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	mallory := h.signIn(0, ownerEmail, ownerPassword)
	victim := newTab(h)
	victim.jar.cookies[browser.AccessCookie] = &http.Cookie{Name: browser.AccessCookie, Value: mallory.GetTokens().GetAccessToken()}
	victim.jar.cookies[browser.RefreshCookie] = &http.Cookie{Name: browser.RefreshCookie, Value: mallory.GetTokens().GetRefreshToken()}
	if id := victim.signIn(1).GetPerson().GetSessionId(); id == mallory.GetPerson().GetSessionId() {
		t.Error("signing in went on with the session that was there")
	}
	if victim.jar.value(browser.AccessCookie) == mallory.GetTokens().GetAccessToken() || victim.jar.value(browser.RefreshCookie) == mallory.GetTokens().GetRefreshToken() {
		t.Error("the planted tokens are there still")
	}
	empty := newTab(h)
	code, header := empty.call(0, refresh, operatorv1.RefreshRequest_builder{RefreshToken: mallory.GetTokens().GetRefreshToken()}.Build(), nil)
	if code != http.StatusUnauthorized || len(header.Values("Set-Cookie")) != 0 {
		t.Errorf("a browser took the session of a message: %d, %v", code, header)
	}
	// Of two cookies of a name one was made up; which, nobody knows.
	req := victim.request(0, http.MethodPost, getMe, "application/json", []byte("{}"))
	req.Header.Set("Cookie", victim.jar.line()+"; "+browser.AccessCookie+"="+mallory.GetTokens().GetAccessToken())
	if code := status(t, req); code != http.StatusUnauthorized {
		t.Errorf("two access cookies: %d", code)
	}
	// A program that says who it is isn't overruled by a cookie.
	req = victim.request(0, http.MethodPost, getMe, "application/json", []byte("{}"))
	req.Header.Set("Authorization", "Bearer nonsense")
	if code := status(t, req); code != http.StatusUnauthorized {
		t.Errorf("a bad bearer token beside a good cookie: %d", code)
	}
	for name, values := range map[string][]string{"another value": {"token"}, "twice": {"cookie", "cookie"}, "empty": {""}} {
		req = victim.request(0, http.MethodPost, getMe, "application/json", []byte("{}"))
		req.Header[http.CanonicalHeaderKey(browser.Header)] = values
		if code := status(t, req); code != http.StatusBadRequest {
			t.Errorf("%s: %d", name, code)
		}
	}
	// Programs get their tokens in the message, and no cookies.
	res, err := h.sessions(1, "").SignIn(t.Context(), connect.NewRequest(operatorv1.SignInRequest_builder{Email: ownerEmail, Password: ownerPassword}.Build()))
	if err != nil || res.Msg.GetTokens().GetAccessToken() == "" || len(res.Header().Values("Set-Cookie")) != 0 {
		t.Errorf("%v, %v", res, err)
	}
}

func status(t *testing.T, req *http.Request) int {
	t.Helper()
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, res.Body)
	_ = res.Body.Close()
	return res.StatusCode
}

// No page of another site acts with a browser's cookies, in whatever shape it sends its request: not even where a browser
// sends them along, which SameSite is to keep it from.
func TestForgedCrossSite(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	owner := newTab(h)
	owner.signIn(0)
	message := func(prefix string) *operatorv1.BanRequest {
		return operatorv1.BanRequest_builder{Prefixes: []string{prefix}, DurationS: 3600, Reason: "csrf"}.Build()
	}
	framed := func(flag byte, body []byte) []byte {
		return append(binary.BigEndian.AppendUint32([]byte{flag}, uint32(len(body))), body...)
	}
	binaryOf := func(m proto.Message) []byte {
		body, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return body
	}
	jsonOf := func(m proto.Message) []byte {
		body, err := protojson.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return body
	}
	shapes := map[string]struct {
		body func(m proto.Message) []byte
		// works: the API takes it, from its own pages.
		works bool
	}{
		"application/json":                  {jsonOf, true},
		"application/json; charset=utf-8":   {jsonOf, true},
		"application/proto":                 {binaryOf, true},
		"application/grpc-web":              {func(m proto.Message) []byte { return framed(0, binaryOf(m)) }, true},
		"application/grpc-web+proto":        {func(m proto.Message) []byte { return framed(0, binaryOf(m)) }, true},
		"application/grpc-web+json":         {func(m proto.Message) []byte { return framed(0, jsonOf(m)) }, true},
		"application/grpc":                  {func(m proto.Message) []byte { return framed(0, binaryOf(m)) }, true},
		"application/grpc+json":             {func(m proto.Message) []byte { return framed(0, jsonOf(m)) }, true},
		"application/connect+json":          {func(m proto.Message) []byte { return framed(0, jsonOf(m)) }, false},
		"application/connect+proto":         {func(m proto.Message) []byte { return framed(0, binaryOf(m)) }, false},
		"text/plain":                        {jsonOf, false},
		"application/x-www-form-urlencoded": {jsonOf, false},
		"multipart/form-data; boundary=x":   {jsonOf, false},
		"":                                  {jsonOf, false},
	}
	attacks := map[string]func(http.Header){
		"a form of another site": func(h http.Header) {
			h.Del(browser.Header)
			h.Set("Origin", "https://evil.example")
			h.Set("Sec-Fetch-Site", "cross-site")
		},
		"a fetch of another site that got past CORS": func(h http.Header) {
			h.Set("Origin", "https://evil.example")
			h.Set("Sec-Fetch-Site", "cross-site")
		},
		"a fetch of a sibling": func(h http.Header) {
			h.Set("Origin", "https://other.example.com")
			h.Set("Sec-Fetch-Site", "same-site")
		},
		"a sandboxed frame":                   func(h http.Header) { h.Set("Origin", "null"); h.Del("Sec-Fetch-Site") },
		"an old browser, another site":        func(h http.Header) { h.Set("Origin", "https://evil.example"); h.Del("Sec-Fetch-Site") },
		"a request of its own without header": func(h http.Header) { h.Del(browser.Header) },
		"an old browser without header": func(h http.Header) {
			h.Del(browser.Header)
			h.Del("Origin")
			h.Del("Sec-Fetch-Site")
		},
	}
	var allowed []string
	n := 0
	next := func() string { n++; return fmt.Sprintf("198.18.7.%d", n) }
	for contentType, shape := range shapes {
		for attack, change := range attacks {
			req := owner.request(n%2, http.MethodPost, banProc, contentType, shape.body(message(next())))
			change(req.Header)
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, res.Body)
			_ = res.Body.Close()
			// Where messages are framed, an error stands behind 200: what was banned tells, below.
			if framed := strings.Contains(contentType, "grpc") || strings.Contains(contentType, "connect+"); res.StatusCode < 400 && !framed {
				t.Errorf("%s as %q: %s", attack, contentType, res.Status)
			}
			if res.Header.Get("Access-Control-Allow-Origin") != "" || res.Header.Get("Access-Control-Allow-Credentials") != "" {
				t.Errorf("%s as %q: CORS is open: %v", attack, contentType, res.Header)
			}
		}
		prefix := next()
		if code := status(t, owner.request(n%2, http.MethodPost, banProc, contentType, shape.body(message(prefix)))); shape.works {
			allowed = append(allowed, prefix)
			if code != http.StatusOK {
				t.Errorf("the console's own %q: %d", contentType, code)
			}
		}
	}
	// A link, an image, a script: GET, in each way that Connect knows.
	query := url.Values{"connect": {"v1"}, "encoding": {"json"}, "message": {string(jsonOf(message("198.18.8.1")))}}
	for _, procedure := range []string{banProc, getMe, operatorv1connect.SessionServiceListSessionsProcedure, watching} {
		for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPut, http.MethodOptions, http.MethodDelete} {
			for _, site := range []string{"cross-site", "same-site", "none", "same-origin", ""} {
				req := owner.request(0, method, procedure+"?"+query.Encode(), "application/json", nil)
				if site != "same-origin" {
					req.Header.Del(browser.Header)
				}
				req.Header.Set("Sec-Fetch-Site", site)
				if code := status(t, req); code < 400 {
					t.Errorf("%s %s, %s: %d", method, procedure, site, code)
				}
			}
		}
	}
	// What a preflight asks for isn't granted.
	preflight := owner.request(0, http.MethodOptions, banProc, "", nil)
	preflight.Header = http.Header{"Origin": {"https://evil.example"}, "Access-Control-Request-Method": {"POST"}, "Access-Control-Request-Headers": {"content-type,fleetban-session"}}
	res, err := http.DefaultClient.Do(preflight)
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	for name := range res.Header {
		if strings.HasPrefix(name, "Access-Control-") {
			t.Errorf("a preflight got %s: %v", name, res.Header[name])
		}
	}
	var bans operatorv1.ListBansResponse
	if code, _ := owner.call(1, operatorv1connect.BanServiceListBansProcedure, &operatorv1.ListBansRequest{}, &bans); code != http.StatusOK {
		t.Fatal(code)
	}
	var stands []string
	for _, b := range bans.GetBans() {
		stands = append(stands, b.GetPrefix())
	}
	slices.Sort(stands)
	slices.Sort(allowed)
	if !slices.Equal(stands, allowed) {
		text, _ := json.Marshal(stands)
		t.Errorf("what stands: %s\nwhat the console asked for: %v", text, allowed)
	}
}
