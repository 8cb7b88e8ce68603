package store

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// The doorbell of an organisation is a sharded pub/sub channel. A ring says that something changed and where to read
// it; what it carries beside that is a convenience, never the record. A message is one line of words, and for deltas a
// newline and packed records:
//
//	delta SET KIND EPOCH VERSION DIGEST\n<records>   a set went to VERSION (records may be left out when they are many)
//	epoch EPOCH                                      Redis was restarted or lost; read every set's state again
//	command HOST                                     the host's command log grew
//	result HOST                                      a command of the host has its result
//	kick HOST FENCE                                  streams of the host with a smaller fence must end
//	settings                                         mode, pause or policy changed
//	acks HOST                                        the host's acknowledged cursors or exceptions changed
//	events                                           the stream of events for people grew
//	probe TOKEN                                      a reader's own, to hear whether it still hears

// BellKind says what rang.
type BellKind string

// The kinds. A reader skips one it doesn't know.
const (
	BellDelta    BellKind = "delta"
	BellEpoch    BellKind = "epoch"
	BellCommand  BellKind = "command"
	BellResult   BellKind = "result"
	BellKick     BellKind = "kick"
	BellSettings BellKind = "settings"
	BellAcks     BellKind = "acks"
	BellEvents   BellKind = "events"
	BellProbe    BellKind = "probe"
)

// Bell is one ring of the doorbell.
type Bell struct {
	Kind BellKind
	// Host is the host id of command, result, kick and acks ("*" there: of several hosts).
	Host string
	// Fence, of kick: streams with a smaller one must end.
	Fence uint64
	// Set, SetKind (a fleetbanv1.SetKind), Epoch, Version, Digest and Records are those of delta; Epoch also that of epoch.
	Set     string
	SetKind int32
	Epoch   uint64
	Version uint64
	Digest  uint64
	// Records are packed (see package sets). Nil where the delta was too large to ring with: read the log.
	Records []byte
	// Token is that of probe.
	Token string
}

// BellChannel is the channel to ring and to listen on, with SPUBLISH and SSUBSCRIBE.
func BellChannel(org string) string { return Key(org, "bell") }

// ErrMalformedBell is wrapped by every error of ParseBell.
var ErrMalformedBell = errors.New("malformed doorbell message")

// Encode makes the message, for a script to SPUBLISH.
func (b Bell) Encode() string {
	switch b.Kind {
	case BellCommand, BellResult, BellAcks:
		return string(b.Kind) + " " + b.Host
	case BellKick:
		return "kick " + b.Host + " " + strconv.FormatUint(b.Fence, 10)
	case BellEpoch:
		return "epoch " + strconv.FormatUint(b.Epoch, 10)
	case BellProbe:
		return "probe " + b.Token
	case BellDelta:
		return fmt.Sprintf("delta %s %d %d %d %016x\n%s", b.Set, b.SetKind, b.Epoch, b.Version, b.Digest, b.Records)
	default:
		return string(b.Kind)
	}
}

// ParseBell parses a message. One of an unknown kind is not an error: its Kind is what it says and nothing else is set.
func ParseBell(message string) (Bell, error) {
	line, rest, _ := strings.Cut(message, "\n")
	words := strings.Split(line, " ")
	b := Bell{Kind: BellKind(words[0])}
	bad := func() (Bell, error) {
		return Bell{}, fmt.Errorf("%w: %.80q", ErrMalformedBell, line)
	}
	want := map[BellKind]int{BellDelta: 6, BellEpoch: 2, BellCommand: 2, BellResult: 2, BellAcks: 2, BellKick: 3, BellProbe: 2}[b.Kind]
	if want != 0 && len(words) != want {
		return bad()
	}
	var err error
	number := func(s string, base, bits int) uint64 {
		n, e := strconv.ParseUint(s, base, bits)
		err = errors.Join(err, e)
		return n
	}
	switch b.Kind {
	case BellDelta:
		b.Set = words[1]
		b.SetKind = int32(number(words[2], 10, 31)) //nolint:gosec // 31 bits
		b.Epoch, b.Version, b.Digest = number(words[3], 10, 64), number(words[4], 10, 64), number(words[5], 16, 64)
		if rest != "" {
			b.Records = []byte(rest)
		}
	case BellEpoch:
		b.Epoch = number(words[1], 10, 64)
	case BellCommand, BellResult, BellAcks:
		b.Host = words[1]
	case BellKick:
		b.Host, b.Fence = words[1], number(words[2], 10, 64)
	case BellProbe:
		b.Token = words[1]
	default:
	}
	if err != nil {
		return bad()
	}
	return b, nil
}

// Ring rings the doorbell of an organisation. A script that changes something rings itself: SPUBLISH of BellChannel
// and Encode in the same script.
func (s *Store) Ring(ctx context.Context, org string, b Bell) error {
	if err := s.client.SPublish(ctx, BellChannel(org), b.Encode()).Err(); err != nil {
		return fmt.Errorf("ring the doorbell: %w", Classify(err))
	}
	return nil
}
