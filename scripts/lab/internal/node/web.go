package node

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

// serveWeb is the service that machines of the lab offer to the world: on each address of args "echo=ADDR" a server that
// sends every line back, on each "http=ADDR" one that answers with the machine's name and who asked, and
// on "garbage=PATH" a Unix socket that answers what no program means to say.
func serveWeb(args []string) error {
	failed := make(chan error, len(args))
	for _, arg := range args {
		kind, addr, _ := strings.Cut(arg, "=")
		network := "tcp"
		if kind == "garbage" {
			network = "unix"
		}
		listener, err := new(net.ListenConfig).Listen(context.Background(), network, addr)
		if err != nil {
			return err
		}
		switch kind {
		case "echo":
			go func() { failed <- serveEcho(listener) }()
		case "http":
			server := &http.Server{Handler: http.HandlerFunc(hello), ReadHeaderTimeout: 5 * time.Second}
			go func() { failed <- server.Serve(listener) }()
		case "garbage":
			go func() { failed <- serveGarbage(listener) }()
		default:
			return fmt.Errorf("unknown server %q", arg)
		}
	}
	return <-failed
}

func hello(w http.ResponseWriter, r *http.Request) {
	host, _ := os.Hostname()
	peer, _, _ := net.SplitHostPort(r.RemoteAddr)
	fmt.Fprintf(w, "%s greets %s\n", host, peer)
}

func serveEcho(listener net.Listener) error {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			lines := bufio.NewReader(conn)
			for {
				line, err := lines.ReadSlice('\n')
				if err != nil {
					return
				}
				if _, err := conn.Write(line); err != nil {
					return
				}
			}
		}()
	}
}

// serveGarbage answers whatever is asked with bytes that mean nothing, without end.
func serveGarbage(listener net.Listener) error {
	garbage := bytes.Repeat([]byte("\x80\x05\x95\xff\xff\xff\xff(cos\nsystem\n<F2B_END"), 1000)
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			for {
				if _, err := conn.Write(garbage); err != nil {
					return
				}
			}
		}()
	}
}
