package lab

import (
	"context"
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/fleetban/fleetban/scripts/lab/internal/await"
	"github.com/fleetban/fleetban/scripts/lab/internal/node"
)

// ServiceRedis2 is the second server of a lab with Sentinels, a replica of ServiceRedis until those say otherwise.
const ServiceRedis2 = "redis2"

const (
	sentinels    = 3
	sentinelPort = 26379
	// redisMaster is what the Sentinels call the master.
	redisMaster = "fleet"
	redisDir    = "/var/lib/redis"

	clockLibrary = "lab-clock.so"
	clockPath    = "/run/lab-clock"
)

//go:embed clock/clock.c
var clockSource string

// buildClock makes the library that Redis is started with, for its clock to be set.
func (l *Lab) buildClock(ctx context.Context) error {
	if !l.options.SettableClock {
		return nil
	}
	cmd := exec.CommandContext(ctx, "gcc", "-shared", "-fPIC", "-O2", "-Wall", "-x", "c", "-o", filepath.Join(l.dir, clockLibrary), "-")
	cmd.Stdin = strings.NewReader(clockSource)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build Redis' clock: %w: %s", err, out)
	}
	return nil
}

// SetRedisClock has the wall clock of all Redis servers be so much ahead of the machine's; less than 0: behind. Only in a lab
// with a SettableClock.
func (l *Lab) SetRedisClock(ahead time.Duration) error {
	f, err := os.OpenFile(l.Node(ControlPlane).Path(clockPath), os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("set Redis' clock: %w", err)
	}
	defer f.Close()
	_, err = f.WriteAt(binary.NativeEndian.AppendUint64(nil, uint64(ahead)), 0) //nolint:gosec // two's complement is meant
	return err
}

// RedisServers are the services that hold the fleet's data.
func (l *Lab) RedisServers() []string {
	if l.options.Sentinels {
		return []string{ServiceRedis, ServiceRedis2}
	}
	return []string{ServiceRedis}
}

func serverPort(service string) int {
	return redisPort + slices.Index([]string{ServiceRedis, ServiceRedis2}, service)
}

// redisFiles are the configurations of servers with Sentinels, and theirs, which those rewrite.
func (l *Lab) redisFiles() (files []node.File) {
	if !l.options.Sentinels {
		return nil
	}
	for _, s := range l.RedisServers() {
		text := fmt.Sprintf("bind 127.0.0.1\nport %d\ndir %s/%s\nsave \"\"\nappendonly yes\nappendfsync always\nmaxmemory-policy noeviction\n"+
			"repl-diskless-sync-delay 0\n", serverPort(s), redisDir, s)
		if s != ServiceRedis {
			text += fmt.Sprintf("replicaof 127.0.0.1 %d\n", redisPort)
		}
		files = append(files, node.File{Path: redisDir + "/" + s + "/redis.conf", Mode: 0o644, Content: text})
	}
	for i := range sentinels {
		files = append(files, node.File{
			Path: fmt.Sprintf("%s/sentinel%d/sentinel.conf", redisDir, i+1), Mode: 0o644,
			Content: fmt.Sprintf("bind 127.0.0.1\nport %d\nsentinel monitor %s 127.0.0.1 %d 2\nsentinel down-after-milliseconds %[2]s 1000\n"+
				"sentinel failover-timeout %[2]s 5000\n", sentinelPort+i, redisMaster, redisPort),
		})
	}
	return files
}

func (l *Lab) redisServices() (services []node.Service) {
	var env []string
	if l.options.SettableClock {
		env = []string{"LD_PRELOAD=/usr/local/bin/" + clockLibrary, "LAB_CLOCK=" + clockPath}
	}
	if !l.options.Sentinels {
		return []node.Service{{Name: ServiceRedis, Restart: true, Env: env, Argv: []string{
			"redis-server", "--bind", "127.0.0.1", "--port", strconv.Itoa(redisPort), "--dir", redisDir, "--save", "",
			"--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction",
		}}}
	}
	for _, s := range l.RedisServers() {
		services = append(services, node.Service{Name: s, Restart: true, Env: env, Argv: []string{"redis-server", redisDir + "/" + s + "/redis.conf"}})
	}
	for i := range sentinels {
		name := fmt.Sprintf("sentinel%d", i+1)
		services = append(services, node.Service{
			Name: name, Restart: true, Argv: []string{"redis-server", redisDir + "/" + name + "/sentinel.conf", "--sentinel"},
		})
	}
	return services
}

