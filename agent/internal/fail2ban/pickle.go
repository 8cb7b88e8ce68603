package fail2ban

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strconv"
	"unicode/utf8"
)

// What one reply may hold. 100,000 banned addresses take 300,000 to 500,000 values.
const (
	maxValues = 8 << 20
	maxStack  = 1 << 20
	maxMarks  = 32
)

var errPickle = errors.New("malformed pickle")

// list is a Python list or set. A pointer, because the memo may name one that is still being filled.
type list struct{ items []any }

// dict is a Python dict whose keys are strings.
type dict struct{ items map[string]any }

// object is a call of a class, inert: the class is a name and nothing more.
type object struct {
	module, name string
	args         []any
}

type global struct{ module, name string }

// tuple is a Python tuple.
type tuple []any

// mark stands on the stack where an opcode MARK was.
type mark struct{}

// decode reads one pickle of protocol 0x80 2 to 5 and requires that nothing follows it. The result is made of nil, bool,
// int64, float64, string, *list, *dict, tuple and *object; a builtins.str call is its string. Lists may contain themselves:
// never walk a result without a bound.
func decode(data []byte) (any, error) {
	d := decoder{in: data}
	v, err := d.run()
	if err != nil {
		return nil, fmt.Errorf("%w at byte %d: %w", errPickle, d.at, err)
	}
	if d.at != len(d.in) {
		return nil, fmt.Errorf("%w: %d bytes after its end", errPickle, len(d.in)-d.at)
	}
	return v, nil
}

type decoder struct {
	in     []byte
	at     int
	stack  []any
	marks  []int
	memo   []any
	values int
}

func (d *decoder) run() (any, error) {
	for {
		op, err := d.byte()
		if err != nil {
			return nil, err
		}
		if op == '.' { // STOP
			if len(d.stack) != 1 || len(d.marks) != 0 {
				return nil, fmt.Errorf("%d values are left at the end", len(d.stack))
			}
			v := d.stack[0]
			switch v.(type) {
			case mark, global:
				return nil, errors.New("ends with no value")
			}
			return v, nil
		}
		if err := d.step(op); err != nil {
			return nil, err
		}
	}
}

// step carries out one opcode of the closed set.
func (d *decoder) step(op byte) error {
	switch op {
	case 0x80: // PROTO
		v, err := d.byte()
		if err != nil {
			return err
		}
		if v < 2 || v > 5 {
			return fmt.Errorf("protocol %d", v)
		}
		return nil
	case 0x95: // FRAME: a hint for readers of files
		_, err := d.bytes(8)
		return err
	case '(': // MARK
		if len(d.marks) == maxMarks {
			return errors.New("nested too deep")
		}
		d.marks = append(d.marks, len(d.stack))
		return d.push(mark{})
	case 'N':
		return d.push(nil)
	case 0x88:
		return d.push(true)
	case 0x89:
		return d.push(false)
	case 'K', 'M', 'J', 0x8a, 'G':
		return d.number(op)
	case 0x8c, 'X', 'U', 'T':
		return d.text(op)
	case ']', 0x8f: // EMPTY_LIST, EMPTY_SET
		return d.push(&list{})
	case '}': // EMPTY_DICT
		return d.push(&dict{items: map[string]any{}})
	case ')', 't', 0x85, 0x86, 0x87:
		return d.tuple(op)
	case 'a', 'e', 0x90: // APPEND, APPENDS, ADDITEMS
		return d.extend(op)
	case 's', 'u': // SETITEM, SETITEMS
		return d.setItems(op)
	case 0x93, 'c', 'R', 'b': // STACK_GLOBAL, GLOBAL, REDUCE, BUILD
		return d.call(op)
	case 0x94, 'q', 'r', 'h', 'j': // MEMOIZE, BINPUT, LONG_BINPUT, BINGET, LONG_BINGET
		return d.memory(op)
	case '0': // POP
		_, err := d.pop()
		return err
	}
	return fmt.Errorf("opcode %#02x isn't one that fail2ban sends", op)
}

