package redistest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// slots is how many a cluster has.
const slots = 16384

// RedisCluster is a cluster of three masters that fsync always.
type RedisCluster struct {
	Server
}

// nodeTimeout is after how long the servers of a cluster take one for dead once a test has one die, calmly before: on a busy machine
// a server may say nothing for seconds.
const nodeTimeout, calmly = 2 * time.Second, 30 * time.Second

// StartCluster starts a cluster of three masters and stops it when the test ends.
func StartCluster(t testing.TB) *RedisCluster {
	t.Helper()
	return StartSecureCluster(t, nil)
}

// StartSecureCluster is StartCluster of servers that ask for something.
func StartSecureCluster(t testing.TB, secure *Secure) *RedisCluster {
	t.Helper()
	c := &RedisCluster{Server{t: t}}
	for range 3 {
		c.nodes = append(c.nodes, newClusterNode(t, secure))
	}
	c.settled = c.settle
	addresses := make([]string, 0, len(c.nodes))
	for i, n := range c.nodes {
		n.Start()
		addresses = append(addresses, n.Addr())
		client := n.Client()
		first, last := i*slots/len(c.nodes), (i+1)*slots/len(c.nodes)-1
		err := errors.Join(client.Do(t.Context(), "cluster", "set-config-epoch", i+1).Err(), client.ClusterAddSlotsRange(t.Context(), first, last).Err())
		if err != nil {
			t.Fatal(err)
		}
	}
	c.meet()
	c.url = secure.url("redis+cluster", strings.Join(addresses, ","))
	c.settle()
	return c
}

func newClusterNode(t testing.TB, secure *Secure) *Node {
	n := newNode(t)
	n.secure, n.port = secure, FreePort(t)
	n.args = append(append(secure.arguments(n.port), []string{
		"--repl-diskless-sync-delay", "0", "--bind", "127.0.0.1", "--cluster-enabled", "yes", "--cluster-port", strconv.Itoa(FreePort(t)),
		"--cluster-node-timeout", strconv.FormatInt(calmly.Milliseconds(), 10), "--cluster-replica-validity-factor", "0",
	}...), durable...)
	return n
}

// meet introduces the servers to each other.
func (c *RedisCluster) meet() {
	c.t.Helper()
	for _, n := range c.nodes {
		for _, other := range c.nodes {
			if err := n.Client().Do(c.t.Context(), "cluster", "meet", "127.0.0.1", other.port, other.busPort()).Err(); n != other && err != nil {
				c.t.Fatal(err)
			}
		}
	}
}

func (n *Node) busPort() string { return n.args[slices.Index(n.args, "--cluster-port")+1] }

// settle waits until every server that runs serves.
func (c *RedisCluster) settle() {
	c.t.Helper()
	for _, n := range c.nodes {
		if n.cmd == nil {
			continue
		}
		client := n.Client()
		n.poll("the cluster serves", func(ctx context.Context) error {
			info, err := client.ClusterInfo(ctx).Result()
			if err == nil && (!strings.Contains(info, "cluster_state:ok") || !strings.Contains(info, "cluster_slots_ok:16384") ||
				!strings.Contains(info, "cluster_known_nodes:"+strconv.Itoa(len(c.nodes)))) {
				err = errors.New(info)
			}
			return err
		})
		_ = client.Close()
	}
}

// Slot is the slot of a key.
func (c *RedisCluster) Slot(key string) int {
	c.t.Helper()
	n := c.nodes[slices.IndexFunc(c.nodes, func(n *Node) bool { return n.cmd != nil })]
	slot, err := n.Client().ClusterKeySlot(c.t.Context(), key).Result()
	if err != nil {
		c.t.Fatal(err)
	}
	return int(slot)
}

// Masters are the servers that own slots, the one that owns the key's first.
func (c *RedisCluster) Masters(key string) []*Node {
	c.t.Helper()
	slot := c.Slot(key)
	var masters []*Node
	for _, n := range c.nodes {
		if n.cmd == nil {
			continue
		}
		own, err := n.ranges(c.t.Context())
		if err != nil {
			c.t.Fatal(err)
		}
		if len(own) > 0 {
			masters = append(masters, n)
			if slices.ContainsFunc(own, func(r [2]int) bool { return r[0] <= slot && slot <= r[1] }) {
				masters[0], masters[len(masters)-1] = masters[len(masters)-1], masters[0]
			}
		}
	}
	return masters
}