// sentinelsAgree waits until the Sentinels know each other, and the master its replica.
func (l *Lab) sentinelsAgree(ctx context.Context) error {
	if !l.options.Sentinels {
		return nil
	}
	return await.Until(ctx, "the Sentinels", func() error {
		for i := range sentinels {
			said, err := l.redis(ctx, sentinelPort+i, "SENTINEL", "CKQUORUM", redisMaster)
			if err != nil {
				return err
			}
			if !strings.HasPrefix(said, fmt.Sprintf("OK %d usable", sentinels)) {
				return fmt.Errorf("one says: %s", said)
			}
			// They ask the master for its replicas every ten seconds only, and it may be gone by then.
			if said, err = l.redis(ctx, sentinelPort+i, "SENTINEL", "REPLICAS", redisMaster); err != nil {
				return err
			}
			if !strings.Contains(said, strconv.Itoa(serverPort(ServiceRedis2))) {
				return errors.New("one knows of no replica")
			}
		}
		return l.replicated(ctx, ServiceRedis)
	})
}

func (l *Lab) redis(ctx context.Context, port int, args ...string) (string, error) {
	return l.Node(ControlPlane).Exec(ctx, append([]string{"redis-cli", "-p", strconv.Itoa(port)}, args...)...)
}

func (l *Lab) redisURL() string {
	switch {
	case l.options.Sentinels:
		var at []string
		for i := range sentinels {
			at = append(at, fmt.Sprintf("127.0.0.1:%d", sentinelPort+i))
		}
		return "redis+sentinel://" + strings.Join(at, ",") + "/" + redisMaster
	case l.options.Proxied:
		return fmt.Sprintf("redis://127.0.0.1:%d", proxiedPort(ServiceRedis))
	default:
		return "redis://" + RedisAddress
	}
}

// RedisMaster is the service that is the master, by the Sentinels if there are any.
func (l *Lab) RedisMaster(ctx context.Context) (string, error) {
	if !l.options.Sentinels {
		return ServiceRedis, nil
	}
	said, err := l.redis(ctx, sentinelPort, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", redisMaster)
	if err != nil {
		return "", err
	}
	for _, s := range l.RedisServers() {
		if slices.Contains(strings.Fields(said), strconv.Itoa(serverPort(s))) {
			return s, nil
		}
	}
	return "", fmt.Errorf("the Sentinels have another master: %q", said)
}

// AwaitFailover waits until another server than this one is the master.
func (l *Lab) AwaitFailover(ctx context.Context, than string) error {
	return await.Until(ctx, "a failover from "+than, func() error {
		is, err := l.RedisMaster(ctx)
		if err == nil && is == than {
			err = fmt.Errorf("%s is the master still", than)
		}
		return err
	})
}

// AwaitReplicated waits until the master has a replica that holds what it holds.
func (l *Lab) AwaitReplicated(ctx context.Context) error {
	return await.Until(ctx, "Redis to be replicated", func() error {
		master, err := l.RedisMaster(ctx)
		if err != nil {
			return err
		}
		return l.replicated(ctx, master)
	})
}

func (l *Lab) replicated(ctx context.Context, master string) error {
	said, err := l.redis(ctx, serverPort(master), "INFO", "replication")
	if err == nil && !strings.Contains(said, "state=online") {
		err = fmt.Errorf("%s says: %s", master, said)
	}
	return err
}

var clientPort = regexp.MustCompile(`\baddr=127\.0\.0\.1:(\d+)`)

// lostTail is the table that loses what a master tells its replica.
const lostTail = "lab_lost_tail"

// LoseTail loses what a server tells its replicas from now on, without a sign. KeepTail undoes it.
func (l *Lab) LoseTail(ctx context.Context, master string) error {
	said, err := l.redis(ctx, serverPort(master), "CLIENT", "LIST", "TYPE", "replica")
	if err != nil {
		return err
	}
	ports := []string{"0"} // there may be none just now
	for _, m := range clientPort.FindAllStringSubmatch(said, -1) {
		ports = append(ports, m[1])
	}
	_, err = l.Node(ControlPlane).Exec(ctx, "nft", fmt.Sprintf("table inet %s { chain out { type filter hook output priority -200; tcp sport %d tcp dport { %s } drop; }; }",
		lostTail, serverPort(master), strings.Join(ports, ", ")))
	return err
}

// KeepTail undoes LoseTail.
func (l *Lab) KeepTail(ctx context.Context) error {
	_, err := l.Node(ControlPlane).Exec(ctx, "nft", "delete", "table", "inet", lostTail)
	return err
}
