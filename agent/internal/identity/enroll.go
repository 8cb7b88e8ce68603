package identity

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/hashicorp/go-retryablehttp"
	"google.golang.org/protobuf/proto"

	"github.com/fleetban/fleetban/agent/internal/envelope"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/v1/fleetbanv1connect"
)

// Request is what a person asks for when a host is to join.
type Request struct {
	// Dir is where the identity is kept; made if missing, mode 0700.
	Dir string
	// URL of the control plane, Pin of its key (optional), CAFile with its authorities (optional).
	URL, Pin, CAFile string
	// Token is the join token.
	Token string
	// Name is what people see; Facts what the host says of itself.
	Name  string
	Facts *fleetbanv1.HostFacts
	// Force takes another control plane than the one the host is enrolled with, or a new key with the same one.
	Force bool
	// UID and GID are to own what is written; -1 leaves the creator's.
	UID, GID int
}

// Result is how enrolment ended.
type Result struct {
	Identity *Identity
	// Already says that nothing was asked: the host was enrolled there.
	Already bool
	Mode    fleetbanv1.Mode
}

// OtherURLError says that the host belongs to another control plane.
type OtherURLError struct{ Have, Want string }

func (e *OtherURLError) Error() string {
	return fmt.Sprintf("this host is enrolled with %s; to move it to %s, which ends its membership there, add --force", e.Have, e.Want)
}

