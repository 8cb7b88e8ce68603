package acmecert

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/crypto/acme"

	"github.com/fleetban/fleetban/controlplane/internal/leases"
	"github.com/fleetban/fleetban/controlplane/internal/seal"
	"github.com/fleetban/fleetban/controlplane/internal/store"
)

// LetsEncrypt is the directory that is asked unless another is named.
const LetsEncrypt = acme.LetsEncryptURL

// LeaseName is that of the lease under which a replica orders; nobody has it while nothing is to be ordered.
const LeaseName = "acme"

// work is what is noted under the lease.
const work = "certificate"

const (
	lookEvery = time.Second
	// orderWithin bounds one attempt.
	orderWithin = 4 * time.Minute
	// leaseLife is how long after the death of who orders another one may; it is renewed meanwhile.
	leaseLife = 30 * time.Second
	// firstWait is the pause after an attempt that failed; it doubles with each, up to lastWait. Let's Encrypt takes five failures
	// an hour.
	firstWait = time.Minute
	lastWait  = time.Hour
	// dueAtMost is how long before its end a certificate is renewed at most; sooner where it lives shorter: a third of its life.
	dueAtMost = 30 * 24 * time.Hour
	// maxStored bounds what is read of Redis, bytes.
	maxStored = 64 << 10
)

// Keys are those that replicas share: *keys.Keys.
type Keys interface {
	// TLSKey is the certificate's.
	TLSKey() *ecdsa.PrivateKey
	ACMEAccountKey() *ecdsa.PrivateKey
}

// Options of New. All but the marked fields are required.
type Options struct {
	Store *store.Store
	Seal  *seal.Sealer
	Keys  Keys
	// Replica names this process; no two of a fleet may be the same.
	Replica string
	// Domains are in the certificate, the first as its name; see ParseDomain.
	Domains []string
	// Email is told to the authority; optional.
	Email string
	// Directory is the authority's; optional, default LetsEncrypt.
	Directory string
	// CAFile has the authorities, PEM, that the directory's own certificate is checked by; optional, default the system's.
	CAFile string
	// HTTP has domains proven by HTTP-01, and HTTPHandler answer; else it is TLS-ALPN-01, and Challenge.
	HTTP   bool
	Logger *slog.Logger
}

// Keeper keeps this replica's certificate. Safe for concurrent use.
type Keeper struct {
	o       Options
	key     *ecdsa.PrivateKey
	client  *acme.Client
	lease   *leases.Lease
	names   string // of the domains, in keys of Redis
	current atomic.Pointer[tls.Certificate]

	// Of Run alone.
	failures int
	told     time.Time // when it was last said that a certificate is about to end
}

// New makes a Keeper that has no certificate yet.
func New(o Options) (*Keeper, error) {
	if o.Directory == "" {
		o.Directory = LetsEncrypt
	}
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSHandshakeTimeout: 15 * time.Second, ForceAttemptHTTP2: true,
		ResponseHeaderTimeout: 30 * time.Second, IdleConnTimeout: time.Minute, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12},
	}
	if o.CAFile != "" {
		text, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read the authority of the ACME directory: %w", err)
		}
		transport.TLSClientConfig.RootCAs = x509.NewCertPool()
		if !transport.TLSClientConfig.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("%s holds no certificate in PEM", o.CAFile)
		}
	}
	names := slices.Clone(o.Domains)
	slices.Sort(names)
	return &Keeper{
		o: o, key: o.Keys.TLSKey(), names: strings.Join(slices.Compact(names), ","),
		client: &acme.Client{
			Key: o.Keys.ACMEAccountKey(), DirectoryURL: o.Directory, UserAgent: "fleetban-controlplane",
			HTTPClient: &http.Client{Transport: transport, Timeout: time.Minute},
		},
		lease: leases.New(o.Store, LeaseName, o.Replica, leaseLife),
	}, nil
}

