package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/fleetban/fleetban/scripts/lab/internal/node"
)

const (
	programToxiproxy = "toxiproxy-server"
	proxiesPath      = "/etc/toxiproxy.json"
	// toxiproxyAddress is where it is told what to do, on the control plane's machine.
	toxiproxyAddress = "127.0.0.1:8474"
)

var toxiproxy = node.Service{
	Name: "toxiproxy", Restart: true, Argv: []string{programToxiproxy, "-config", proxiesPath, "-host", "127.0.0.1", "-port", "8474"},
}

// proxiedPort is where toxiproxy listens in a service's place.
func proxiedPort(service string) int {
	if service == ServiceRedis {
		return 6378
	}
	var i int
	_, _ = fmt.Sscanf(service, "replica%d", &i)
	return 8540 + i
}

// proxies is toxiproxy's configuration.
func (l *Lab) proxies() string {
	type proxy struct {
		Name     string `json:"name"`
		Listen   string `json:"listen"`
		Upstream string `json:"upstream"`
		Enabled  bool   `json:"enabled"`
	}
	of := func(service, upstream string) proxy {
		return proxy{service, fmt.Sprintf("127.0.0.1:%d", proxiedPort(service)), upstream, true}
	}
	list := []proxy{of(ServiceRedis, RedisAddress)}
	for i := range l.options.Replicas {
		list = append(list, of(ServiceReplica(i+1), fmt.Sprintf("127.0.0.1:%d", replicaPort(i+1))))
	}
	text, _ := json.Marshal(list) // never fails: strings
	return string(text)
}

// Proxy is the way to Redis or to a replica of a Proxied lab.
type Proxy struct {
	lab     *Lab
	service string
}

// Proxy returns the way to a service: ServiceRedis or a ServiceReplica.
func (l *Lab) Proxy(service string) Proxy { return Proxy{l, service} }

// Cut ends all connections and refuses new ones.
func (p Proxy) Cut(ctx context.Context) error { return p.enable(ctx, false) }

// Mend undoes Cut.
func (p Proxy) Mend(ctx context.Context) error { return p.enable(ctx, true) }

func (p Proxy) enable(ctx context.Context, yes bool) error {
	return p.call(ctx, http.MethodPost, "", map[string]any{"enabled": yes})
}

// Delay has everything that the service answers come later, each piece by latency and up to jitter more or less.
func (p Proxy) Delay(ctx context.Context, latency, jitter time.Duration) error {
	return p.call(ctx, http.MethodPost, "/toxics", map[string]any{
		"name": "slow", "type": "latency", "stream": "downstream",
		"attributes": map[string]int64{"latency": latency.Milliseconds(), "jitter": jitter.Milliseconds()},
	})
}

// Swallow loses all that is sent to the service, on connections that stay open.
func (p Proxy) Swallow(ctx context.Context) error {
	return p.call(ctx, http.MethodPost, "/toxics", map[string]any{
		"name": "slow", "type": "timeout", "stream": "upstream", "attributes": map[string]int64{"timeout": 0},
	})
}

// Through undoes Delay or Swallow. Connections that lost something are ended.
func (p Proxy) Through(ctx context.Context) error {
	return p.call(ctx, http.MethodDelete, "/toxics/slow", nil)
}

func (p Proxy) call(ctx context.Context, method, path string, body any) error {
	content, err := json.Marshal(body)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://"+toxiproxyAddress+"/proxies/"+p.service+path, bytes.NewReader(content))
	if err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
		return p.lab.Node(ControlPlane).Dial(ctx, "tcp", addr, netip.Addr{})
	}}}
	defer client.CloseIdleConnections()
	answer, err := client.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	said, _ := io.ReadAll(io.LimitReader(answer.Body, 1<<10))
	if answer.StatusCode/100 != 2 {
		return fmt.Errorf("toxiproxy, asked for %s %s%s: %s %s", method, p.service, path, answer.Status, said)
	}
	return nil
}
