package keys

import "strconv"

// TicketKey seals, in a period, a number that grows with time, what resumes sessions of TLS: each replica takes what another gave.
func (k *Keys) TicketKey(period int64) [32]byte {
	return [32]byte(k.derive("fleetban tls ticket key v1 "+strconv.FormatInt(period, 10), 32))
}
