package lab

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
)

// Console carries connections from address, on the machine that the lab is on, to the control plane within it: a browser
// outside sees the console there. It returns the address it listens at; wait returns when ctx has ended and all are closed.
func (l *Lab) Console(ctx context.Context, address string) (at netip.AddrPort, wait func(), err error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return at, nil, fmt.Errorf("listen for browsers: %w", err)
	}
	if at, err = netip.ParseAddrPort(listener.Addr().String()); err != nil {
		_ = listener.Close()
		return at, nil, err
	}
	var wg sync.WaitGroup
	context.AfterFunc(ctx, func() { _ = listener.Close() })
	wg.Go(func() {
		for {
			browser, err := listener.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { l.carry(ctx, browser) })
		}
	})
	return at, wg.Wait, nil
}

func (l *Lab) carry(ctx context.Context, browser net.Conn) {
	defer browser.Close()
	server, err := l.Node(Admin).Dial(ctx, "tcp", netip.AddrPortFrom(controlPlaneAddr, 443).String(), netip.Addr{})
	if err != nil {
		return // the browser says that nobody answers
	}
	defer server.Close()
	stop := context.AfterFunc(ctx, func() { _, _ = browser.Close(), server.Close() })
	defer stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(server, browser)
		_ = server.Close()
	}()
	_, _ = io.Copy(browser, server)
	_ = browser.Close()
	<-done
}
