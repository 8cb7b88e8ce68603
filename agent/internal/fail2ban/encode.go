package fail2ban

import (
	"encoding/binary"
	"fmt"
	"strings"
	"unicode/utf8"
)

const (
	endMarker    = "<F2B_END_COMMAND>"
	maxArgument  = 64 << 10
	maxArguments = 4096
)

// encode writes the request for a command: protocol 2, a list of strings, the end marker. It refuses what would break out
// of that frame: an argument with the marker in it would end the message, and the rest would be unpickled as another.
func encode(args []string) ([]byte, error) {
	if len(args) == 0 || len(args) > maxArguments {
		return nil, fmt.Errorf("%w: a command of %d words", ErrArgument, len(args))
	}
	size := 16 + len(endMarker)
	for _, arg := range args {
		switch {
		case len(arg) > maxArgument:
			return nil, fmt.Errorf("%w: %d bytes long", ErrArgument, len(arg))
		case strings.Contains(arg, endMarker):
			return nil, fmt.Errorf("%w: has the end marker in it", ErrArgument)
		case strings.ContainsRune(arg, 0):
			return nil, fmt.Errorf("%w: has a NUL in it", ErrArgument)
		case !utf8.ValidString(arg):
			return nil, fmt.Errorf("%w: isn't UTF-8", ErrArgument)
		}
		size += 5 + len(arg)
	}
	b := make([]byte, 0, size)
	b = append(b, 0x80, 2, ']', '(')
	for _, arg := range args {
		b = append(b, 'X')
		b = binary.LittleEndian.AppendUint32(b, uint32(len(arg)))
		b = append(b, arg...)
	}
	b = append(b, 'e', '.')
	// A length that spells a piece of the marker together with its neighbours would split the message too.
	if strings.Contains(string(b), endMarker) {
		return nil, fmt.Errorf("%w: spells the end marker", ErrArgument)
	}
	return append(b, endMarker...), nil
}
