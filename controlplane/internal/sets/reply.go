package sets

import (
	"fmt"
	"net/netip"
	"strconv"

	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

// reader takes a reply of a script apart. After the first value of a wrong shape it returns zero values and holds the
// error.
type reader struct {
	values []any
	err    error
}

func (r *reader) next() any {
	if r.err != nil {
		return nil
	}
	if len(r.values) == 0 {
		r.err = fmt.Errorf("%w: a reply is cut short", errCorrupt)
		return nil
	}
	v := r.values[0]
	r.values = r.values[1:]
	return v
}

func (r *reader) text() string {
	v := r.next()
	s, ok := v.(string)
	if !ok && r.err == nil {
		r.err = fmt.Errorf("%w: %T in a reply, want a string", errCorrupt, v)
	}
	return s
}

func (r *reader) number() int64 {
	switch v := r.next().(type) {
	case int64:
		return v
	case string:
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil && r.err == nil {
			r.err = fmt.Errorf("%w: %q in a reply, want a number", errCorrupt, v)
		}
		return n
	default:
		if r.err == nil {
			r.err = fmt.Errorf("%w: %T in a reply, want a number", errCorrupt, v)
		}
		return 0
	}
}

func (r *reader) count() uint64 { return uint64(max(r.number(), 0)) } //nolint:gosec // not negative

func (r *reader) list() *reader {
	v := r.next()
	values, ok := v.([]any)
	if !ok && r.err == nil {
		r.err = fmt.Errorf("%w: %T in a reply, want a list", errCorrupt, v)
	}
	return &reader{values: values, err: r.err}
}

func (r *reader) prefix() netip.Prefix {
	s := r.text()
	if s == "" || r.err != nil {
		return netip.Prefix{}
	}
	p, err := prefix.Unpack([]byte(s))
	if err != nil {
		r.err = fmt.Errorf("%w: %w", errCorrupt, err)
	}
	return p
}

func (r *reader) more() bool { return r.err == nil && len(r.values) > 0 }

func parseHead(values []any) (head, []any, error) {
	r := &reader{values: values}
	h := head{now: r.number(), epoch: r.count(), oldEpoch: r.count(), rebuildUntil: r.number()}
	policy, err := strconv.ParseUint(r.text(), 10, 64)
	if err != nil && r.err == nil {
		r.err = fmt.Errorf("%w: policy version", errCorrupt)
	}
	h.policy = policy
	sets := r.list()
	for sets.more() {
		s := SetState{Cursor: Cursor{Set: sets.text(), Epoch: h.epoch}}
		s.Kind = fleetbanv1.SetKind(sets.number()) //nolint:gosec // an enum of few
		s.Cursor.Version = sets.count()
		digest, err := strconv.ParseUint(sets.text(), 16, 64)
		if err != nil && sets.err == nil {
			sets.err = fmt.Errorf("%w: digest", errCorrupt)
		}
		s.Cursor.Digest = digest
		s.Records = sets.count()
		h.sets = append(h.sets, s)
	}
	if r.err == nil {
		r.err = sets.err
	}
	return h, r.values, r.err
}

// set is the state of a set after the script.
func (h head) set(name string) Cursor {
	for _, s := range h.sets {
		if s.Cursor.Set == name {
			return s.Cursor
		}
	}
	return Cursor{Set: name, Epoch: h.epoch}
}

// verdict reads whether a mutation was applied, and leaves its values.
func verdict(values []any) (*reader, error) {
	r := &reader{values: values}
	switch what := r.text(); {
	case r.err != nil:
		return nil, r.err
	case what == "ok":
		return r, nil
	}
	switch code := r.text(); code {
	case "policy":
		return nil, ErrPolicyChanged
	case "fence":
		return nil, ErrStaleFence
	case "rewound":
		return nil, ErrRewound
	case "closed":
		return nil, ErrNotRebuilding
	case "protected":
		e := &ProtectedError{Prefix: r.prefix(), By: r.prefix()}
		if r.err != nil {
			return nil, r.err
		}
		return nil, e
	default:
		return nil, fmt.Errorf("%w: refusal %q", errCorrupt, code)
	}
}

// claim reads a retracted claim: packed, host or actor, jail or reason, set.
func (r *reader) claim() Claim {
	raw, who, what, set := r.text(), r.text(), r.text(), r.text()
	if r.err != nil {
		return Claim{}
	}
	claims, err := unpackClaims([]byte(raw))
	if err != nil || len(claims) != 1 {
		r.err = fmt.Errorf("%w: a claim in a reply", errCorrupt)
		return Claim{}
	}
	return claims[0].claim(who, what, set)
}

func (c rawClaim) claim(who, what, set string) Claim {
	out := Claim{
		Source: operatorv1.ClaimSource(c.source), Since: c.since, Expires: c.expires, Set: set, Unpromoted: operatorv1.Unpromoted(c.why), Failures: uint32(c.failures),
	}
	if c.person() {
		out.Actor, out.Reason = who, what
	} else {
		out.HostID, out.Jail = who, what
	}
	return out
}
