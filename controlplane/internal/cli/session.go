package cli

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"connectrpc.com/connect"

	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1/operatorv1connect"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// session is a person's, in the configuration.
type session struct {
	Email   string `json:"email"`
	Access  string `json:"access"`
	Refresh string `json:"refresh"`
	// Until is when the access token is to be renewed, by this machine's clock, Unix seconds.
	Until int64 `json:"until"`
}

// renewBefore is how long before its end an access token is renewed.
const renewBefore = time.Minute

func newSession(email string, t *operatorv1.Tokens, now time.Time) *session {
	return &session{
		Email: email, Access: t.GetAccessToken(), Refresh: t.GetRefreshToken(),
		Until: now.Add(time.Duration(t.GetAccessS())*time.Second - renewBefore).Unix(),
	}
}

// signedIn is the credential of a person: it renews the access token and keeps the next ones in the configuration.
// Several processes with one configuration take turns.
type signedIn struct {
	path     string
	now      func() time.Time
	sessions operatorv1connect.SessionServiceClient // without a credential

	mu  sync.Mutex
	cfg config
}

// token is an access token that is good for a while yet; one other than not.
func (s *signedIn) token(ctx context.Context, not string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.good(not) {
		return s.cfg.Session.Access, nil
	}
	unlock, err := lock(ctx, s.path+".lock")
	if err != nil {
		return "", err
	}
	defer unlock()
	// Another process may have renewed it, or signed out.
	cfg, err := loadConfig(s.path)
	if err != nil {
		return "", err
	}
	if cfg.Session == nil || cfg.URL != s.cfg.URL {
		return "", signedOut("you signed out meanwhile")
	}
	s.cfg = cfg
	if s.good(not) {
		return s.cfg.Session.Access, nil
	}
	res, err := s.sessions.Refresh(ctx, connect.NewRequest(operatorv1.RefreshRequest_builder{RefreshToken: cfg.Session.Refresh}.Build()))
	if err != nil {
		return "", err
	}
	s.cfg.Session = newSession(cfg.Session.Email, res.Msg.GetTokens(), s.now())
	if err := s.cfg.save(s.path); err != nil {
		return "", err
	}
	return s.cfg.Session.Access, nil
}

func (s *signedIn) good(not string) bool {
	return s.cfg.Session.Access != not && s.now().Unix() < s.cfg.Session.Until
}

// forget removes the session from the configuration.
func (s *signedIn) forget(ctx context.Context) error {
	unlock, err := lock(ctx, s.path+".lock")
	if err != nil {
		return err
	}
	defer unlock()
	cfg, err := loadConfig(s.path)
	if err != nil {
		return err
	}
	cfg.Session = nil
	return cfg.save(s.path)
}

func signedOut(why string) error {
	return &failure{code: exitCredential, message: why, fix: "fleetban login --url URL --email E-MAIL"}
}

// WrapUnary implements connect.Interceptor. A token that was refused, because a role changed, is renewed once: what is
// refused for its credential was not done.
func (s *signedIn) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		token, err := s.token(ctx, "")
		if err != nil {
			return nil, err
		}
		credential(token).set(req.Header())
		res, err := next(ctx, req)
		if !isBadCredential(err) {
			return res, err
		}
		if token, err = s.token(ctx, token); err != nil {
			return nil, err
		}
		credential(token).set(req.Header())
		return next(ctx, req)
	}
}

// WrapStreamingClient implements connect.Interceptor.
func (s *signedIn) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		conn := next(ctx, spec)
		// One that can't be had is told by the stream: without a credential it is refused.
		if token, err := s.streamToken(ctx); err == nil {
			credential(token).set(conn.RequestHeader())
		}
		return conn
	}
}

// streamToken is one that was seen to be good a moment ago: a stream can't be tried twice.
func (s *signedIn) streamToken(ctx context.Context) (string, error) {
	token, err := s.token(ctx, "")
	if err != nil {
		return "", err
	}
	req := connect.NewRequest(&operatorv1.GetMeRequest{})
	credential(token).set(req.Header())
	if _, err := s.sessions.GetMe(ctx, req); isBadCredential(err) {
		return s.token(ctx, token)
	}
	return token, nil
}

// WrapStreamingHandler implements connect.Interceptor.
func (*signedIn) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

func isBadCredential(err error) bool {
	var ce *connect.Error
	if !errors.As(err, &ce) || ce.Code() != connect.CodeUnauthenticated {
		return false
	}
	for _, detail := range ce.Details() {
		if value, err := detail.Value(); err == nil {
			if info, ok := value.(*fleetbanv1.ErrorInfo); ok {
				return info.GetReason() == fleetbanv1.Reason_REASON_BAD_CREDENTIAL
			}
		}
	}
	return false
}

// lock waits for the file's lock. The kernel gives it back when the process ends.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("lock the configuration: %w", err)
	}
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the configuration: %w", err)
	}
	for {
		err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { _ = file.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			_ = file.Close()
			return nil, fmt.Errorf("lock the configuration: %w", err)
		}
		select {
		case <-ctx.Done():
			_ = file.Close()
			return nil, fmt.Errorf("lock the configuration: %w", ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// anonymous is a client for what needs no credential.
func anonymous(base connect.HTTPClient, url string) operatorv1connect.SessionServiceClient {
	return operatorv1connect.NewSessionServiceClient(base, url, connect.WithInterceptors(named{}), connect.WithReadMaxBytes(1<<20))
}

// named says who calls, and nothing else.
type named struct{}

// WrapUnary implements connect.Interceptor.
func (named) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		setAgent(req.Header())
		return next(ctx, req)
	}
}

// WrapStreamingClient implements connect.Interceptor.
func (named) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler implements connect.Interceptor.
func (named) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

var (
	_ connect.Interceptor = (*signedIn)(nil)
	_ connect.Interceptor = named{}
	_ connect.HTTPClient  = (*http.Client)(nil)
)
