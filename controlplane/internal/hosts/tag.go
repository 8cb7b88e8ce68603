package hosts

import "context"

// HasTag reports whether any host of the organisation has the tag k=v.
func (h *Hosts) HasTag(ctx context.Context, org, k, v string) (bool, error) {
	d, err := h.directory(ctx, org)
	if err != nil {
		return false, err
	}
	for _, e := range d.sorted {
		if have, ok := e.tags[k]; ok && have == v {
			return true, nil
		}
	}
	return false, nil
}
