package orgs

import (
	"context"
	"fmt"

	"github.com/fleetban/fleetban/controlplane/internal/store"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// Adopt puts back an organisation that Redis lost and that hosts with good grants still belong to, with the name and mode
// that the caller remembers; without them ("" and unspecified) it is called "recovered" and only watches, until a person
// sets its mode. Its tokens are gone; `fleetban-controlplane token create` makes new ones. One that stands is left as it is.
func (o *Orgs) Adopt(ctx context.Context, id, name string, mode fleetbanv1.Mode) (Organisation, error) {
	if name == "" {
		name = "recovered"
	}
	if checkMode(mode) != nil {
		mode = fleetbanv1.Mode_MODE_WATCH
	}
	org, err := o.create(ctx, id, name, mode, false)
	if err != nil {
		return Organisation{}, fmt.Errorf("adopt organisation: %w", err)
	}
	client := o.store.Client()
	if org.SettingsVersion == 1 {
		// Hosts ignore settings older than those they know: go on above whatever version was lost.
		now, err := o.store.Time(ctx, id)
		if err != nil {
			return Organisation{}, fmt.Errorf("adopt organisation: %w", err)
		}
		if err := client.HSet(ctx, metaKey(id), "settings_version", now.UnixMilli()).Err(); err != nil {
			return Organisation{}, fmt.Errorf("adopt organisation: %w", store.Classify(err))
		}
		org.SettingsVersion = uint64(now.UnixMilli()) //nolint:gosec // after 1970
	}
	// A first start after the loss finds this one instead of making another.
	if err := client.SetNX(ctx, firstKey, id, 0).Err(); err != nil {
		return Organisation{}, fmt.Errorf("adopt organisation: %w", store.Classify(err))
	}
	return org, nil
}

// allKey lists every organisation's id: what background jobs go through.
var allKey = store.Global("orgs")

// IDs lists the ids of all organisations, in no order.
func (o *Orgs) IDs(ctx context.Context) ([]string, error) {
	ids, err := o.store.Client().SMembers(ctx, allKey).Result()
	if err != nil {
		return nil, fmt.Errorf("list organisations: %w", store.Classify(err))
	}
	return ids, nil
}