func (d *decoder) byte() (byte, error) {
	if d.at >= len(d.in) {
		return 0, errors.New("ends too early")
	}
	d.at++
	return d.in[d.at-1], nil
}

func (d *decoder) bytes(n uint64) ([]byte, error) {
	if n > uint64(len(d.in)-d.at) {
		return nil, errors.New("ends too early")
	}
	b := d.in[d.at : d.at+int(n)]
	d.at += int(n)
	return b, nil
}

func (d *decoder) push(v any) error {
	if d.values++; d.values > maxValues || len(d.stack) == maxStack {
		return errors.New("holds too many values")
	}
	d.stack = append(d.stack, v)
	return nil
}

// pop takes the topmost value. A mark is not one.
func (d *decoder) pop() (any, error) {
	if len(d.stack) == 0 {
		return nil, errors.New("takes a value that isn't there")
	}
	v := d.stack[len(d.stack)-1]
	if _, ok := v.(mark); ok {
		return nil, errors.New("takes a mark for a value")
	}
	d.stack = d.stack[:len(d.stack)-1]
	return v, nil
}

// popMark takes what stands above the topmost mark, and the mark. The result is good until the next push.
func (d *decoder) popMark() ([]any, error) {
	if len(d.marks) == 0 {
		return nil, errors.New("no mark")
	}
	at := d.marks[len(d.marks)-1]
	d.marks = d.marks[:len(d.marks)-1]
	items := d.stack[at+1:]
	d.stack = d.stack[:at]
	return items, nil
}

func (d *decoder) number(op byte) error {
	width := map[byte]uint64{'K': 1, 'M': 2, 'J': 4, 'G': 8}[op]
	if op == 0x8a { // LONG1: little-endian two's complement of any length
		n, err := d.byte()
		if err != nil {
			return err
		}
		if n > 8 {
			return fmt.Errorf("an integer of %d bytes", n)
		}
		width = uint64(n)
	}
	b, err := d.bytes(width)
	if err != nil {
		return err
	}
	switch op {
	case 'K':
		return d.push(int64(b[0]))
	case 'M':
		return d.push(int64(binary.LittleEndian.Uint16(b)))
	case 'J':
		return d.push(int64(int32(binary.LittleEndian.Uint32(b))))
	case 'G':
		return d.push(math.Float64frombits(binary.BigEndian.Uint64(b)))
	}
	var wide [8]byte
	if width > 0 && b[width-1]&0x80 != 0 {
		wide = [8]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	}
	copy(wide[:], b)
	return d.push(int64(binary.LittleEndian.Uint64(wide[:])))
}

func (d *decoder) text(op byte) error {
	var n uint64
	if op == 0x8c || op == 'U' { // SHORT_BINUNICODE, SHORT_BINSTRING
		b, err := d.byte()
		if err != nil {
			return err
		}
		n = uint64(b)
	} else { // BINUNICODE, BINSTRING
		b, err := d.bytes(4)
		if err != nil {
			return err
		}
		n = uint64(binary.LittleEndian.Uint32(b))
	}
	b, err := d.bytes(n)
	if err != nil {
		return err
	}
	if !utf8.Valid(b) {
		// Python pickles lone surrogates (bytes of a log in another encoding) as they are. Such text is never an address
		// or a name that counts here, but mustn't hide its neighbours.
		return d.push(strconv.QuoteToASCII(string(b)))
	}
	return d.push(string(b))
}

func (d *decoder) tuple(op byte) error {
	switch op {
	case ')':
		return d.push(tuple{})
	case 't':
		items, err := d.popMark()
		if err != nil {
			return err
		}
		return d.push(append(tuple{}, items...))
	}
	t := make(tuple, int(op-0x84))
	for i := len(t) - 1; i >= 0; i-- {
		v, err := d.pop()
		if err != nil {
			return err
		}
		t[i] = v
	}
	return d.push(t)
}

func (d *decoder) extend(op byte) error {
	var items []any
	if op == 'a' {
		v, err := d.pop()
		if err != nil {
			return err
		}
		items = []any{v}
	} else {
		var err error
		if items, err = d.popMark(); err != nil {
			return err
		}
	}
	l, ok := d.top().(*list)
	if !ok {
		return errors.New("appends to what isn't a list")
	}
	l.items = append(l.items, items...)
	return nil
}

