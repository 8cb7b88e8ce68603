package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/fleetban/fleetban/scripts/lab/internal/lab"
)

const (
	floorRounds  = 100
	floorChannel = "bench-floor"
	// floorTable is nobody's.
	floorTable = "add table inet floor\nadd set inet floor s { type ipv4_addr; flags timeout; }\n"
)

// floor measures the least that any fleet over Redis could take on this machine: PUBLISH, a subscriber, and an nft that
// runs already and adds what it is given to a set.
func floor(ctx context.Context, l *lab.Lab, kernel *lab.KernelWatch) ([]time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, oneStep)
	defer cancel()
	host := l.Hosts()[0]
	nft := host.Command(ctx, "nft", "-i")
	in, err := nft.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := nft.Start(); err != nil {
		return nil, err
	}
	defer func() {
		_ = in.Close()
		_ = nft.Wait()
		_, _ = host.Exec(context.WithoutCancel(ctx), "nft", "delete", "table", "inet", "floor")
	}()
	if _, err := io.WriteString(in, floorTable); err != nil {
		return nil, err
	}
	publisher, err := dialRedis(ctx, l)
	if err != nil {
		return nil, err
	}
	defer publisher.Close()
	subscriber, err := dialRedis(ctx, l)
	if err != nil {
		return nil, err
	}
	heard := bufio.NewReader(subscriber)
	if err := redisCommand(subscriber, "SUBSCRIBE", floorChannel); err != nil {
		return nil, err
	}
	if err := skipUntil(heard, ":1"); err != nil {
		return nil, err
	}
	relayed := make(chan error, 1)
	go func() {
		for {
			line, err := heard.ReadString('\n')
			if err != nil {
				relayed <- err
				return
			}
			if addr, err := netip.ParseAddr(strings.TrimSpace(line)); err == nil {
				if _, err := fmt.Fprintf(in, "add element inet floor s { %s timeout 1m }\n", addr); err != nil {
					relayed <- err
					return
				}
			}
		}
	}()
	took := make([]time.Duration, 0, floorRounds)
	addr := netip.MustParseAddr("45.255.0.1")
	answers := bufio.NewReader(publisher)
	for range floorRounds {
		addr = addr.Next()
		kernel.Expect(addr)
		begin := time.Now()
		if err := redisCommand(publisher, "PUBLISH", floorChannel, addr.String()); err != nil {
			return nil, err
		}
		at, err := kernel.Await(ctx, addr)
		if err != nil {
			return nil, err
		}
		took = append(took, at.Sub(begin))
		if err := skipUntil(answers, ":"); err != nil {
			return nil, err
		}
	}
	_ = subscriber.Close()
	if err := <-relayed; !errors.Is(err, net.ErrClosed) && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return took, nil
}

func dialRedis(ctx context.Context, l *lab.Lab) (net.Conn, error) {
	conn, err := l.Node(lab.ControlPlane).Dial(ctx, "tcp", lab.RedisAddress, netip.Addr{})
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { _ = conn.Close() })
	return conn, nil
}

func redisCommand(conn net.Conn, words ...string) error {
	var b strings.Builder
	fmt.Fprintf(&b, "*%d\r\n", len(words))
	for _, w := range words {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(w), w)
	}
	_, err := io.WriteString(conn, b.String())
	return err
}

// skipUntil reads lines up to one that begins so.
func skipUntil(r *bufio.Reader, begins string) error {
	for {
		line, err := r.ReadString('\n')
		switch {
		case err != nil:
			return err
		case strings.HasPrefix(line, "-"):
			return errors.New("redis: " + strings.TrimSpace(line))
		case strings.HasPrefix(line, begins):
			return nil
		}
	}
}