// ParseDomain checks a name that a certificate is asked for: at least two labels, no wildcard (those need DNS), no address.
func ParseDomain(name string) error {
	labels := strings.Split(name, ".")
	if len(name) > 253 || len(labels) < 2 {
		return fmt.Errorf("%.60q is no public name of a host", name)
	}
	for _, label := range labels {
		ok := label != "" && len(label) <= 63 && label[0] != '-' && label[len(label)-1] != '-'
		for _, r := range label {
			ok = ok && (r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-')
		}
		if !ok {
			return fmt.Errorf("%.60q is no public name of a host in lower case", name)
		}
	}
	if last := labels[len(labels)-1]; last[0] >= '0' && last[0] <= '9' {
		return fmt.Errorf("%.60q is an address, not a name", name)
	}
	return nil
}

// Certificate is what is to be served; nil until the first was made, or read.
func (k *Keeper) Certificate() *tls.Certificate { return k.current.Load() }

// Run keeps the certificate until ctx ends.
func (k *Keeper) Run(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		if err := k.look(ctx); err != nil && ctx.Err() == nil {
			k.o.Logger.WarnContext(ctx, "the certificate can't be looked after, trying again", slog.Any("error", err))
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Load reads the certificate that stands in Redis, so that a replica that starts serves it at once.
func (k *Keeper) Load(ctx context.Context) error {
	_, err := k.read(ctx)
	return err
}

// look does what is due.
func (k *Keeper) look(ctx context.Context) error {
	stands, err := k.read(ctx)
	if err != nil {
		return err
	}
	mine := k.current.Load()
	if mine != nil && !stands && time.Now().Before(mine.Leaf.NotAfter) {
		// Redis lost it.
		if err := k.save(ctx, mine); err != nil {
			return err
		}
	}
	if mine != nil && time.Until(mine.Leaf.NotAfter) < due(mine.Leaf)/2 && time.Since(k.told) > time.Hour {
		k.told = time.Now()
		k.o.Logger.ErrorContext(ctx, "the certificate ends soon and could not be renewed", slog.Time("not_after", mine.Leaf.NotAfter))
	}
	if mine != nil && time.Until(mine.Leaf.NotAfter) > due(mine.Leaf) {
		return nil
	}
	if waiting, err := k.o.Store.Client().Exists(ctx, k.redisKey("wait")).Result(); err != nil || waiting > 0 {
		return store.Classify(err)
	}
	return k.underLease(ctx, func(ctx context.Context) error {
		// Another may have made one before the lease was free.
		if _, err := k.read(ctx); err != nil {
			return err
		}
		if c := k.current.Load(); c != nil && c != mine {
			return nil
		}
		return k.renew(ctx)
	})
}

// due is how long before its end a certificate is renewed.
func due(leaf *x509.Certificate) time.Duration {
	return min(leaf.NotAfter.Sub(leaf.NotBefore)/3, dueAtMost)
}

// underLease calls f where no other replica is at it, for as long as the lease is held.
func (k *Keeper) underLease(ctx context.Context, f func(context.Context) error) error {
	held, _, err := k.lease.Hold(ctx)
	if err != nil || !held {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, orderWithin)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(leaseLife / 3)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				// Where it is lost another one orders too: that makes one certificate too many and nothing worse.
				_, _, _ = k.lease.Hold(ctx)
			}
		}
	}()
	err = f(ctx)
	cancel()
	<-done
	released, stop := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer stop()
	return errors.Join(err, k.lease.Release(released))
}

// renew orders a certificate and serves it. What fails is said, and not tried again for a while by any replica.
func (k *Keeper) renew(ctx context.Context) error {
	began := time.Now()
	c, err := k.order(ctx)
	k.note(ctx, began, err)
	if err != nil {
		wait := min(firstWait<<min(k.failures, 10), lastWait)
		k.failures++
		k.o.Logger.ErrorContext(ctx, "no certificate was made: see that the names lead here, and what the authority says",
			slog.String("domains", k.names), slog.String("directory", k.o.Directory), slog.Any("error", err), slog.Duration("next_attempt_in", wait))
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		return store.Classify(k.o.Store.Client().Set(ctx, k.redisKey("wait"), k.o.Replica, wait).Err())
	}
	k.failures = 0
	k.current.Store(c)
	k.o.Logger.InfoContext(ctx, "a certificate was made", slog.String("domains", k.names), slog.Time("not_after", c.Leaf.NotAfter))
	return k.save(ctx, c)
}

