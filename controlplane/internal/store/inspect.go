package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// Durability is what a Redis promises of a write that it acknowledged.
type Durability string

// The classes.
const (
	// Always: it is on the master's disk.
	Always Durability = "always"
	// Replicated: so many replicas have it as min-replicas-to-write says, and scripts wait for them.
	Replicated Durability = "replicated"
	// Everysec: it is in the master's memory, and on its disk within a second or, while that is busy, some more.
	Everysec Durability = "everysec"
	// None: it is in the master's memory.
	None Durability = "none"
	// Unknown: Redis doesn't tell.
	Unknown Durability = "unknown"
)

// Durabilities lists the classes, best first.
func Durabilities() []Durability { return []Durability{Always, Replicated, Everysec, None, Unknown} }

// Facts are what a Redis is and promises. It is as good as the worst of its masters.
type Facts struct {
	Topology Topology
	// Masters, by address; one where there is no cluster.
	Masters []Master
}

// Master is one server that takes writes.
type Master struct {
	Address string
	// Version as it says, and its first number; "" and 0 where it hides them.
	Version string
	Major   int
	// Durability of what it acknowledges.
	Durability Durability
	// Replicas that are connected, and how many of them must confirm a script.
	Replicas, Confirm int
	// Evicts: keys vanish when memory is full. Policy is its maxmemory-policy.
	Evicts bool
	Policy string
	// Ahead is how far its clock is ahead of this machine's, right to half of Trip.
	Ahead, Trip time.Duration
}

// Durability is that of the worst master.
func (f Facts) Durability() Durability {
	worst := Always
	for _, m := range f.Masters {
		if slices.Index(Durabilities(), m.Durability) > slices.Index(Durabilities(), worst) {
			worst = m.Durability
		}
	}
	return worst
}

// LosesTail reports that a replica may take the place of a master without having all that was acknowledged.
func (f Facts) LosesTail() bool {
	return slices.ContainsFunc(f.Masters, func(m Master) bool { return m.Replicas > 0 && m.Confirm == 0 })
}

// String is for people: "a cluster of 3 masters, Redis 7.2.4".
func (f Facts) String() string {
	var versions []string
	for _, m := range f.Masters {
		versions = append(versions, cmp.Or(m.Version, "of an unknown version"))
	}
	slices.Sort(versions)
	version := "Redis " + strings.Join(slices.Compact(versions), ", ")
	switch f.Topology {
	case Cluster:
		return fmt.Sprintf("a cluster of %d masters, %s", len(f.Masters), version)
	case Sentinel:
		return "a master known by Sentinels, " + version
	default:
		return "one server, " + version
	}
}

// Inspect asks every master what it is set to. CONFIG may be forbidden, as it is in managed services: INFO tells some of it.
func (s *Store) Inspect(ctx context.Context) (Facts, error) {
	facts := Facts{Topology: s.topology}
	var mu sync.Mutex
	one := func(ctx context.Context, c *redis.Client) error {
		m, err := inspect(ctx, c)
		if err != nil {
			return fmt.Errorf("redis INFO of %s: %w", m.Address, Classify(err))
		}
		mu.Lock()
		defer mu.Unlock()
		facts.Masters = append(facts.Masters, m)
		return nil
	}
	var err error
	switch c := s.client.(type) {
	case *redis.ClusterClient:
		err = c.ForEachMaster(ctx, one)
	case *redis.Client:
		err = one(ctx, c)
	default:
		err = errors.ErrUnsupported
	}
	if err != nil {
		return Facts{}, fmt.Errorf("inspect Redis: %w", Classify(err))
	}
	slices.SortFunc(facts.Masters, func(a, b Master) int { return cmp.Compare(a.Address, b.Address) })
	return facts, nil
}

func inspect(ctx context.Context, c *redis.Client) (Master, error) {
	m := Master{Address: c.Options().Addr, Durability: Unknown}
	raw, err := c.Info(ctx).Result()
	if err != nil {
		return m, err
	}
	info := map[string]string{}
	for line := range strings.Lines(raw) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			info[k] = v
		}
	}
	m.Policy, m.Version = info["maxmemory_policy"], info["redis_version"]
	first, _, _ := strings.Cut(m.Version, ".")
	if m.Major, err = strconv.Atoi(first); err != nil {
		m.Version, m.Major = "", 0
	}
	m.Evicts = info["maxmemory"] != "0" && m.Policy != "noeviction"
	m.Replicas, _ = strconv.Atoi(info["connected_slaves"])
	began := time.Now()
	theirs, err := c.Time(ctx).Result()
	if err != nil {
		return m, err
	}
	m.Trip = time.Since(began)
	m.Ahead = theirs.Sub(began.Add(m.Trip / 2))
	config := func(key string) string {
		v, err := c.ConfigGet(ctx, key).Result()
		if err != nil {
			return ""
		}
		return v[key]
	}
	aof, fsync := info["aof_enabled"] == "1", config("appendfsync")
	if want := config(minReplicas); want != "" {
		m.Confirm, _ = strconv.Atoi(want)
	} else if info["min_slaves_good_slaves"] != "" {
		m.Confirm = 1
	}
	switch {
	case aof && fsync == "always":
		m.Durability = Always
	case m.Confirm > 0:
		m.Durability = Replicated
	case aof && fsync == "everysec":
		m.Durability = Everysec
	case !aof || fsync == "no":
		m.Durability = None
	}
	return m, nil
}

// Time is the clock of the server that holds an organisation's keys; "" for what belongs to none.
func (s *Store) Time(ctx context.Context, org string) (time.Time, error) {
	var c redis.Cmdable = s.client
	if cluster, ok := s.client.(*redis.ClusterClient); ok {
		key := Key(org, "meta")
		if org == "" {
			key = Global("orgs")
		}
		master, err := cluster.MasterForKey(ctx, key)
		if err != nil {
			return time.Time{}, fmt.Errorf("read Redis' clock: %w", Classify(err))
		}
		c = master
	}
	now, err := c.Time(ctx).Result()
	if err != nil {
		return time.Time{}, fmt.Errorf("read Redis' clock: %w", Classify(err))
	}
	return now, nil
}
