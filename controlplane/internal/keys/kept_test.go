package keys_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/fleetban/fleetban/controlplane/internal/keys"
	"github.com/fleetban/fleetban/controlplane/internal/store"
	"github.com/fleetban/fleetban/controlplane/internal/store/redistest"
)

// fakeKMS speaks KMS's JSON 1.1 protocol. What it calls a ciphertext is the plaintext with the key's name before it, XORed.
type fakeKMS struct {
	*httptest.Server

	calls atomic.Int64
	// broken, where it is set, is what KMS answers.
	broken atomic.Pointer[string]
}

func newKMS(t *testing.T) *fakeKMS {
	t.Helper()
	f := &fakeKMS{}
	f.Server = httptest.NewServer(http.HandlerFunc(f.serve))
	t.Cleanup(f.Close)
	return f
}

func (f *fakeKMS) key(id string) keys.Wrapper {
	return keys.NewKMS(aws.Config{
		Region: "eu-central-1", BaseEndpoint: aws.String(f.URL), RetryMaxAttempts: 1,
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: "AKIATEST", SecretAccessKey: "test"}, nil
		}),
	}, id)
}

func (f *fakeKMS) serve(w http.ResponseWriter, r *http.Request) {
	f.calls.Add(1)
	fail := func(code int, kind string) {
		w.Header().Set("Content-Type", "application/x-amz-json-1.1")
		w.WriteHeader(code)
		_, _ = fmt.Fprintf(w, `{"__type":%q,"message":"no"}`, kind)
	}
	if broken := f.broken.Load(); broken != nil {
		code := http.StatusBadRequest
		if *broken == "KMSInternalException" {
			code = http.StatusInternalServerError
		}
		fail(code, *broken)
		return
	}
	var in struct {
		KeyID             string `json:"KeyId"`
		Plaintext         []byte
		CiphertextBlob    []byte
		EncryptionContext map[string]string
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil || !strings.HasPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 Credential=AKIATEST/") {
		fail(http.StatusBadRequest, "ValidationException")
		return
	}
	if strings.Contains(in.KeyID, "missing") {
		fail(http.StatusBadRequest, "NotFoundException")
		return
	}
	flip := func(b []byte) []byte {
		for i := range b {
			b[i] ^= 0x5a
		}
		return b
	}
	head := in.KeyID + "|" + fmt.Sprint(in.EncryptionContext) + "|"
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	switch r.Header.Get("X-Amz-Target") {
	case "TrentService.Encrypt":
		_ = json.NewEncoder(w).Encode(map[string]any{"KeyId": in.KeyID, "CiphertextBlob": flip([]byte(head + string(in.Plaintext)))})
	case "TrentService.Decrypt":
		plain := flip(in.CiphertextBlob)
		if !bytes.HasPrefix(plain, []byte(head)) {
			fail(http.StatusBadRequest, "IncorrectKeyException")
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"KeyId": in.KeyID, "Plaintext": plain[len(head):]})
	default:
		fail(http.StatusBadRequest, "UnknownOperationException")
	}
}

func kek(t *testing.T, lines ...string) []keys.Wrapper {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kek")
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := keys.LoadKEK(path)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

var quiet = slog.New(slog.DiscardHandler)

const wrapKey, nextKey = "00112233445566778899aabbccddeeff00112233445566778899aabbccddee01", "ffeeddccbbaa99887766554433221100ffeeddccbbaa99887766554433221102"

// TestSources holds each source to the same: one secret, whoever opens it and how often, and nowhere to be read.
func TestSources(t *testing.T) {
	t.Parallel()
	// replica gives the source as another replica on a machine of its own has it.
	for name, fleet := range map[string]func(t *testing.T) (replica func() keys.Source, raw func() string){
		"a file": func(t *testing.T) (func() keys.Source, func() string) {
			path := filepath.Join(t.TempDir(), "secret")
			return func() keys.Source { return keys.File(path) }, nil // readable by who runs it
		},
		"Redis under a key from a file": func(t *testing.T) (func() keys.Source, func() string) { return kept(t, kek(t, wrapKey)) },
		"Redis under a key in KMS": func(t *testing.T) (func() keys.Source, func() string) {
			return kept(t, []keys.Wrapper{newKMS(t).key("alias/fleet")})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			replica, raw := fleet(t)
			var all sync.WaitGroup
			var mu sync.Mutex
			prints, made := map[string]int{}, 0
			first := make([]keys.Source, 8)
			for i := range first {
				first[i] = replica()
				all.Go(func() {
					k, created, err := first[i].Open(t.Context())
					if err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					defer mu.Unlock()
					prints[k.Fingerprint()]++
					if created {
						made++
					}
				})
			}
			all.Wait()
			if len(prints) != 1 || made != 1 {
				t.Fatalf("eight starts at once: %v, %d say they made it", prints, made)
			}
			for _, source := range []keys.Source{replica(), first[0]} {
				k, created, err := source.Open(t.Context())
				if err != nil || created || prints[k.Fingerprint()] != 8 {
					t.Errorf("a later start: %v, %v, %v", k, created, err)
				}
			}
			if raw == nil {
				return
			}
			var wrapped keys.Wrapped
			if err := json.Unmarshal([]byte(raw()), &wrapped); err != nil || len(wrapped.Text) <= keys.SecretLen {
				t.Errorf("what stands in Redis: %s, %v", raw(), err)
			}
			for at := 0; at+keys.SecretLen <= len(wrapped.Text); at++ {
				if prints[keys.New([keys.SecretLen]byte(wrapped.Text[at:])).Fingerprint()] > 0 {
					t.Error("the secret stands in Redis as it is")
				}
			}
		})
	}
}

