package agentapi

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"time"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/controlplane/internal/apierr"
	"github.com/fleetban/fleetban/controlplane/internal/sets"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// A master of Redis that is gone may have acknowledged events that its successor never heard of. Hosts keep theirs for a while
// and send again what a Welcome says is missing; so a host whose stream stood meanwhile is asked to begin another one.

// rewoundSpread is the time over which hosts are asked to begin another stream.
const rewoundSpread = 5 * time.Second

var errRewound = apierr.New(connect.CodeUnavailable, fleetbanv1.Reason_REASON_STORE_UNAVAILABLE, "",
	"Redis lost events of this host that it had stored", "connect again: they are sent again then")

// mark is how far a host's spool is stored, for all its stream knows.
type mark struct {
	spool   string
	through uint64
}

// stored notes that a spool is stored through an event.
func (st *stream) stored(spool string, through uint64) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.mark.spool != spool {
		st.mark = mark{spool: spool}
	}
	st.mark.through = max(st.mark.through, through)
}

func (st *stream) storedThrough() mark {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.mark
}

// after is the last event of a spool that is stored for all the stream knows.
func (m mark) after(spool string) uint64 {
	if m.spool != spool {
		return 0
	}
	return m.through
}

// lookForLost asks the hosts of streams whose events were lost, an idle one's too, to begin another stream.
func (t *tenant) lookForLost(ctx context.Context, streams []*stream) {
	marks := make([]mark, len(streams))
	spools := make([]sets.Spool, len(streams))
	for i, st := range streams {
		marks[i] = st.storedThrough() // before they are read: what is stored only grows
		spools[i] = sets.Spool{HostID: st.grant.HostID, ID: marks[i].spool}
	}
	through, err := t.service.Sets.EventsThroughAll(ctx, t.org, spools)
	if err != nil {
		if ctx.Err() == nil {
			t.service.Logger.WarnContext(ctx, "whether events were lost isn't known, looking again", slog.String("organisation", t.org), slog.Any("error", err))
		}
		return
	}
	lost := 0
	for i, st := range streams {
		// A spool that is new since is stored under its own name.
		if through[i] < marks[i].through && st.storedThrough().spool == marks[i].spool {
			lost++
			after := rand.N(rewoundSpread) //nolint:gosec // spreads load
			st.note(func(m *mailbox) { m.drain = &after })
		}
	}
	if lost > 0 {
		t.service.Logger.WarnContext(ctx, "Redis lost events that it had stored: their hosts send them again", slog.String("organisation", t.org), slog.Int("hosts", lost))
	}
}