// note keeps when the last attempt was, and how it went, for people to see. Why it failed is in the log: all organisations read this.
func (k *Keeper) note(ctx context.Context, began time.Time, failed error) {
	r := leases.Run{Name: work, Began: began, Took: time.Since(began)}
	if failed != nil {
		r.Problem = "no certificate was made: see the log of the replica"
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if err := k.lease.Ran(ctx, r); err != nil {
		k.o.Logger.DebugContext(ctx, "the attempt was not noted", slog.Any("error", err))
	}
}

// read takes the certificate that stands in Redis if it is better than the one served. It reports whether a good one stands there.
func (k *Keeper) read(ctx context.Context) (stands bool, err error) {
	sealed, err := k.o.Store.Client().GetRange(ctx, k.redisKey("certificate"), 0, maxStored).Result()
	if err != nil {
		return false, store.Classify(err)
	}
	if sealed == "" {
		return false, nil
	}
	text, err := k.o.Seal.Open(ctx, "acme certificate", "", k.names, sealed)
	if err != nil {
		return false, nil //nolint:nilerr // said by the sealer; it counts as not there
	}
	c, err := k.parse([]byte(text))
	if err != nil {
		return false, nil //nolint:nilerr // it ended, or is for another key: as if there were none
	}
	if mine := k.current.Load(); mine == nil || c.Leaf.NotAfter.After(mine.Leaf.NotAfter) {
		k.current.Store(c)
		k.o.Logger.InfoContext(ctx, "a certificate made by another replica is served", slog.Time("not_after", c.Leaf.NotAfter))
	}
	return true, nil
}

func (k *Keeper) save(ctx context.Context, c *tls.Certificate) error {
	var text []byte
	for _, der := range c.Certificate {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	sealed := k.o.Seal.Seal("acme certificate", "", k.names, string(text))
	err := k.o.Store.Client().Set(ctx, k.redisKey("certificate"), sealed, time.Until(c.Leaf.NotAfter)).Err()
	if err != nil {
		return fmt.Errorf("keep the certificate for the other replicas: %w", store.Classify(err))
	}
	return nil
}

func (k *Keeper) parse(text []byte) (*tls.Certificate, error) {
	var chain [][]byte
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		chain = append(chain, block.Bytes)
	}
	return k.certificate(chain)
}

// certificate checks that a chain is for all our names, our key and now.
func (k *Keeper) certificate(chain [][]byte) (*tls.Certificate, error) {
	if len(chain) == 0 {
		return nil, errors.New("there is no certificate in the chain")
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return nil, fmt.Errorf("parse the certificate: %w", err)
	}
	if !k.key.PublicKey.Equal(leaf.PublicKey) {
		return nil, errors.New("the certificate is for another key")
	}
	for _, name := range k.o.Domains {
		if err := leaf.VerifyHostname(name); err != nil {
			return nil, fmt.Errorf("the certificate is not for all names: %w", err)
		}
	}
	if now := time.Now(); now.After(leaf.NotAfter) {
		return nil, fmt.Errorf("the certificate ended on %s", leaf.NotAfter.Format(time.RFC3339))
	}
	return &tls.Certificate{Certificate: chain, PrivateKey: k.key, Leaf: leaf}, nil
}

// redisKey is of what is kept for these domains: replicas that are told others during an upgrade don't undo each other's.
func (k *Keeper) redisKey(what string) string { return store.Global("acme", what, k.names) }

func isMissing(err error) bool { return errors.Is(err, redis.Nil) }