func kept(t *testing.T, wrappers []keys.Wrapper) (replica func() keys.Source, raw func() string) {
	t.Helper()
	st := redistest.Start(t).Open()
	return func() keys.Source {
			return keys.Kept{Store: st, Wrappers: wrappers, Copy: filepath.Join(t.TempDir(), "copy"), Logger: quiet}
		}, func() string {
			text, err := st.Client().Get(t.Context(), store.Global("secret")).Result()
			if err != nil {
				t.Error(err)
			}
			return text
		}
}

// open opens as a replica with a folder does, and tells the secret's fingerprint.
func open(t *testing.T, st *store.Store, dir string, wrappers ...keys.Wrapper) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	k, _, err := keys.Kept{Store: st, Wrappers: wrappers, Copy: filepath.Join(dir, "copy"), Logger: quiet}.Open(ctx)
	if err != nil {
		return "", err
	}
	return k.Fingerprint(), nil
}

// A key is replaced by another, of the same kind or not, without the secret changing; the former one is of no use then.
func TestRewrap(t *testing.T) {
	t.Parallel()
	st := redistest.Start(t).Open()
	service := newKMS(t)
	one, two, both, kms, kms2 := kek(t, wrapKey), kek(t, nextKey), kek(t, nextKey, "", wrapKey), service.key("one"), service.key("two")
	var secret string
	dirs := []string{t.TempDir(), t.TempDir()}
	for i, step := range []struct {
		with []keys.Wrapper
		// former is refused once all replicas turned.
		former []keys.Wrapper
	}{
		{one, two}, {both, one}, {two, one}, {append([]keys.Wrapper{kms}, two...), two}, {[]keys.Wrapper{kms2, kms}, []keys.Wrapper{kms}}, {[]keys.Wrapper{kms2}, one},
	} {
		for _, dir := range dirs {
			got, err := open(t, st, dir, step.with...)
			if err != nil || secret != "" && got != secret {
				t.Fatalf("step %d: %s, %v", i, got, err)
			}
			secret = got
		}
		if _, err := open(t, st, t.TempDir(), step.former...); !errors.Is(err, keys.ErrOtherKey) || !strings.Contains(err.Error(), "--kek-file") {
			t.Errorf("step %d: the former key still opens it: %v", i, err)
		}
	}
	// At once, on two replicas.
	var all sync.WaitGroup
	for i := range 6 {
		all.Go(func() {
			if got, err := open(t, st, t.TempDir(), append(slices.Clone(two), kms2)...); err != nil || got != secret {
				t.Errorf("%d: %s, %v", i, got, err)
			}
		})
	}
	all.Wait()
	if got, err := open(t, st, t.TempDir(), two...); err != nil || got != secret {
		t.Error(got, err)
	}
}

