package nft_test

import (
	"context"
	"encoding/binary"
	"net/netip"
	"runtime/debug"
	"testing"
	"time"

	"github.com/fleetban/fleetban/agent/internal/nft"
)

const many = 100_000

// crowd yields n single addresses and /64s of the documentation ranges' neighbourhood, half of each.
func crowd(n int) func(func(nft.Element) bool) {
	return func(yield func(nft.Element) bool) {
		for i := range n {
			var p netip.Prefix
			if i%2 == 0 {
				var a [4]byte
				binary.BigEndian.PutUint32(a[:], 0xc6000000+uint32(i))
				p = netip.PrefixFrom(netip.AddrFrom4(a), 32)
			} else {
				a := [16]byte{0x20, 0x01, 0x0d, 0xb8}
				binary.BigEndian.PutUint32(a[4:], uint32(i))
				p = netip.PrefixFrom(netip.AddrFrom16(a), 64)
			}
			if !yield(nft.Element{Prefix: p, Remaining: time.Hour}) {
				return
			}
		}
	}
}

// BenchmarkOneMore is one ban's way into a kernel that has 100,000. To beat: 1 ms.
func BenchmarkOneMore(b *testing.B) {
	l := newLab(b)
	e := open(b, l.host)
	ctx := context.Background()
	if err := e.Replace(ctx, nft.Desired{Bans: crowd(many)}); err != nil {
		b.Fatal(err)
	}
	i := uint32(0)
	for b.Loop() {
		i++
		var a [4]byte
		binary.BigEndian.PutUint32(a[:], 0xcb000000+i)
		if err := e.Update(ctx, nft.Update{Add: []nft.Element{{Prefix: netip.PrefixFrom(netip.AddrFrom4(a), 32), Remaining: time.Hour}}}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkFromScratch puts 100,000 into an empty kernel. To beat: 0.5 s.
func BenchmarkFromScratch(b *testing.B) {
	l := newLab(b)
	e := open(b, l.host)
	ctx := context.Background()
	for b.Loop() {
		if err := e.Replace(ctx, nft.Desired{Bans: crowd(many)}); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := e.Off(ctx); err != nil {
			b.Fatal(err)
		}
		debug.FreeOSMemory()
		b.StartTimer()
	}
}

// BenchmarkReplaceFull swaps 100,000 for 100,000.
func BenchmarkReplaceFull(b *testing.B) {
	l := newLab(b)
	e := open(b, l.host)
	ctx := context.Background()
	for b.Loop() {
		if err := e.Replace(ctx, nft.Desired{Bans: crowd(many)}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkList reads 100,000 back.
func BenchmarkList(b *testing.B) {
	l := newLab(b)
	e := open(b, l.host)
	ctx := context.Background()
	if err := e.Replace(ctx, nft.Desired{Bans: crowd(many)}); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		n := 0
		if err := e.List(ctx, func(nft.Element, bool) error { n++; return nil }); err != nil || n != many {
			b.Fatal(n, err)
		}
	}
}
