package nft

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// List calls f with each element in the kernel's table and whether it is a ban or an allowed prefix. It doesn't hold
// up changes; what changes meanwhile may be seen or not, and seldom something is seen twice. ErrGone: there is no table,
// or it lacks one of its chains or rules.
func (e *Enforcer) List(ctx context.Context, f func(el Element, allow bool) error) error {
	s, err := openSocket(e.cfg.NetNS)
	if err != nil {
		return err
	}
	defer s.close() //nolint:errcheck // nothing was written
	ids, err := e.whole(ctx, s)
	if err != nil {
		return err
	}
	for _, id := range ids {
		var q batch
		q.text(unix.NFTA_SET_ELEM_LIST_TABLE, e.cfg.Table)
		q.text(unix.NFTA_SET_ELEM_LIST_SET, id.String())
		err := s.dump(ctx, unix.NFT_MSG_GETSETELEM, q.buf, func(attrs []byte) error {
			for kind, value := range attributes(attrs) {
				if kind != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
					continue
				}
				for _, v := range attributes(value) {
					el, err := readElement(id, v)
					if err != nil {
						return err
					}
					if err := f(el, id.allow); err != nil {
						return err
					}
				}
			}
			return nil
		})
		if errors.Is(err, unix.ENOENT) {
			return ErrGone
		}
		if err != nil && !errors.Is(err, errInterrupted) {
			return fmt.Errorf("read set %s of the nftables table: %w", id, err)
		}
	}
	return nil
}

// whole checks that the table has its chains and a rule for each set, and returns the sets.
func (e *Enforcer) whole(ctx context.Context, s *socket) ([]setID, error) {
	var ids []setID
	want := map[string]int{chainHook: rulesOfHook, chainAllowed: 0, chainBanned: 0}
	var q batch
	q.text(unix.NFTA_SET_TABLE, e.cfg.Table)
	err := s.dump(ctx, unix.NFT_MSG_GETSET, q.buf, func(attrs []byte) error {
		for kind, value := range attributes(attrs) {
			if kind != unix.NFTA_SET_NAME {
				continue
			}
			if id, ok := parseSetID(cString(value)); ok {
				ids = append(ids, id)
				want[id.chain()]++
			}
		}
		return nil
	})
	if err = e.tolerate(err, "sets"); err != nil {
		return nil, err
	}
	var rules batch
	rules.text(unix.NFTA_RULE_TABLE, e.cfg.Table)
	have := make(map[string]int)
	err = s.dump(ctx, unix.NFT_MSG_GETRULE, rules.buf, func(attrs []byte) error {
		var table, chain string
		for kind, value := range attributes(attrs) {
			switch kind {
			case unix.NFTA_RULE_TABLE:
				table = cString(value)
			case unix.NFTA_RULE_CHAIN:
				chain = cString(value)
			}
		}
		if table == e.cfg.Table {
			have[chain]++
		}
		return nil
	})
	if err = e.tolerate(err, "rules"); err != nil {
		return nil, err
	}
	for chain, n := range want {
		if have[chain] != n {
			return nil, ErrGone
		}
	}
	return ids, nil
}

func (e *Enforcer) tolerate(err error, what string) error {
	switch {
	case err == nil, errors.Is(err, errInterrupted):
		return nil
	case errors.Is(err, unix.ENOENT):
		return ErrGone
	default:
		return fmt.Errorf("read the %s of the nftables table: %w", what, err)
	}
}
