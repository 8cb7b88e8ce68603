package stream

import (
	"time"

	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// isStoreAway reports whether err says that the control plane can't reach its store.
func isStoreAway(err error) bool {
	r := InfoOf(err).GetReason()
	return r == fleetbanv1.Reason_REASON_STORE_UNAVAILABLE || r == fleetbanv1.Reason_REASON_OUTCOME_UNKNOWN
}

// welcomeStore is for a Welcome, which needs the store; what is still wanted of this host is asked for again. It comes before
// anything else of the stream is read.
func (c *Client) welcomeStore() {
	c.mu.Lock()
	c.rebuilding = ""
	c.mu.Unlock()
	c.setStoreAway(false, true)
}

// setStoreAway takes in how the control plane's store is. said: by its own word, not for want of it.
func (c *Client) setStoreAway(away, said bool) {
	c.mu.Lock()
	news := away == c.status.StoreAway.IsZero()
	if news {
		c.status.StoreAway = time.Time{}
	}
	if news && away {
		c.status.StoreAway = time.Now()
	}
	c.mu.Unlock()
	switch {
	case !news || !said:
	case away:
		c.cfg.Lately.Count("store-away", "the control plane couldn't reach its Redis; what was banned here meanwhile waited")
		c.cfg.Log.Warn("the control plane can't reach its Redis; what is known stays enforced, and what is banned here waits until it can")
	default:
		c.cfg.Log.Info("the control plane reaches its Redis again")
	}
}

// setRebuilding takes in that the control plane has asked for a set that it lost, or has given it back whole. Where it lost
// several, the first stands for all: they are whole at the same time.
func (c *Client) setRebuilding(set string, is bool) {
	c.mu.Lock()
	begins, ends := is && c.rebuilding == "", !is && set != "" && c.rebuilding == set
	switch {
	case begins:
		c.rebuilding = set
	case ends:
		c.rebuilding = ""
	}
	c.mu.Unlock()
	switch {
	case begins:
		c.cfg.Lately.Count("store-rebuilt", "the control plane's Redis lost bans; it was given back what this host held")
		c.cfg.Log.Warn("the control plane's Redis lost bans; it is given back what this host holds, and nothing is dropped meanwhile")
	case ends:
		c.cfg.Log.Info("what the control plane's Redis lost is rebuilt")
	}
}
