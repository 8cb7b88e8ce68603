package nft

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Names in our table.
const (
	chainHook    = "prerouting"
	chainAllowed = "allowed"
	chainBanned  = "banned"
	counterName  = "dropped"

	// hookPriority is after conntrack (-200), which must have told replies from originals, and before destination NAT
	// (-100) and everything that could accept.
	hookPriority = -150

	// rulesOfHook is how many rules chainHook has.
	rulesOfHook = 3
)

// Verdicts of linux/netfilter.h.
const (
	verdictDrop   = 0
	verdictAccept = 1
)

// setID names one of our sets: what it is for, the family by its address length, and the prefix length.
type setID struct {
	allow bool
	six   bool
	bits  uint8
}

func setOf(p netip.Prefix, allow bool) setID {
	return setID{allow: allow, six: p.Addr().Is6(), bits: uint8(p.Bits())} //nolint:gosec // 0..128
}

func (s setID) String() string {
	kind, family := "ban", "4"
	if s.allow {
		kind = "allow"
	}
	if s.six {
		family = "6"
	}
	return kind + family + "_" + strconv.Itoa(int(s.bits))
}

func parseSetID(name string) (setID, bool) {
	var s setID
	rest, ok := strings.CutPrefix(name, "ban")
	if !ok {
		if rest, ok = strings.CutPrefix(name, "allow"); !ok {
			return s, false
		}
		s.allow = true
	}
	family, bits, ok := strings.Cut(rest, "_")
	n, err := strconv.Atoi(bits)
	if !ok || err != nil || (family != "4" && family != "6") {
		return s, false
	}
	s.six = family == "6"
	if n < 0 || n > s.keyLen()*8 {
		return s, false
	}
	s.bits = uint8(n) //nolint:gosec // 0..128
	return s, s.String() == name
}

func (s setID) keyLen() int {
	if s.six {
		return 16
	}
	return 4
}

// The types that `nft` prints by: its datatype numbers of ipv4_addr and ipv6_addr.
func (s setID) datatype() uint32 {
	if s.six {
		return 8
	}
	return 7
}

func (s setID) mask() []byte {
	m := make([]byte, s.keyLen())
	for i := range int(s.bits) {
		m[i/8] |= 0x80 >> (i % 8)
	}
	return m
}

func (s setID) chain() string {
	if s.allow {
		return chainAllowed
	}
	return chainBanned
}

// writer writes our table's parts into a batch.
type writer struct {
	*batch
	table string
	// size bounds each set; 0 doesn't.
	size uint32
}

// skeleton makes the table with its chains and no sets.
func (w writer) skeleton() {
	w.newTable()
	w.do(unix.NFT_MSG_NEWOBJ, unix.NLM_F_CREATE)
	w.text(unix.NFTA_OBJ_TABLE, w.table)
	w.text(unix.NFTA_OBJ_NAME, counterName)
	w.u32(unix.NFTA_OBJ_TYPE, unix.NFT_OBJECT_COUNTER)
	w.nest(unix.NFTA_OBJ_DATA, func() {})
	w.finish()
	w.chainNamed(chainAllowed, false)
	w.chainNamed(chainBanned, false)
	w.chainNamed(chainHook, true)
	w.rule(chainHook, func() {
		w.expr("ct", func() {
			w.u32(unix.NFTA_CT_DREG, unix.NFT_REG_1)
			w.u32(unix.NFTA_CT_KEY, unix.NFT_CT_DIRECTION)
		})
		w.compare([]byte{1}) // IP_CT_DIR_REPLY; untracked packets have no direction and go on
		w.verdict(verdictAccept, "")
	})
	w.rule(chainHook, func() { w.verdict(unix.NFT_JUMP, chainAllowed) })
	w.rule(chainHook, func() { w.verdict(unix.NFT_JUMP, chainBanned) })
}

func (w writer) newTable() {
	w.do(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE)
	w.text(unix.NFTA_TABLE_NAME, w.table)
	w.finish()
}

// dropTable takes the table out, be it there or not.
func (w writer) dropTable() {
	w.newTable()
	w.do(unix.NFT_MSG_DELTABLE, 0)
	w.text(unix.NFTA_TABLE_NAME, w.table)
	w.finish()
}

