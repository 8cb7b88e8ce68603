package chaos

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/fleetban/fleetban/scripts/lab/internal/lab"
)

// checker compares what kernels and the API show with the journal. It uses nothing of the product's code.
type checker struct {
	lab     *lab.Lab
	journal *journal
	http    *http.Client
	// notices are those of the history so far.
	notices map[string]bool
	// again are the events that tell of a ban that stood again after it was lifted.
	again map[string]bool
	// lost is how many bans a failover lost that no host had.
	lost int
}

func newChecker(l *lab.Lab, j *journal) *checker {
	return &checker{lab: l, journal: j, http: l.HTTPClient(), notices: map[string]bool{}, again: map[string]bool{}}
}

// kernels reads what every host's kernel bans, and when it was read.
func (c *checker) kernels(ctx context.Context) (map[string]map[netip.Prefix]time.Duration, time.Time, error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	out := map[string]map[netip.Prefix]time.Duration{}
	var errs []error
	begun := time.Now()
	for _, h := range c.lab.Hosts() {
		wg.Go(func() {
			kernel, err := h.Kernel(ctx)
			mu.Lock()
			defer mu.Unlock()
			out[h.Name] = kernel
			errs = append(errs, err)
		})
	}
	wg.Wait()
	return out, begun, errors.Join(errs...)
}

// settled returns what keeps the fleet from being what the journal says it must be; empty: nothing does.
func (c *checker) settled(ctx context.Context) ([]string, error) {
	kernels, at, err := c.kernels(ctx)
	if err != nil {
		return nil, err
	}
	for host, kernel := range kernels {
		c.journal.saw(host, kernel, false)
	}
	var wrong []string
	known := map[netip.Prefix]bool{}
	// While the fleet's clock stands still, and until hosts know that it goes on, they may differ in what ends meanwhile: each ends it by the time it was told last.
	still := at.Before(c.journal.rightAgain())
	mayDiffer := map[netip.Prefix]bool{}
	for _, f := range c.journal.all() {
		known[f.prefix] = true
		mayDiffer[f.prefix] = still && f.verdict(at) == either
		for host, kernel := range kernels {
			_, is := kernel[f.prefix]
			switch v := f.verdict(at); {
			case v == banned && !is:
				wrong = append(wrong, fmt.Sprintf("lost: %s doesn't ban %s", host, &f))
			case v == free && is:
				wrong = append(wrong, fmt.Sprintf("left over: %s bans %s", host, &f))
			}
		}
	}
	for host, kernel := range kernels {
		for p := range kernel {
			if !known[p] {
				wrong = append(wrong, fmt.Sprintf("foreign: %s bans %s, which nobody asked for", host, p))
			}
			for other, theirs := range kernels {
				if _, is := theirs[p]; !is && !mayDiffer[p] {
					wrong = append(wrong, fmt.Sprintf("differ: %s bans %s and %s doesn't", host, p, other))
				}
			}
		}
	}
	listed, err := c.listed(ctx)
	if err != nil {
		return nil, err
	}
	for _, f := range c.journal.all() {
		switch v := f.verdict(at); {
		case v == banned && !listed[f.prefix]:
			wrong = append(wrong, fmt.Sprintf("the API doesn't list %s", &f))
		case v == free && listed[f.prefix] && !f.allowed: // a ban that the allowlist suppresses stays listed, as such
			wrong = append(wrong, fmt.Sprintf("the API lists %s", &f))
		}
	}
	behind, err := c.behind(ctx)
	return append(wrong, behind...), err
}

// during returns what must not be seen at any time, faults or none: bans past their end, of the allowlist, and bans that
// stood before the round and are gone. flushed hosts may lose theirs for a moment.
func (c *checker) during(ctx context.Context, standing map[netip.Prefix]bool, flushed map[string]bool) []string {
	kernels, at, err := c.kernels(ctx)
	if err != nil {
		return nil // of a host whose nft was in the way of a flush; the next look sees
	}
	for host, kernel := range kernels {
		c.journal.saw(host, kernel, flushed[host])
	}
	var wrong []string
	for _, f := range c.journal.all() {
		for host, kernel := range kernels {
			_, is := kernel[f.prefix]
			switch {
			case is && f.allowed && !f.tail:
				wrong = append(wrong, fmt.Sprintf("allowed: %s bans %s", host, &f))
			case is && at.After(f.over()):
				wrong = append(wrong, fmt.Sprintf("outlived: %s bans %s", host, &f))
			case !is && standing[f.prefix] && !flushed[host] && f.verdict(at) == banned:
				wrong = append(wrong, fmt.Sprintf("dropped: %s no longer bans %s", host, &f))
			}
		}
	}
	return wrong
}

// call calls the API in its JSON form.
func (c *checker) call(ctx context.Context, method string, request, response any) error {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, lab.URL+"/fleetban.operator.v1."+method, bytes.NewReader(body))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/json")
	answer, err := c.http.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	content, err := io.ReadAll(io.LimitReader(answer.Body, 32<<20))
	if err != nil {
		return err
	}
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %.300s", method, answer.Status, content)
	}
	return json.Unmarshal(content, response)
}

// listed are the bans in force by the API.
func (c *checker) listed(ctx context.Context) (map[netip.Prefix]bool, error) {
	out := map[netip.Prefix]bool{}
	for token := ""; ; {
		var page struct {
			Bans []struct {
				Prefix       string
				SuppressedBy string
			}
			NextPageToken string
		}
		if err := c.call(ctx, "BanService/ListBans", map[string]any{"pageSize": 1000, "pageToken": token}, &page); err != nil {
			return nil, err
		}
		for _, b := range page.Bans {
			p, err := parse(b.Prefix)
			if err != nil {
				return nil, err
			}
			out[p] = true
		}
		if token = page.NextPageToken; token == "" {
			return out, nil
		}
	}
}

func parse(text string) (netip.Prefix, error) {
	if strings.Contains(text, "/") {
		return netip.ParsePrefix(text)
	}
	a, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Prefix{}, err
	}
	return netip.PrefixFrom(a, a.BitLen()), nil
}

// behind says which hosts the API doesn't show as online and in sync.
func (c *checker) behind(ctx context.Context) (out []string, err error) {
	var list struct {
		Hosts []struct {
			Name, Presence, Inert string
			Sets                  []struct{ Set, Acknowledged, Current string }
		}
	}
	if err := c.call(ctx, "HostService/ListHosts", map[string]any{}, &list); err != nil {
		return nil, err
	}
	if len(list.Hosts) != len(c.lab.Hosts()) {
		out = append(out, fmt.Sprintf("the API lists %d hosts of %d", len(list.Hosts), len(c.lab.Hosts())))
	}
	for _, h := range list.Hosts {
		if h.Presence != "PRESENCE_ONLINE" || h.Inert != "" && h.Inert != "INERT_UNSPECIFIED" {
			out = append(out, fmt.Sprintf("the API shows %s as %s %s", h.Name, h.Presence, h.Inert))
		}
		for _, s := range h.Sets {
			if s.Acknowledged != s.Current {
				out = append(out, fmt.Sprintf("the API shows %s at %s of %s in %s", h.Name, s.Acknowledged, s.Current, s.Set))
			}
		}
	}
	return out, nil
}
