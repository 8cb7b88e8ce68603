package chaos

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"time"

	"github.com/fleetban/fleetban/scripts/lab/internal/lab"
)

// event is one of the fleet's history.
type event struct{ ID, AtUnixMs, Kind, HostName, Prefix, Jail, Reason, Unpromoted string }

const (
	kindObserved = "FLEET_EVENT_KIND_OBSERVED"
	kindNotice   = "FLEET_EVENT_KIND_NOTICE"
	// restored is why a ban stays local that fail2ban read back when it started.
	restored = "UNPROMOTED_RESTORED"
	// quietFor is for how long a watch that has told all says nothing.
	quietFor = 700 * time.Millisecond
	// longestFrame bounds one message of a watch.
	longestFrame = 1 << 20
)

// history reads all events there are, oldest first, as a program does that watches from the beginning: Connect's streaming
// form of JSON, frames of flags (1 byte), length (4 bytes) and text.
func (c *checker) history(ctx context.Context) (events []event, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	body := frame(`{"after":"0-0"}`)
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, lab.URL+"/fleetban.operator.v1.FleetService/Watch", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Content-Type", "application/connect+json")
	r.Header.Set("Connect-Protocol-Version", "1")
	patience := time.AfterFunc(callLimit, cancel)
	defer patience.Stop()
	answer, err := c.http.Do(r)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("watch: %s", answer.Status)
	}
	for {
		patience.Reset(quietFor)
		var head [5]byte
		if _, err := io.ReadFull(answer.Body, head[:]); err != nil {
			if ctx.Err() != nil {
				return events, nil
			}
			return nil, fmt.Errorf("watch: %w", err)
		}
		length := binary.BigEndian.Uint32(head[1:])
		if length > longestFrame {
			return nil, fmt.Errorf("watch: a message of %d bytes", length)
		}
		text := make([]byte, length)
		if _, err := io.ReadFull(answer.Body, text); err != nil {
			return nil, fmt.Errorf("watch: %w", err)
		}
		const last = 2
		if head[0]&last != 0 {
			return nil, fmt.Errorf("watch ended: %s", text)
		}
		var message struct{ Event event }
		if err := json.Unmarshal(text, &message); err != nil {
			return nil, fmt.Errorf("watch: %w", err)
		}
		if message.Event.ID != "" {
			events = append(events, message.Event)
		}
	}
}

func frame(text string) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(text))), text...) //nolint:gosec // short
}

// told returns which observed bans the fleet was told of more or less often than it must be: once, unless nobody can know. And
// what a failover lost in a round must be shown.
func (c *checker) told(ctx context.Context, round int) (wrong []string, err error) {
	events, err := c.history(ctx)
	if err != nil {
		return nil, err
	}
	type ban struct{ host, prefix string }
	times := map[ban][]event{}
	shown := false
	for _, e := range events {
		switch e.Kind {
		case kindObserved:
			if c.stoodAgain(&e) {
				continue
			}
			b := ban{e.HostName, e.Prefix}
			times[b] = append(times[b], e)
		case kindNotice:
			shown = shown || !c.notices[e.ID]
		}
	}
	for b, events := range times { // of all rounds: an old event may be sent again long after
		if len(events) > 1 {
			wrong = append(wrong, fmt.Sprintf("history has the ban of %s on %s %d times: %v; %s", b.prefix, b.host, len(events), events, c.journal.about(b.prefix)))
		}
	}
	lost := 0
	for _, f := range c.journal.all() {
		if f.round != round || f.allowed {
			continue
		}
		told, listed, err := c.explained(ctx, &f)
		if err != nil {
			return nil, err
		}
		switch sure := f.acknowledged && !f.shaken && !f.lifting; {
		case f.host != "" && (told > 1 || told == 0 && sure):
			wrong = append(wrong, fmt.Sprintf("told %d times of %s", told, &f))
		case f.host == "" && f.tail && sure && !listed && f.verdictWithoutTail(time.Now()) == banned:
			lost++
			if !shown {
				wrong = append(wrong, fmt.Sprintf("nothing shows the loss of %s", &f))
			}
		}
	}
	if len(wrong) == 0 {
		c.lost += lost
		for _, e := range events {
			if e.Kind == kindNotice {
				c.notices[e.ID] = true
			}
		}
	}
	return wrong, nil
}

// stoodAgain reports whether an event tells that a lifted ban stands again, for fail2ban's database didn't know that it was lifted: a
// host must tell that, as read back, which goes to no other host.
func (c *checker) stoodAgain(e *event) bool {
	a, err := netip.ParseAddr(e.Prefix)
	if err != nil || e.Unpromoted != restored {
		return false
	}
	if f := c.journal.find(netip.PrefixFrom(a, a.BitLen())); f != nil {
		c.journal.change(f, func(f *fact) {
			if f.lifting || f.allowed {
				c.again[e.ID] = true // the journal forgets, history doesn't
			}
		})
	}
	return c.again[e.ID]
}

// explained asks how often the fleet was told of an observed ban, and whether it bans the prefix.
func (c *checker) explained(ctx context.Context, f *fact) (times int, listed bool, err error) {
	var explained struct {
		Banned bool
		Events []event
	}
	if err := c.call(ctx, "BanService/Explain", map[string]any{"address": f.prefix.Addr().String()}, &explained); err != nil {
		return 0, false, err
	}
	for _, e := range explained.Events {
		again := f.lifting && e.Unpromoted == restored
		if e.Kind == kindObserved && e.HostName == f.host && e.Prefix == f.prefix.Addr().String() && !again {
			times++
		}
	}
	return times, explained.Banned, nil
}