func (w writer) chainNamed(name string, hooked bool) {
	w.do(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE)
	w.text(unix.NFTA_CHAIN_TABLE, w.table)
	w.text(unix.NFTA_CHAIN_NAME, name)
	if hooked {
		w.nest(unix.NFTA_CHAIN_HOOK, func() {
			priority := int32(hookPriority)
			w.u32(unix.NFTA_HOOK_HOOKNUM, unix.NF_INET_PRE_ROUTING)
			w.u32(unix.NFTA_HOOK_PRIORITY, uint32(priority)) //nolint:gosec // bits, not a number
		})
		w.text(unix.NFTA_CHAIN_TYPE, "filter")
		w.u32(unix.NFTA_CHAIN_POLICY, verdictAccept)
	}
	w.finish()
}

// newSet makes a set and the rule that looks it up.
func (w writer) newSet(s setID, id uint32) {
	w.do(unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE)
	w.text(unix.NFTA_SET_TABLE, w.table)
	w.text(unix.NFTA_SET_NAME, s.String())
	w.u32(unix.NFTA_SET_ID, id)
	w.u32(unix.NFTA_SET_FLAGS, unix.NFT_SET_TIMEOUT)
	w.u32(unix.NFTA_SET_KEY_TYPE, s.datatype())
	w.u32(unix.NFTA_SET_KEY_LEN, uint32(s.keyLen())) //nolint:gosec // 4 or 16
	if w.size > 0 {
		w.nest(unix.NFTA_SET_DESC, func() { w.u32(unix.NFTA_SET_DESC_SIZE, w.size) })
	}
	w.finish()

	family, offset := byte(unix.NFPROTO_IPV4), uint32(12) // where the source address is in the header
	if s.six {
		family, offset = unix.NFPROTO_IPV6, 8
	}
	w.rule(s.chain(), func() {
		w.expr("meta", func() {
			w.u32(unix.NFTA_META_DREG, unix.NFT_REG_1)
			w.u32(unix.NFTA_META_KEY, unix.NFT_META_NFPROTO)
		})
		w.compare([]byte{family})
		w.expr("payload", func() {
			w.u32(unix.NFTA_PAYLOAD_DREG, unix.NFT_REG_1)
			w.u32(unix.NFTA_PAYLOAD_BASE, unix.NFT_PAYLOAD_NETWORK_HEADER)
			w.u32(unix.NFTA_PAYLOAD_OFFSET, offset)
			w.u32(unix.NFTA_PAYLOAD_LEN, uint32(s.keyLen())) //nolint:gosec // 4 or 16
		})
		if int(s.bits) < s.keyLen()*8 {
			w.expr("bitwise", func() {
				w.u32(unix.NFTA_BITWISE_SREG, unix.NFT_REG_1)
				w.u32(unix.NFTA_BITWISE_DREG, unix.NFT_REG_1)
				w.u32(unix.NFTA_BITWISE_LEN, uint32(s.keyLen())) //nolint:gosec // 4 or 16
				w.nest(unix.NFTA_BITWISE_MASK, func() { w.attr(unix.NFTA_DATA_VALUE, s.mask()) })
				w.nest(unix.NFTA_BITWISE_XOR, func() { w.attr(unix.NFTA_DATA_VALUE, make([]byte, s.keyLen())) })
			})
		}
		w.expr("lookup", func() {
			w.text(unix.NFTA_LOOKUP_SET, s.String())
			w.u32(unix.NFTA_LOOKUP_SREG, unix.NFT_REG_1)
			w.u32(unix.NFTA_LOOKUP_SET_ID, id)
		})
		if s.allow {
			w.verdict(verdictAccept, "")
			return
		}
		w.expr("objref", func() {
			w.u32(unix.NFTA_OBJREF_IMM_TYPE, unix.NFT_OBJECT_COUNTER)
			w.text(unix.NFTA_OBJREF_IMM_NAME, counterName)
		})
		w.verdict(verdictDrop, "")
	})
}

func (w writer) rule(chain string, expressions func()) {
	w.do(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND)
	w.text(unix.NFTA_RULE_TABLE, w.table)
	w.text(unix.NFTA_RULE_CHAIN, chain)
	w.nest(unix.NFTA_RULE_EXPRESSIONS, expressions)
	w.finish()
}

