package server

import (
	"context"
	"crypto/tls"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/keys"
)

// ticketPeriod is how long one key seals the sessions of TLS that may be resumed. The key of the period before is taken too, so
// that a session can be resumed for a day at least; and the next one's, for replicas' clocks are not the same.
const ticketPeriod = 24 * time.Hour

// setTickets has replicas resume each other's sessions: when one is gone, those that come to the others spare both sides the
// certificate and its proof. Who somebody is, is not kept in a session: an agent proves itself on each connection, by its key.
func setTickets(config *tls.Config, k *keys.Keys, now time.Time) {
	period := now.Unix() / int64(ticketPeriod/time.Second)
	config.SetSessionTicketKeys([][32]byte{k.TicketKey(period), k.TicketKey(period - 1), k.TicketKey(period + 1)})
}

// rotateTickets changes the keys as time goes by, until ctx ends.
func rotateTickets(ctx context.Context, config *tls.Config, k *keys.Keys) {
	tick := time.NewTicker(ticketPeriod / 24)
	defer tick.Stop()
	for {
		setTickets(config, k, time.Now())
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
