package orgs

import (
	"context"
	"errors"
	"fmt"

	"github.com/oklog/ulid/v2"

	"github.com/fleetban/fleetban/controlplane/internal/store"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// CheckNew says whether an organisation can have this name and mode.
func CheckNew(name string, mode fleetbanv1.Mode) error { return checkNew(name, mode) }

// Reserve returns the id that the first organisation has or will have. Of concurrent callers all get the same.
func (o *Orgs) Reserve(ctx context.Context) (string, error) {
	id, err := o.FirstID(ctx)
	if !errors.Is(err, ErrNotFound) {
		return id, err
	}
	if err := o.store.Client().SetNX(ctx, firstKey, ulid.Make().String(), 0).Err(); err != nil {
		return "", fmt.Errorf("reserve the first organisation's id: %w", store.Classify(err))
	}
	return o.FirstID(ctx)
}

// Found makes the organisation of a reserved id, without the administrator's token that First makes.
func (o *Orgs) Found(ctx context.Context, id, name string, mode fleetbanv1.Mode) (Organisation, error) {
	if err := checkNew(name, mode); err != nil {
		return Organisation{}, err
	}
	return o.create(ctx, id, name, mode, true)
}
