package server_test

import (
	"bytes"
	"log/slog"

	"github.com/fleetban/fleetban/controlplane/internal/keys"
	"github.com/fleetban/fleetban/controlplane/internal/orgs"
	"github.com/fleetban/fleetban/controlplane/internal/seal"
	"github.com/fleetban/fleetban/controlplane/internal/store"
)

// sealerOf signs as a fleet does whose secret file was made by secretFile with the same fill.
func sealerOf(fill byte) *seal.Sealer {
	return seal.New(keys.New([keys.SecretLen]byte(bytes.Repeat([]byte{fill}, keys.SecretLen))), seal.Options{Logger: slog.New(slog.DiscardHandler)})
}

func orgsOf(st *store.Store, s *seal.Sealer) *orgs.Orgs { return orgs.New(st, s) }