func (d *decoder) setItems(op byte) error {
	var items []any
	if op == 's' {
		v, err := d.pop()
		if err != nil {
			return err
		}
		k, err := d.pop()
		if err != nil {
			return err
		}
		items = []any{k, v}
	} else {
		var err error
		if items, err = d.popMark(); err != nil {
			return err
		}
	}
	m, ok := d.top().(*dict)
	if !ok || len(items)%2 != 0 {
		return errors.New("sets items of what isn't a dict")
	}
	for i := 0; i < len(items); i += 2 {
		k, ok := items[i].(string)
		if !ok {
			return errors.New("a key that isn't a string")
		}
		m.items[k] = items[i+1]
	}
	return nil
}

// call handles classes as names, and what is made of them as inert objects.
func (d *decoder) call(op byte) error {
	switch op {
	case 'c': // GLOBAL: two lines
		var names [2]string
		for i := range names {
			start := d.at
			for {
				b, err := d.byte()
				if err != nil {
					return err
				}
				if b == '\n' {
					break
				}
			}
			names[i] = string(d.in[start : d.at-1])
		}
		return d.global(names[0], names[1])
	case 0x93: // STACK_GLOBAL
		name, err := d.pop()
		if err != nil {
			return err
		}
		module, err := d.pop()
		if err != nil {
			return err
		}
		m, ok1 := module.(string)
		n, ok2 := name.(string)
		if !ok1 || !ok2 {
			return errors.New("a class without a name")
		}
		return d.global(m, n)
	case 'b': // BUILD: the attributes of an object, of no interest
		if _, err := d.pop(); err != nil {
			return err
		}
		if _, ok := d.top().(*object); !ok {
			return errors.New("attributes of what isn't an object")
		}
		return nil
	}
	args, err := d.pop() // REDUCE
	if err != nil {
		return err
	}
	class, err := d.pop()
	if err != nil {
		return err
	}
	a, ok1 := args.(tuple)
	g, ok2 := class.(global)
	if !ok1 || !ok2 {
		return errors.New("calls what isn't a class")
	}
	if (g == global{"builtins", "str"} || g == global{"__builtin__", "unicode"}) && len(a) == 1 {
		if s, ok := a[0].(string); ok {
			return d.push(s) // an address
		}
	}
	return d.push(&object{module: g.module, name: g.name, args: a})
}

func (d *decoder) global(module, name string) error {
	const maxName = 128
	if len(module) > maxName || len(name) > maxName || !utf8.ValidString(module) || !utf8.ValidString(name) {
		return errors.New("a class with an impossible name")
	}
	return d.push(global{module, name})
}

func (d *decoder) top() any {
	if len(d.stack) == 0 {
		return nil
	}
	return d.stack[len(d.stack)-1]
}

func (d *decoder) memory(op byte) error {
	index := uint64(len(d.memo))
	if op != 0x94 {
		width := uint64(1)
		if op == 'r' || op == 'j' {
			width = 4
		}
		b, err := d.bytes(width)
		if err != nil {
			return err
		}
		index = uint64(b[0])
		if width == 4 {
			index = uint64(binary.LittleEndian.Uint32(b))
		}
	}
	if op == 'h' || op == 'j' {
		if index >= uint64(len(d.memo)) {
			return fmt.Errorf("remembers %d, which was never kept", index)
		}
		return d.push(d.memo[index])
	}
	if len(d.stack) == 0 {
		return errors.New("keeps a value that isn't there")
	}
	if _, ok := d.top().(mark); ok {
		return errors.New("keeps a mark")
	}
	switch {
	case index == uint64(len(d.memo)): // picklers count up
		if len(d.memo) == maxValues {
			return errors.New("keeps too many values")
		}
		d.memo = append(d.memo, d.top())
	case index < uint64(len(d.memo)):
		d.memo[index] = d.top()
	default:
		return fmt.Errorf("keeps as %d with %d kept", index, len(d.memo))
	}
	return nil
}
