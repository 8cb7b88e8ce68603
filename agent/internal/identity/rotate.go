package identity

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/fleetban/fleetban/agent/internal/envelope"
	"github.com/fleetban/fleetban/agent/stream"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/v1/fleetbanv1connect"
)

const (
	// nextFile holds the key that is to be this host's, from before the control plane is told of it until it is.
	nextFile = "identity.key.next"
	lockFile = "identity.lock"
	// askWithin bounds one call, lockWithin the wait for another process that changes the key.
	askWithin, lockWithin = 15 * time.Second, 30 * time.Second
)

// callProtocol is offered beside HTTP, and never agreed on: it says that a host calls, which the control plane may ask for a client
// certificate.
const callProtocol = "fleetban-agent-call"

// A change of the key may be killed at any moment:
//
//	next key written ─▶ control plane swaps ─▶ identity.json with the new grant and key ─▶ next key renamed
//	     old is good        old is refused           Load takes the next key                     done
//
// From the second on, whoever holds both keys is given the grant again: Settle asks for it.

// Rotate gives this host a new key; the control plane refuses the present one from then on. What it writes is uid's and
// gid's; -1 leaves the owner. One that was begun before is finished.
func Rotate(ctx context.Context, dir string, uid, gid int) (*Identity, error) {
	unlock, err := lock(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	id, err := Load(dir)
	if err != nil {
		return nil, err
	}
	next, err := loadKey(dir, nextFile)
	if errors.Is(err, os.ErrNotExist) {
		if _, next, err = ed25519.GenerateKey(nil); err == nil {
			err = writeFile(filepath.Join(dir, nextFile), encodeKey(next), uid, gid)
		}
	}
	if err != nil {
		return nil, err
	}
	return id, id.become(ctx, next, uid, gid)
}

// Settle loads the identity, and finishes first what a Rotate that was killed left behind, if the control plane can be asked.
func Settle(ctx context.Context, dir string) (*Identity, error) {
	if _, err := os.Lstat(filepath.Join(dir, nextFile)); err != nil {
		return Load(dir)
	}
	unlock, err := lock(ctx, dir)
	if err != nil {
		return Load(dir)
	}
	defer unlock()
	id, err := Load(dir)
	if err != nil {
		return nil, err
	}
	if next, err := loadKey(dir, nextFile); err == nil {
		_ = id.become(ctx, next, -1, -1) // else the present key is as good as it was
	}
	return id, nil
}

// KeyAge is how long this host has had its key.
func KeyAge(dir string) time.Duration {
	info, err := os.Stat(filepath.Join(dir, keyFile))
	if err != nil {
		return 0
	}
	return time.Since(info.ModTime())
}

// become has the control plane take the next key, and keeps what it answers.
func (id *Identity) become(ctx context.Context, next ed25519.PrivateKey, uid, gid int) error {
	grant, err := id.askRotation(ctx, next)
	path := filepath.Join(id.dir, nextFile)
	if err != nil {
		switch stream.InfoOf(err).GetReason() {
		case fleetbanv1.Reason_REASON_WRONG_KEY, fleetbanv1.Reason_REASON_INVALID_FIELD:
			_ = os.Remove(path) // it is nobody's key
		default:
		}
		return explain(err)
	}
	now := *id
	now.Key, now.Grant, now.PublicKey = next, grant, publicOf(next)
	if err := now.save(uid, gid); err != nil {
		return err
	}
	*id = now
	return os.Rename(path, filepath.Join(id.dir, keyFile))
}

// askRotation asks with a new assertion each time: one is good once.
func (id *Identity) askRotation(ctx context.Context, next ed25519.PrivateKey) (string, error) {
	tlsConf, err := id.TLS()
	if err != nil {
		return "", err
	}
	if tlsConf != nil {
		tlsConf.NextProtos = []string{"h2", "http/1.1", callProtocol}
	}
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: tlsConf, TLSHandshakeTimeout: askWithin, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	res := new(fleetbanv1.RotateKeyResponse)
	client := connect.NewClient[envelope.Envelope, envelope.Envelope](&http.Client{Transport: transport}, id.URL+fleetbanv1connect.AgentServiceRotateKeyProcedure,
		envelope.Responses(func() proto.Message { return res }), connect.WithReadMaxBytes(64<<10))
	public := next.Public().(ed25519.PublicKey) //nolint:forcetypeassert // an ed25519 key's
	ask := fleetbanv1.RotateKeyRequest_builder{
		PublicKey: public, Proof: ed25519.Sign(next, rotation(id.Audience, id.HostID, id.public(), public)),
	}.Build()
	var offset time.Duration
	for attempt := 0; ; attempt++ {
		assertion, err := stream.Assertion(id.Key, id.HostID, id.Audience, time.Now().Add(offset))
		if err != nil {
			return "", err
		}
		req := connect.NewRequest(&envelope.Envelope{Message: ask})
		req.Header().Set("Authorization", "Bearer "+assertion)
		req.Header().Set(stream.GrantHeader, id.Grant)
		call, cancel := context.WithTimeout(ctx, askWithin)
		_, err = client.CallUnary(call, req)
		cancel()
		if err == nil && (res.GetGrant() == "" || len(res.GetGrant()) > 4096) {
			return "", errors.New("the answer lacks the grant: is it a Fleetban control plane?")
		}
		if err == nil || ctx.Err() != nil || attempt == 3 {
			return res.GetGrant(), err
		}
		info := stream.InfoOf(err)
		switch {
		case info.GetReason() == fleetbanv1.Reason_REASON_CLOCK_SKEW && info.GetServerUnixMs() > 0:
			offset = time.Until(time.UnixMilli(info.GetServerUnixMs()))
		case connect.CodeOf(err) == connect.CodeUnavailable || connect.CodeOf(err) == connect.CodeDeadlineExceeded:
			select {
			case <-ctx.Done():
			case <-time.After(time.Second << attempt):
			}
		default:
			return "", err
		}
	}
}

func (id *Identity) public() ed25519.PublicKey {
	return id.Key.Public().(ed25519.PublicKey) //nolint:forcetypeassert // an ed25519 key's
}

func publicOf(key ed25519.PrivateKey) string {
	return base64.RawStdEncoding.EncodeToString(key[ed25519.SeedSize:])
}

// rotation and reenrolment are what hostauth.Rotation and hostauth.Reenrolment are; a test holds them together. That package
// brings what reads JWTs.
func rotation(audience, hostID string, present, next ed25519.PublicKey) []byte {
	return []byte(strings.Join([]string{"fleetban key rotation 1", audience, hostID, string(present), string(next)}, "\x00"))
}

func reenrolment(audience string, former, next ed25519.PublicKey) []byte {
	return []byte(strings.Join([]string{"fleetban re-enrolment 1", audience, string(former), string(next)}, "\x00"))
}

// lock keeps other processes from changing the key meanwhile. It ends with the process.
func lock(ctx context.Context, dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDONLY, 0o600) //nolint:gosec // our own path
	if err != nil {
		return nil, err
	}
	// The agent's user must be able to take it too, whoever made it.
	if info, statErr := os.Stat(dir); statErr == nil && os.Geteuid() == 0 {
		if owner, ok := info.Sys().(*syscall.Stat_t); ok {
			_ = f.Chown(int(owner.Uid), int(owner.Gid))
		}
	}
	deadline := time.Now().Add(lockWithin)
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) //nolint:gosec // a descriptor fits
		if err == nil {
			return func() {
				_ = unix.Flock(int(f.Fd()), unix.LOCK_UN) //nolint:gosec // as above
				_ = f.Close()
			}, nil
		}
		if ctx.Err() != nil || time.Now().After(deadline) {
			_ = f.Close()
			return nil, errors.New("another process changes this host's key; try again when it is done")
		}
		time.Sleep(50 * time.Millisecond)
	}
}