func (w writer) expr(name string, data func()) {
	w.nest(unix.NFTA_LIST_ELEM, func() {
		w.text(unix.NFTA_EXPR_NAME, name)
		w.nest(unix.NFTA_EXPR_DATA, data)
	})
}

func (w writer) compare(value []byte) {
	w.expr("cmp", func() {
		w.u32(unix.NFTA_CMP_SREG, unix.NFT_REG_1)
		w.u32(unix.NFTA_CMP_OP, unix.NFT_CMP_EQ)
		w.nest(unix.NFTA_CMP_DATA, func() { w.attr(unix.NFTA_DATA_VALUE, value) })
	})
}

func (w writer) verdict(code int32, chain string) {
	w.expr("immediate", func() {
		w.u32(unix.NFTA_IMMEDIATE_DREG, unix.NFT_REG_VERDICT)
		w.nest(unix.NFTA_IMMEDIATE_DATA, func() {
			w.nest(unix.NFTA_DATA_VERDICT, func() {
				w.u32(unix.NFTA_VERDICT_CODE, uint32(code)) //nolint:gosec // bits, not a number
				if chain != "" {
					w.text(unix.NFTA_VERDICT_CHAIN, chain)
				}
			})
		})
	})
}

// mostElements is how many elements one message may carry: the attribute around them has 16 bits for its length, and
// the kernel takes a wrapped length without a word.
const mostElements = 1000

// elements writes a message that adds (NFT_MSG_NEWSETELEM) or deletes (NFT_MSG_DELSETELEM) what list holds, which
// appendElement wrote.
func (w writer) elements(kind int, s setID, list []byte) {
	flags := 0
	if kind == unix.NFT_MSG_NEWSETELEM {
		flags = unix.NLM_F_CREATE
	}
	w.do(kind, flags)
	w.text(unix.NFTA_SET_ELEM_LIST_TABLE, w.table)
	w.text(unix.NFTA_SET_ELEM_LIST_SET, s.String())
	w.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS, func() { w.buf = append(w.buf, list...) })
	w.finish()
}

// appendElement writes one element. remaining is Forever or more than shortest.
func appendElement(buf []byte, p netip.Prefix, remaining time.Duration) []byte {
	at := len(buf)
	buf = native.AppendUint16(buf, 0)
	buf = native.AppendUint16(buf, unix.NFTA_LIST_ELEM|nested)
	key := 16
	if p.Addr().Is4() {
		key = 4
	}
	buf = native.AppendUint16(buf, uint16(8+key)) //nolint:gosec // 12 or 24
	buf = native.AppendUint16(buf, unix.NFTA_SET_ELEM_KEY|nested)
	buf = native.AppendUint16(buf, uint16(4+key)) //nolint:gosec // 8 or 20
	buf = native.AppendUint16(buf, unix.NFTA_DATA_VALUE)
	if key == 4 {
		a := p.Addr().As4()
		buf = append(buf, a[:]...)
	} else {
		a := p.Addr().As16()
		buf = append(buf, a[:]...)
	}
	if remaining != Forever {
		buf = native.AppendUint16(buf, 12)
		buf = native.AppendUint16(buf, unix.NFTA_SET_ELEM_TIMEOUT)
		buf = wire.AppendUint64(buf, uint64(remaining.Milliseconds())) //nolint:gosec // positive
	}
	native.PutUint16(buf[at:], uint16(len(buf)-at)) //nolint:gosec // at most 40
	return buf
}

// readElement reads one element of a dump.
func readElement(s setID, attrs []byte) (Element, error) {
	e := Element{Remaining: Forever}
	for kind, value := range attributes(attrs) {
		switch kind {
		case unix.NFTA_SET_ELEM_KEY:
			for k, v := range attributes(value) {
				if addr, ok := netip.AddrFromSlice(v); ok && k == unix.NFTA_DATA_VALUE && len(v) == s.keyLen() {
					e.Prefix = netip.PrefixFrom(addr, int(s.bits))
				}
			}
		case unix.NFTA_SET_ELEM_EXPIRATION:
			if len(value) == 8 {
				e.Remaining = time.Duration(wire.Uint64(value)) * time.Millisecond //nolint:gosec // the kernel's own
			}
		}
	}
	if !e.Prefix.IsValid() {
		return e, fmt.Errorf("kernel's element of set %s has no key", s)
	}
	return e, nil
}
