package people

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/go-redis/redis_rate/v10"
	"github.com/redis/go-redis/v9"

	"github.com/fleetban/fleetban/controlplane/internal/store"
)

// Limits of attempts with a password, a minute, over all replicas. Whoever knows an address can use up what strangers have
// in all, and must not thereby keep the owner out; so the owner isn't counted with them:
//
//	on a device that the person signed in on before    counted for that device alone
//	from a place (address, IPv6 /64) that they did      counted for the place: whatever account, and this account from there
//	from anywhere else                                  counted for the place too, and for the account with all other strangers
//
// Who is a stranger for the moment has a passkey, which is counted with nobody, or a link by mail, which makes their device
// a known one.
const (
	attemptsOnDevice   = 10
	attemptsPerPair    = 10
	attemptsPerAccount = 10
	attemptsPerAddress = 30
)

const (
	// maxPlaces is how many places of a person are remembered, placeLife for how long after the last sign-in from there.
	maxPlaces = 20
	placeLife = 90 * 24 * time.Hour
	// deviceLife is how long a device is known after its last sign-in.
	deviceLife = 180 * 24 * time.Hour

	// nobody stands for the id of an account that isn't: the same work is done for it.
	nobody = "none"
)

// Device is one that a person signed in on before, and proved so: package factors makes and parses the proof.
type Device struct {
	Person, ID string
	Made       int64 // Unix milliseconds
}

type limit struct {
	key string
	n   int // a minute
}

// count counts one try with each of the limits. Whoever can't be counted isn't heard: an outage is no chance to guess.
func (p *People) count(ctx context.Context, limits ...limit) error {
	for _, l := range limits {
		result, err := p.rate.Allow(ctx, l.key, redis_rate.PerMinute(l.n))
		if err != nil {
			return fmt.Errorf("count attempts to sign in: %w", store.Classify(err))
		}
		if result.Allowed < 1 {
			return &TooOftenError{RetryAfter: result.RetryAfter}
		}
	}
	return nil
}

// attempt counts one try of a stranger.
func (p *People) attempt(ctx context.Context, address Email, from netip.Addr) error {
	return p.attemptFrom(ctx, address, "", from, Device{})
}

// attemptFrom counts one try with the password of the account id, "" where there is none.
func (p *People) attemptFrom(ctx context.Context, address Email, id string, from netip.Addr, on Device) error {
	if id == "" {
		id = nobody
	}
	secured, err := p.store.Client().HGet(ctx, accountKey(id), "secured").Int64()
	if err != nil && !errors.Is(err, redis.Nil) {
		return fmt.Errorf("read account: %w", store.Classify(err))
	}
	// A changed password makes strangers of all devices that were known before.
	if on.Person == id && on.Made >= secured && time.Since(time.UnixMilli(on.Made)) < deviceLife {
		return p.count(ctx, limit{store.Key(id, "signin", on.ID), attemptsOnDevice})
	}
	account := hashOf(address.String())
	all := limit{store.Global("signin", "account", account), attemptsPerAccount}
	if !from.IsValid() {
		return p.count(ctx, all)
	}
	place := Group(from)
	limits := []limit{
		{store.Global("signin", "address", place), attemptsPerAddress},
		{store.Global("signin", "pair", account, place), attemptsPerPair},
	}
	seen, err := p.store.Client().ZScore(ctx, placesKey(id), place).Result()
	if err != nil && !errors.Is(err, redis.Nil) {
		return fmt.Errorf("read places: %w", store.Classify(err))
	}
	if since := time.Since(time.UnixMilli(int64(seen))); err != nil || since > placeLife {
		limits = append(limits, all)
	}
	return p.count(ctx, limits...)
}

// Familiar remembers where a person has signed in from.
func (p *People) Familiar(ctx context.Context, id string, from netip.Addr) error {
	if !from.IsValid() {
		return nil
	}
	key := placesKey(id)
	pipe := p.store.Client().TxPipeline()
	pipe.ZAdd(ctx, key, redis.Z{Score: float64(time.Now().UnixMilli()), Member: Group(from)})
	pipe.ZRemRangeByRank(ctx, key, 0, -maxPlaces-1)
	pipe.PExpire(ctx, key, placeLife)
	if _, err := pipe.Exec(ctx); err != nil {
		return fmt.Errorf("remember place: %w", store.Classify(err))
	}
	return nil
}

// Group is what counts as one client: whoever has an IPv6 address usually has its /64.
func Group(addr netip.Addr) string {
	if addr = addr.Unmap().WithZone(""); addr.Is6() {
		if p, err := addr.Prefix(64); err == nil {
			return p.String()
		}
	}
	return addr.String()
}

func placesKey(id string) string { return store.Key(id, "places") }