// An empty Redis gets back the secret that a replica knew; a forged, damaged or other one is refused.
func TestKeptAgainstLoss(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	st := server.Open()
	key, dir := kek(t, wrapKey), t.TempDir()
	secret, err := open(t, st, dir, key...)
	if err != nil {
		t.Fatal(err)
	}
	server.Empty()
	retried := func(dir string) (got string, err error) {
		// The first try may meet connections that the old server closed.
		for range 10 {
			if got, err = open(t, st, dir, key...); !errors.Is(err, store.ErrUnavailable) && !errors.Is(err, store.ErrOutcomeUnknown) {
				return got, err
			}
		}
		return got, err
	}
	if got, err := retried(dir); err != nil || got != secret {
		t.Fatalf("after Redis lost it: %s, %v", got, err)
	}
	if got, err := open(t, st, t.TempDir(), key...); err != nil || got != secret {
		t.Fatalf("a new machine: %s, %v", got, err)
	}
	good := st.Client().Get(t.Context(), store.Global("secret")).Val()
	var wrapped keys.Wrapped
	if err := json.Unmarshal([]byte(good), &wrapped); err != nil {
		t.Fatal(err)
	}
	set := func(text string) {
		if err := st.Client().Set(t.Context(), store.Global("secret"), text, 0).Err(); err != nil {
			t.Fatal(err)
		}
	}
	for i := range wrapped.Text {
		changed := bytes.Clone(wrapped.Text)
		changed[i] ^= 1
		set(fmt.Sprintf(`{"by":%q,"text":%q}`, wrapped.By, base64.StdEncoding.EncodeToString(changed)))
		if _, err := open(t, st, dir, key...); !errors.Is(err, keys.ErrOtherKey) {
			t.Fatalf("byte %d changed: %v", i, err)
		}
	}
	for _, text := range []string{"", "{}", "null", "{", `{"text":"AA=="}`, strings.Repeat("x", 1000)} {
		set(text)
		if got, err := open(t, st, dir, key...); err == nil && got != secret {
			t.Errorf("%q opens as %s", text, got)
		}
	}
	// Someone with the key made another.
	if err := st.Client().Del(t.Context(), store.Global("secret")).Err(); err != nil {
		t.Fatal(err)
	}
	if other, err := open(t, st, t.TempDir(), key...); err != nil || other == secret {
		t.Fatal(other, err)
	}
	if _, err := open(t, st, dir, key...); !errors.Is(err, keys.ErrDisagree) || !strings.Contains(err.Error(), dir) {
		t.Errorf("another secret: %v", err)
	}
}

// Who is away may come back; who refuses will go on to.
func TestKeepersAway(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	st := server.Open()
	service := newKMS(t)
	key := service.key("arn:aws:kms:eu-central-1:1:key/x")
	if _, err := open(t, st, t.TempDir(), service.key("missing")); err == nil || errors.Is(err, keys.ErrAway) || !strings.Contains(err.Error(), "kms:Decrypt") {
		t.Errorf("a key that isn't: %v", err)
	}
	for _, kind := range []string{"KMSInternalException", "ThrottlingException", "KeyUnavailableException"} {
		service.broken.Store(&kind)
		if _, err := open(t, st, t.TempDir(), key); !errors.Is(err, keys.ErrAway) {
			t.Errorf("%s: %v", kind, err)
		}
	}
	for _, kind := range []string{"AccessDeniedException", "DisabledException", "KMSInvalidStateException"} {
		service.broken.Store(&kind)
		if _, err := open(t, st, t.TempDir(), key); err == nil || errors.Is(err, keys.ErrAway) {
			t.Errorf("%s: %v", kind, err)
		}
	}
	service.broken.Store(nil)
	secret, err := open(t, st, t.TempDir(), key)
	if err != nil {
		t.Fatal(err)
	}
	// KMS is asked once by a start, and by nothing else.
	before := service.calls.Load()
	if got, err := open(t, st, t.TempDir(), key); err != nil || got != secret || service.calls.Load() != before+1 {
		t.Errorf("%s, %v, %d calls", got, err, service.calls.Load()-before)
	}
	service.Close()
	if _, err := open(t, st, t.TempDir(), key); !errors.Is(err, keys.ErrAway) {
		t.Errorf("KMS away: %v", err)
	}
	server.Kill()
	if _, err := open(t, st, t.TempDir(), key); !errors.Is(err, store.ErrUnavailable) && !errors.Is(err, store.ErrOutcomeUnknown) {
		t.Errorf("Redis away: %v", err)
	}
}

func TestKEKFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "kek")
	for _, bad := range []string{"", "\n\n", "hunter2", wrapKey[:62], wrapKey + "\nhunter2", strings.Repeat("x", 64)} {
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := keys.LoadKEK(path); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if err := os.WriteFile(path, bytes.Repeat([]byte{0xff}, 32), 0o600); err != nil {
		t.Fatal(err)
	}
	if w, err := keys.LoadKEK(path); err != nil || len(w) != 1 {
		t.Errorf("32 bytes: %v", err)
	}
	if _, err := keys.LoadKEK(path + "-none"); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}
