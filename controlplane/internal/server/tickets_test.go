package server

import (
	"crypto/tls"
	"net"
	"testing"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/keys"
)

// A session that one replica began is resumed by another of the same fleet, also on the next day and by one whose clock is
// behind; not after that, and not by another fleet.
func TestTickets(t *testing.T) {
	t.Parallel()
	ours, theirs := keys.New([keys.SecretLen]byte{1}), keys.New([keys.SecretLen]byte{2})
	certs, err := selfSigned(ours, "https://localhost")
	if err != nil {
		t.Fatal(err)
	}
	today := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		name    string
		with    *keys.Keys
		at      time.Time
		resumed bool
	}{
		{"another replica", ours, today.Add(time.Minute), true},
		{"the next day", ours, today.Add(ticketPeriod), true},
		{"a clock that is behind", ours, today.Add(-ticketPeriod), true},
		{"two days later", ours, today.Add(2 * ticketPeriod), false},
		{"another fleet", theirs, today, false},
	} {
		sessions := tls.NewLRUClientSessionCache(1)
		shake := func(k *keys.Keys, at time.Time) bool {
			t.Helper()
			config := &tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: certs.get}
			setTickets(config, k, at)
			a, b := net.Pipe()
			served := make(chan error, 1)
			go func() {
				server := tls.Server(b, config)
				_, err := server.Write([]byte{1})
				served <- err
			}()
			client := tls.Client(a, &tls.Config{InsecureSkipVerify: true, ServerName: "localhost", ClientSessionCache: sessions}) //nolint:gosec // of this test
			if _, err := client.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			if err := <-served; err != nil {
				t.Fatal(err)
			}
			return client.ConnectionState().DidResume
		}
		if shake(ours, today) {
			t.Fatal("a first session was resumed")
		}
		if got := shake(c.with, c.at); got != c.resumed {
			t.Errorf("%s: resumed %t, want %t", c.name, got, c.resumed)
		}
	}
}
