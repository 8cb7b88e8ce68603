package run

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sort"
	"sync"
	"time"
)

const (
	// placesEvery is how often the control plane's name is looked up again: its addresses change with where it runs.
	placesEvery = 5 * time.Minute
	// lookupAtMost bounds one look-up.
	lookupAtMost = 15 * time.Second
	// maxPlaces bounds what a name may resolve to; names of large fleets have a few dozen.
	maxPlaces = 64
)

// places knows all addresses of the control plane, which this host must never ban: those its name resolves to, for the
// next stream may go to any of them, and the one at the other end of the stream, which may be a proxy's. What was found
// stands until a look-up finds something else: a resolver that is away protects no less.
type places struct {
	host   string
	lookup func(ctx context.Context, network, host string) ([]netip.Addr, error)
	log    *slog.Logger
	// began has a value when a stream was just begun.
	began chan struct{}

	mu           sync.Mutex
	peers, named []netip.Addr
	failing      bool
}

func newPlaces(host string, log *slog.Logger) *places {
	return &places{host: host, lookup: net.DefaultResolver.LookupNetIP, log: log, began: make(chan struct{}, 1)}
}

// met takes in the addresses at a new stream's other end and tells all that are known. Only then is the name looked up
// anew, so that what is found is told later than what was known.
func (p *places) met(peers []netip.Addr, tell func([]netip.Addr) error) error {
	p.mu.Lock()
	p.peers = slices.Clone(peers)
	all := p.all()
	p.mu.Unlock()
	defer func() {
		select {
		case p.began <- struct{}{}:
		default:
		}
	}()
	return tell(all)
}

// all is every address known. The caller holds the lock.
func (p *places) all() []netip.Addr {
	all := slices.Concat(p.peers, p.named)
	sort.Slice(all, func(i, j int) bool { return all[i].Less(all[j]) })
	return slices.Compact(all)
}

// refresh looks the name up and returns all addresses if they have changed.
func (p *places) refresh(ctx context.Context) (all []netip.Addr, changed bool) {
	ctx, cancel := context.WithTimeout(ctx, lookupAtMost)
	defer cancel()
	found, err := p.lookup(ctx, "ip", p.host)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil || len(found) == 0 {
		if !p.failing && !errors.Is(context.Cause(ctx), context.Canceled) {
			p.log.Warn("the control plane's name can't be looked up: its addresses of before stay protected from bans, others aren't",
				"host", p.host, "problem", err)
		}
		p.failing = true
		return nil, false
	}
	p.failing = false
	before := p.all()
	p.named = p.named[:0]
	for _, a := range found[:min(len(found), maxPlaces)] {
		p.named = append(p.named, a.Unmap().WithZone(""))
	}
	all = p.all()
	return all, !slices.Equal(before, all)
}

// watch looks the name up when a stream begins and now and then, and calls tell with all addresses when they have
// changed. Until the first stream there is nothing to do: the helper has saved those of before.
func (p *places) watch(ctx context.Context, tell func(context.Context, []netip.Addr) error) {
	t := time.NewTicker(placesEvery)
	defer t.Stop()
	var untold []netip.Addr
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.began:
		case <-t.C:
		}
		if all, changed := p.refresh(ctx); changed {
			untold = all
		}
		if untold != nil && tell(ctx, untold) == nil {
			untold = nil
		}
	}
}
