package hosts

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/fleetban/fleetban/controlplane/internal/store"
	"github.com/fleetban/fleetban/proto/wire/banset"
)

// directory is who the hosts of an organisation are: what changes rarely, kept by each replica until hostsver changes.
type directory struct {
	version string
	byID    map[string]*entry
	byName  map[string]*entry // lower-case
	sorted  []*entry          // by lower-case name
}

type entry struct {
	id, name, lower string
	tags            map[string]string
	enrolled        int64
	keyed           int64
	ephemeral       int64 // ms; 0: it stays
	at              int   // in sorted
}

// sets are those that the host is to hold.
func (e *entry) sets() []string { return Sets(e.tags) }

// Sets names the sets that a host with these tags is to hold, in a stable order.
func Sets(tags map[string]string) []string {
	out := []string{banset.All, banset.Allow, banset.Hosts}
	for k, v := range tags {
		out = append(out, banset.TagPrefix+k+"="+v)
	}
	slices.Sort(out[3:])
	return out
}

// directory returns the organisation's current directory.
func (h *Hosts) directory(ctx context.Context, org string) (*directory, error) {
	version, err := h.version(ctx, org)
	if err != nil {
		return nil, err
	}
	return h.directoryAt(ctx, org, version)
}

// version changes whenever the directory does.
func (h *Hosts) version(ctx context.Context, org string) (string, error) {
	version, err := h.store.Client().Get(ctx, store.Key(org, "hostsver")).Result()
	if err := missing(err); err != nil {
		return "", fmt.Errorf("read version of hosts: %w", err)
	}
	return version, nil
}

// directoryAt returns the directory, read anew unless the kept one is of that version.
func (h *Hosts) directoryAt(ctx context.Context, org, version string) (*directory, error) {
	h.mu.Lock()
	kept := h.dirs[org]
	h.mu.Unlock()
	if kept != nil && kept.version == version {
		return kept, nil
	}
	all, err := h.store.Client().HGetAll(ctx, store.Key(org, "hosts")).Result()
	if err != nil {
		return nil, fmt.Errorf("read hosts: %w", store.Classify(err))
	}
	d := &directory{version: version, byID: make(map[string]*entry, len(all)), byName: make(map[string]*entry, len(all))}
	for id, raw := range all {
		var rec record
		if err := json.Unmarshal([]byte(raw), &rec); err != nil {
			h.logger.ErrorContext(ctx, "stored host is damaged", slog.String("host", id), slog.Any("error", err))
			continue
		}
		e := &entry{id: id, name: rec.Name, lower: strings.ToLower(rec.Name), tags: rec.Tags, enrolled: rec.Enrolled, keyed: max(rec.Keyed, rec.Enrolled), ephemeral: rec.Ephemeral}
		d.byID[id], d.byName[e.lower] = e, e
		d.sorted = append(d.sorted, e)
	}
	slices.SortFunc(d.sorted, func(a, b *entry) int { return strings.Compare(a.lower, b.lower) })
	for i, e := range d.sorted {
		e.at = i
	}
	h.mu.Lock()
	h.dirs[org] = d
	h.mu.Unlock()
	return d, nil
}

// find finds a host by its id or its name, whatever the case.
func (h *Hosts) find(ctx context.Context, org, host string) (*entry, error) {
	d, err := h.directory(ctx, org)
	if err != nil {
		return nil, err
	}
	if e := d.byID[strings.ToUpper(host)]; e != nil {
		return e, nil
	}
	if e := d.byName[strings.ToLower(host)]; e != nil {
		return e, nil
	}
	return nil, fmt.Errorf("host %s: %w", host, ErrNotFound)
}

// Names maps the ids of all of an organisation's hosts to their names. The map must not be changed.
func (h *Hosts) Names(ctx context.Context, org string) (map[string]string, error) {
	d, err := h.directory(ctx, org)
	if err != nil {
		return nil, err
	}
	names := make(map[string]string, len(d.byID))
	for id, e := range d.byID {
		names[id] = e.name
	}
	return names, nil
}

// Tags returns a host's tags.
func (h *Hosts) Tags(ctx context.Context, org, id string) (map[string]string, error) {
	e, err := h.find(ctx, org, id)
	if err != nil {
		return nil, err
	}
	return e.tags, nil
}