// ranges are the slots that a server says it owns.
func (n *Node) ranges(ctx context.Context) ([][2]int, error) {
	c := n.Client()
	defer func() { _ = c.Close() }()
	text, err := c.ClusterNodes(ctx).Result()
	if err != nil {
		return nil, err
	}
	var out [][2]int
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) < 9 || !strings.Contains(words[2], "myself,master") {
			continue
		}
		for _, word := range words[8:] {
			first, last, ok := strings.Cut(word, "-")
			if strings.HasPrefix(word, "[") {
				continue
			}
			if !ok {
				last = first
			}
			a, err1 := strconv.Atoi(first)
			b, err2 := strconv.Atoi(last)
			if err := errors.Join(err1, err2); err != nil {
				return nil, err
			}
			out = append(out, [2]int{a, b})
		}
	}
	return out, nil
}

// ID is the server's name in its cluster.
func (n *Node) ID() string {
	n.t.Helper()
	id, err := n.Client().ClusterMyID(n.t.Context()).Result()
	if err != nil {
		n.t.Fatal(err)
	}
	return id
}

// Move moves a key's slot from its master to another, as redis-cli --cluster reshard does; between is called when half of
// its keys have gone, key among them or not.
func (c *RedisCluster) Move(key string, with bool, between func()) {
	c.t.Helper()
	c.move(key, func(keys []string, migrate func(string)) {
		for _, k := range keys[:(len(keys)+1)/2] {
			if k != key {
				migrate(k)
			}
		}
		if with {
			migrate(key)
		}
		between()
	})
}

// MoveByKey is Move with a call after each key; the key that is named goes last.
func (c *RedisCluster) MoveByKey(key string, after func()) {
	c.t.Helper()
	c.move(key, func(keys []string, migrate func(string)) {
		for _, k := range keys {
			if k != key {
				migrate(k)
				after()
			}
		}
	})
}

// move moves a slot; first migrates some of its keys, and the rest follow.
func (c *RedisCluster) move(key string, first func(keys []string, migrate func(string))) {
	c.t.Helper()
	ctx, slot, masters := c.t.Context(), c.Slot(key), c.Masters(key)
	from, to := masters[0], masters[1]
	source, target := from.Client(), to.Client()
	do := func(client *redis.Client, args ...any) {
		c.t.Helper()
		if err := client.Do(ctx, args...).Err(); err != nil {
			c.t.Fatalf("%v: %v", args, err)
		}
	}
	do(target, "cluster", "setslot", slot, "importing", from.ID())
	do(source, "cluster", "setslot", slot, "migrating", to.ID())
	left := func() []string {
		c.t.Helper()
		keys, err := source.ClusterGetKeysInSlot(ctx, slot, 1<<20).Result()
		if err != nil {
			c.t.Fatal(err)
		}
		return keys
	}
	migrate := func(key string) {
		c.t.Helper()
		do(source, "migrate", "127.0.0.1", to.port, key, 0, patience.Milliseconds())
	}
	first(left(), migrate)
	for _, k := range left() {
		migrate(k)
	}
	for _, n := range []*redis.Client{target, source, masters[2].Client()} {
		do(n, "cluster", "setslot", slot, "node", to.ID())
	}
}

// AddReplica starts another server and makes it the replica of the key's master; it has all data when this returns. From then on the
// servers take one that says nothing for dead soon.
func (c *RedisCluster) AddReplica(key string) (master, replica *Node) {
	c.t.Helper()
	master = c.Masters(key)[0]
	replica = newClusterNode(c.t, master.secure)
	replica.Start()
	c.nodes = append(c.nodes, replica)
	c.meet()
	id, client := master.ID(), replica.Client()
	replica.poll("it is a replica", func(ctx context.Context) error { return client.ClusterReplicate(ctx, id).Err() })
	replica.poll("it has all data", replica.inSync)
	c.settle()
	c.Set("cluster-node-timeout", strconv.FormatInt(nodeTimeout.Milliseconds(), 10))
	return master, replica
}

// Sentinels is a master with two replicas that three Sentinels watch. The servers fsync always.
type Sentinels struct {
	Server
	sentinels []*Node
}

const masterName = "fleet"

// downAfter is after how long a Sentinel takes a server for dead from when a test first waits for that; before, after calmly.
const downAfter = time.Second

// StartSentinels starts them, waits until all know each other, and stops them when the test ends. options are added to
// those of the redis-servers.
func StartSentinels(t testing.TB, options ...string) *Sentinels {
	t.Helper()
	return StartSecureSentinels(t, nil, options...)
}