// Enroll makes this host a member of a fleet. It can be run again at any moment: the key is kept, and the same key is the
// same host.
func Enroll(ctx context.Context, r Request) (Result, error) {
	u, err := ParseURL(r.URL)
	if err != nil {
		return Result{}, err
	}
	if r.Pin != "" {
		if _, err := ParsePin(r.Pin); err != nil {
			return Result{}, err
		}
	}
	var ca []byte
	if r.CAFile != "" {
		if ca, err = readFile(r.CAFile); err != nil {
			return Result{}, fmt.Errorf("--ca-file: %w", err)
		}
	}
	tlsConf, err := tlsConfig(u.String(), r.Pin, ca)
	if err != nil {
		return Result{}, err
	}
	if err := os.MkdirAll(r.Dir, 0o700); err != nil {
		return Result{}, err
	}
	if r.UID != -1 || r.GID != -1 {
		if err := os.Chown(r.Dir, r.UID, r.GID); err != nil {
			return Result{}, err
		}
	}
	unlock, err := lock(ctx, r.Dir)
	if err != nil {
		return Result{}, err
	}
	defer unlock()
	old, err := Load(r.Dir)
	switch {
	case err == nil && old.URL == u.String() && !r.Force:
		if old.Pin != r.Pin && r.Pin != "" {
			old.Pin = r.Pin
			return Result{Identity: old, Already: true}, old.save(r.UID, r.GID)
		}
		return Result{Identity: old, Already: true}, nil
	case err == nil && old.URL != u.String() && !r.Force:
		return Result{}, &OtherURLError{old.URL, u.String()}
	case r.Force:
		// A key that another control plane knows, or that this one refuses, is not to be used again.
		if err := os.Rename(filepath.Join(r.Dir, keyFile), filepath.Join(r.Dir, keyFile+".old")); err != nil && !errors.Is(err, os.ErrNotExist) {
			return Result{}, err
		}
	}
	if err := os.Remove(filepath.Join(r.Dir, nextFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return Result{}, err
	}
	key, err := makeKey(r.Dir, r.UID, r.GID)
	if err != nil {
		return Result{}, err
	}
	ask := fleetbanv1.EnrollRequest_builder{
		JoinToken: r.Token, PublicKey: key.Public().(ed25519.PublicKey), Name: r.Name, Facts: r.Facts, //nolint:forcetypeassert // an ed25519 key's
	}.Build()
	if old != nil && old.URL == u.String() {
		// The same host, with another key: not a second one.
		ask.SetFormerKey(old.public())
		ask.SetFormerProof(ed25519.Sign(old.Key, reenrolment(old.Audience, old.public(), ask.GetPublicKey())))
	}
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: tlsConf, TLSHandshakeTimeout: 15 * time.Second, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	res := new(fleetbanv1.EnrollResponse)
	client := connect.NewClient[envelope.Envelope, envelope.Envelope](retrying(transport), u.String()+fleetbanv1connect.AgentServiceEnrollProcedure,
		envelope.Responses(func() proto.Message { return res }), connect.WithReadMaxBytes(64<<10))
	_, err = client.CallUnary(ctx, connect.NewRequest(&envelope.Envelope{Message: ask}))
	if err != nil {
		return Result{}, fmt.Errorf("enrol with %s: %w", u, explain(err))
	}
	id := &Identity{
		URL: u.String(), HostID: res.GetHostId(), HostName: res.GetName(), OrganisationID: res.GetOrganisationId(),
		Organisation: res.GetOrganisationName(), Grant: res.GetGrant(), Audience: res.GetAudience(), Pin: r.Pin,
		Key: key, dir: r.Dir,
	}
	if id.HostID == "" || len(id.HostID) > 64 || id.Grant == "" || len(id.Grant) > 4096 || id.Audience == "" || len(id.Audience) > 256 {
		return Result{}, fmt.Errorf("enrol with %s: the answer lacks the host's id or grant: is it a Fleetban control plane?", u)
	}
	if ca != nil {
		err = writeFile(filepath.Join(r.Dir, caFile), ca, r.UID, r.GID)
	} else if err = os.Remove(filepath.Join(r.Dir, caFile)); errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	if err != nil {
		return Result{}, err
	}
	return Result{Identity: id, Mode: res.GetMode()}, id.save(r.UID, r.GID)
}

// retrying tries a request again where the network or a replica that goes is to blame. Enrolment may be repeated: the same
// key gives the same host. The pauses are drawn, so that a fleet that is enrolled by one script doesn't come in step.
func retrying(transport http.RoundTripper) *http.Client {
	c := retryablehttp.NewClient()
	c.HTTPClient = &http.Client{Transport: transport, Timeout: 20 * time.Second}
	c.Logger = nil
	c.RetryMax = 5
	c.ErrorHandler = retryablehttp.PassthroughErrorHandler
	c.Backoff = func(_, _ time.Duration, attempt int, _ *http.Response) time.Duration {
		d := 300 * time.Millisecond << min(attempt, 5)
		return d/2 + time.Duration(rand.Int64N(int64(d))) //nolint:gosec // no secret
	}
	c.CheckRetry = func(ctx context.Context, res *http.Response, err error) (bool, error) {
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		if err != nil {
			// A key that is not the pinned one won't become it.
			return !strings.Contains(err.Error(), "certificate") && !strings.Contains(err.Error(), "pinned"), nil
		}
		return res.StatusCode == http.StatusBadGateway || res.StatusCode == http.StatusServiceUnavailable || res.StatusCode == http.StatusGatewayTimeout ||
			res.StatusCode == http.StatusTooManyRequests, nil
	}
	return c.StandardClient()
}

// explain adds what mends it.
func explain(err error) error {
	fix := ""
	var e *connect.Error
	if errors.As(err, &e) {
		err = errors.New(e.Message())
		for _, d := range e.Details() {
			if m, valueErr := d.Value(); valueErr == nil {
				if info, ok := m.(*fleetbanv1.ErrorInfo); ok {
					fix = info.GetFix()
				}
			}
		}
		if fix == "" && e.Code() == connect.CodeUnimplemented {
			fix = "There is no Fleetban control plane at this URL."
		}
	}
	if fix == "" && strings.Contains(err.Error(), "certificate signed by unknown authority") {
		fix = "If the control plane has a certificate of its own, give --pin as it prints it when it starts, or --ca-file."
	}
	// What the control plane says has its fix in it already.
	if fix == "" || strings.Contains(err.Error(), fix) {
		return err
	}
	return fmt.Errorf("%w. %s", err, fix)
}
