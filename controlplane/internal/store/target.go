package store

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"
)

// Topology is how Redis is run.
type Topology string

// The topologies.
const (
	Standalone Topology = "standalone"
	Sentinel   Topology = "sentinel"
	Cluster    Topology = "cluster"
)

// Forms are the URLs that Open takes, for people.
const Forms = "redis://[user:password@]host:6379/0, rediss://… (TLS), unix:///path/redis.sock, " +
	"redis+sentinel://[user:password@]host1:26379,host2:26379/master-name[?db=0] or redis+cluster://[user:password@]host1:6379,host2:6379 " +
	"(rediss+… for TLS; after '?' then ca_file, cert_file and key_file)"

// Bounds of a URL.
const (
	mostURL       = 4096 // bytes
	mostAddresses = 64
	mostDB        = 65535
	mostPool      = 10_000 // connections a server
)

var masterName = regexp.MustCompile(`^[A-Za-z0-9._-]{1,100}$`)

// target is a parsed URL: where Redis is and who calls.
type target struct {
	topology Topology
	// single is set for standalone, the rest for the others.
	single    *redis.Options
	addresses []string // host:port
	master    string   // the name that Sentinels know it by
	db        int
	user      string
	password  string
	// sentinelUser and sentinelPassword are for the Sentinels themselves; "" where they ask for none.
	sentinelUser     string
	sentinelPassword string
	pool             int // connections a server, 0 for the client's default
	tls              bool
	files            tlsFiles
}

// parseTarget parses a URL. Its errors hold nothing that may be a secret: not the user's part, nor what was mistaken for
// something else.
func parseTarget(raw string) (target, error) {
	bad := func(problem string) (target, error) {
		return target{}, fmt.Errorf("redis URL: %s; write %s", problem, Forms)
	}
	if len(raw) > mostURL {
		return bad(fmt.Sprintf("it is longer than %d bytes", mostURL))
	}
	scheme, rest, ok := strings.Cut(raw, "://")
	if !ok {
		return bad("it has no scheme")
	}
	t := target{topology: Standalone}
	switch scheme {
	case "redis", "rediss", "unix":
		raw, err := t.files.cut(raw)
		if err != nil {
			return bad(err.Error())
		}
		options, err := redis.ParseURL(raw)
		if err != nil {
			return bad("it can't be parsed")
		}
		t.single, t.tls = options, options.TLSConfig != nil
		if !t.tls && t.files != (tlsFiles{}) {
			return bad("it names certificates and its scheme is without TLS")
		}
		return t, nil
	case "redis+sentinel", "rediss+sentinel":
		t.topology = Sentinel
	case "redis+cluster", "rediss+cluster":
		t.topology = Cluster
	default:
		return bad("its scheme is unknown")
	}
	t.tls = strings.HasPrefix(scheme, "rediss")
	rest, query, _ := strings.Cut(rest, "?")
	authority, path, _ := strings.Cut(rest, "/")
	if at := strings.LastIndexByte(authority, '@'); at >= 0 {
		user, password, _ := strings.Cut(authority[:at], ":")
		var err1, err2 error
		t.user, err1 = url.PathUnescape(user)
		t.password, err2 = url.PathUnescape(password)
		if err1 != nil || err2 != nil {
			return bad("its user or password isn't percent-encoded")
		}
		authority = authority[at+1:]
	}
	var err error
	if t.addresses, err = parseAddresses(authority, map[Topology]string{Sentinel: "26379", Cluster: "6379"}[t.topology]); err != nil {
		return bad(err.Error())
	}
	if t.topology == Sentinel {
		if t.master = path; !masterName.MatchString(path) {
			return bad("behind the Sentinels' addresses stands no name of a master (letters, digits, '.', '_' and '-')")
		}
	} else if path != "" {
		return bad("a cluster has no databases: nothing may follow its addresses")
	}
	if err := t.parseQuery(query); err != nil {
		return bad(err.Error())
	}
	return t, nil
}

func parseAddresses(text, port string) ([]string, error) {
	words := strings.Split(text, ",")
	if len(words) > mostAddresses {
		return nil, fmt.Errorf("it names %d servers, %d are possible", len(words), mostAddresses)
	}
	addresses := make([]string, 0, len(words))
	for i, word := range words {
		host, p, err := net.SplitHostPort(word)
		if err != nil {
			host, p = strings.TrimSuffix(strings.TrimPrefix(word, "["), "]"), port
			if bracketed := host != word; strings.Contains(host, ":") != bracketed {
				return nil, fmt.Errorf("its server %d isn't HOST:PORT or [IPV6]:PORT", i+1)
			}
		}
		if host == "" || strings.ContainsAny(host, " @[]") {
			return nil, fmt.Errorf("its server %d isn't HOST:PORT or [IPV6]:PORT", i+1)
		}
		if n, err := strconv.ParseUint(p, 10, 16); err != nil || n == 0 {
			return nil, fmt.Errorf("the port of its server %d isn't 1 to 65535", i+1)
		}
		addresses = append(addresses, net.JoinHostPort(host, p))
	}
	return addresses, nil
}

func (t *target) parseQuery(query string) error {
	values, err := url.ParseQuery(query)
	if err != nil {
		return errors.New("what follows '?' can't be parsed")
	}
	for name, all := range values {
		if len(all) != 1 {
			return fmt.Errorf("it gives %.40q twice", name)
		}
		value := all[0]
		number := func(least, most int) (n int, err error) {
			if n, err = strconv.Atoi(value); err != nil || n < least || n > most {
				return 0, fmt.Errorf("%s isn't %d to %d", name, least, most)
			}
			return n, nil
		}
		switch {
		case name == "db" && t.topology == Sentinel:
			t.db, err = number(0, mostDB)
		case name == "sentinel_user" && t.topology == Sentinel:
			t.sentinelUser = value
		case name == "sentinel_password" && t.topology == Sentinel:
			t.sentinelPassword = value
		case name == "pool_size":
			t.pool, err = number(1, mostPool)
		case t.files.named(name) != nil:
			if *t.files.named(name) = value; !t.tls {
				err = errors.New("it names certificates and its scheme is without TLS")
			}
		case t.topology == Sentinel:
			err = fmt.Errorf("it knows no %.40q: db, sentinel_user, sentinel_password, pool_size, ca_file, cert_file and key_file are possible", name)
		default:
			err = fmt.Errorf("it knows no %.40q: pool_size, ca_file, cert_file and key_file are possible", name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