// StartSecureSentinels is StartSentinels of servers, and Sentinels, that ask for something.
func StartSecureSentinels(t testing.TB, secure *Secure, options ...string) *Sentinels {
	t.Helper()
	s := &Sentinels{Server: Server{t: t}}
	for i := range 3 {
		n := newNode(t)
		n.secure, n.port = secure, FreePort(t)
		n.args = append(append(secure.arguments(n.port), "--bind", "127.0.0.1", "--repl-diskless-sync-delay", "0"), durable...)
		n.args = append(n.args, options...)
		if i > 0 {
			n.args = append(n.args, "--replicaof", "127.0.0.1 "+strconv.Itoa(s.nodes[0].port))
		}
		s.nodes = append(s.nodes, n)
		n.Start()
	}
	for _, n := range s.nodes[1:] {
		n.poll("the replica has all data", n.inSync)
	}
	var addresses []string
	for range 3 {
		n := newNode(t)
		n.secure, n.port = secure, FreePort(t)
		config := secure.sentinel(n.port) + fmt.Sprintf("bind 127.0.0.1\nsentinel monitor %s 127.0.0.1 %d 2\nsentinel down-after-milliseconds %s %d\n"+
			"sentinel failover-timeout %s 6000\nsentinel parallel-syncs %s 2\n",
			masterName, s.nodes[0].port, masterName, calmly.Milliseconds(), masterName, masterName)
		if secure != nil {
			config += "sentinel auth-pass " + masterName + " " + secure.Password + "\n"
		}
		if err := os.WriteFile(n.path("sentinel.conf"), []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
		n.args = []string{n.path("sentinel.conf"), "--sentinel"}
		n.Start()
		s.sentinels = append(s.sentinels, n)
		addresses = append(addresses, n.Addr())
	}
	for _, n := range s.sentinels {
		client := n.Client()
		n.poll("the Sentinels know each other", func(ctx context.Context) error {
			state, err := client.Do(ctx, "sentinel", "master", masterName).StringSlice()
			if err != nil {
				return err
			}
			for _, want := range [][2]string{{"num-slaves", "2"}, {"num-other-sentinels", "2"}} {
				if at := slices.Index(state, want[0]); at < 0 || state[at+1] != want[1] {
					return fmt.Errorf("%v", state)
				}
			}
			return nil
		})
		_ = client.Close()
	}
	s.url = secure.url("redis+sentinel", strings.Join(addresses, ",")+"/"+masterName)
	return s
}

// Nodes are the redis-servers: the first master, then its replicas.
func (s *Sentinels) Nodes() []*Node { return s.nodes }

// Failed waits until the Sentinels have put another server in the place of a dead master, and returns it. Where the machine
// is so busy that they don't trust their own clocks (they wait half a minute then) or each other, one of them is told to.
func (s *Sentinels) Failed(old *Node) (master *Node) {
	s.t.Helper()
	return s.replaced(old, 8*time.Second)
}

// Handover has the Sentinels put another server in the place of a master that lives, and returns it.
func (s *Sentinels) Handover(old *Node) (master *Node) {
	s.t.Helper()
	return s.replaced(old, 0)
}

// replaced waits until there is another master; after so long one Sentinel is told to see to it.
func (s *Sentinels) replaced(old *Node, after time.Duration) (master *Node) {
	s.t.Helper()
	clients := make([]*redis.Client, len(s.sentinels))
	for i, n := range s.sentinels {
		clients[i] = n.Client()
	}
	s.downAfter(downAfter) // and it stays so: what a failover left behind is put right as soon
	told := time.Now().Add(after)
	s.sentinels[0].poll("another server is the master", func(ctx context.Context) error {
		var last error
		for i, client := range clients {
			if i == 0 && time.Now().After(told) { // always the same: two at once would undo each other's work
				told = time.Now().Add(2 * time.Second)
				last = client.Do(ctx, "sentinel", "failover", masterName).Err()
			}
			address, err := client.Do(ctx, "sentinel", "get-master-addr-by-name", masterName).StringSlice()
			if err != nil {
				return err
			}
			at := slices.IndexFunc(s.nodes, func(n *Node) bool { return net.JoinHostPort(address[0], address[1]) == n.Addr() })
			if at < 0 || s.nodes[at] == old {
				last = errors.Join(last, fmt.Errorf("by Sentinel %d the master is %v", i, address))
				continue
			}
			if role, err := s.nodes[at].role(ctx); err != nil || role != "master" {
				return fmt.Errorf("the role of %v is %s, %w", address, role, err)
			}
			master = s.nodes[at]
			return nil
		}
		return last
	})
	return master
}

// downAfter tells the Sentinels after how long a server is dead.
func (s *Sentinels) downAfter(d time.Duration) {
	s.t.Helper()
	for _, n := range s.sentinels {
		c := n.Client()
		if err := c.Do(s.t.Context(), "sentinel", "set", masterName, "down-after-milliseconds", d.Milliseconds()).Err(); err != nil {
			s.t.Fatal(err)
		}
		_ = c.Close()
	}
}

// Pair waits until every Sentinel takes the same of the two servers other than dead for the master, and the other follows it.
// On a busy machine Sentinels may fail over once more than they were asked to.
func (s *Sentinels) Pair(dead *Node) (master, replica *Node) {
	s.t.Helper()
	s.sentinels[0].poll("one server is the master and another follows it", func(ctx context.Context) error {
		master, replica = nil, nil
		for _, n := range s.sentinels {
			client := n.Client()
			address, err := client.Do(ctx, "sentinel", "get-master-addr-by-name", masterName).StringSlice()
			_ = client.Close()
			if err != nil {
				return err
			}
			at := slices.IndexFunc(s.nodes, func(n *Node) bool { return net.JoinHostPort(address[0], address[1]) == n.Addr() })
			if at < 0 || s.nodes[at] == dead || master != nil && master != s.nodes[at] {
				return fmt.Errorf("a Sentinel takes %v for the master", address)
			}
			master = s.nodes[at]
		}
		for _, n := range s.nodes {
			if n != dead && n != master {
				replica = n
			}
		}
		if role, err := master.role(ctx); err != nil || role != "master" {
			return fmt.Errorf("the role of the master is %s, %w", role, err)
		}
		c := replica.Client()
		defer func() { _ = c.Close() }()
		info, err := c.Info(ctx, "replication").Result()
		if err == nil && (!strings.Contains(info, "master_link_status:up") || !strings.Contains(info, fmt.Sprintf("master_port:%d", master.port))) {
			err = errors.New(info)
		}
		return err
	})
	return master, replica
}

// Follows waits until a server is the replica of another and has all that it had when asked.
func (s *Sentinels) Follows(replica, master *Node) {
	s.t.Helper()
	c := replica.Client()
	replica.poll("it follows the master", func(ctx context.Context) error {
		info, err := c.Info(ctx, "replication").Result()
		if err == nil && (!strings.Contains(info, "master_link_status:up") || !strings.Contains(info, fmt.Sprintf("master_port:%d", master.port))) {
			err = errors.New(info)
		}
		return err
	})
	offset := func(of *Node, field string) (n int64) {
		info, err := of.Client().Info(s.t.Context(), "replication").Result()
		_, rest, _ := strings.Cut(info, field+":")
		n, err2 := strconv.ParseInt(strings.TrimSpace(strings.SplitN(rest, "\n", 2)[0]), 10, 64)
		if err := errors.Join(err, err2); err != nil {
			s.t.Fatal(err)
		}
		return n
	}
	want := offset(master, "master_repl_offset")
	replica.poll("it has all data", func(context.Context) error {
		if has := offset(replica, "slave_repl_offset"); has < want {
			return fmt.Errorf("at %d of %d", has, want)
		}
		return nil
	})
}

func (n *Node) role(ctx context.Context) (string, error) {
	c := n.Client()
	defer func() { _ = c.Close() }()
	role, err := c.Do(ctx, "role").Slice()
	if err != nil {
		return "", err
	}
	return fmt.Sprint(role[0]), nil
}

// inSync succeeds where a replica has all that its master had when it was asked for it.
func (n *Node) inSync(ctx context.Context) error {
	c := n.Client()
	defer func() { _ = c.Close() }()
	info, err := c.Info(ctx, "replication").Result()
	if err == nil && !strings.Contains(info, "master_link_status:up") {
		err = errors.New(info)
	}
	return err
}

// Set sets what CONFIG SET can.
func (n *Node) Set(name, value string) {
	n.t.Helper()
	c := n.Client()
	defer func() { _ = c.Close() }()
	if err := c.ConfigSet(n.t.Context(), name, value).Err(); err != nil {
		n.t.Fatal(err)
	}
}

// DropReplicas closes the connections of a master's replicas: one that is paused misses what is written from now on.
func (n *Node) DropReplicas() {
	n.t.Helper()
	c := n.Client()
	defer func() { _ = c.Close() }()
	if err := c.Do(n.t.Context(), "client", "kill", "type", "replica").Err(); err != nil {
		n.t.Fatal(err)
	}
}

// Stray tells of keys of the key's slot at masters that don't own it.
func (c *RedisCluster) Stray(key string) (errs []error) {
	c.t.Helper()
	slot := c.Slot(key)
	for _, n := range c.Masters(key)[1:] {
		if count, err := n.Client().ClusterCountKeysInSlot(c.t.Context(), slot).Result(); err != nil || count > 0 {
			errs = append(errs, fmt.Errorf("%d keys of slot %d at a server that doesn't own it, %w", count, slot, err))
		}
	}
	return errs
}
