package store

import (
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// slotsLife is how old a cluster client's map of slots may be. A dead master says no MOVED: without a new map nothing would
// lead to the one that took its place.
const slotsLife = time.Second

// newClient makes the pool for a topology. All of them behave alike: a change that timed out is reported as unknown, never
// repeated behind the caller's back; and whoever waits for Redis tries again by itself.
func (s *Store) newClient(t target, timeout time.Duration) (redis.UniversalClient, error) {
	config, err := t.tlsConfig()
	if err != nil {
		return nil, err
	}
	switch t.topology {
	case Sentinel:
		n := s.newNode(timeout)
		n.client = redis.NewFailoverClient(&redis.FailoverOptions{
			MasterName: t.master, SentinelAddrs: t.addresses, SentinelUsername: t.sentinelUser, SentinelPassword: t.sentinelPassword,
			Username: t.user, Password: t.password, DB: t.db, PoolSize: t.pool, TLSConfig: config,
			DialTimeout: timeout, ReadTimeout: timeout, WriteTimeout: timeout, ContextTimeoutEnabled: true,
			MaxRetries: -1, DialerRetries: 1, DisableIdentity: true, OnConnect: n.connected,
		})
		return n.hooked(), nil
	case Cluster:
		return redis.NewClusterClient(&redis.ClusterOptions{
			Addrs: t.addresses, Username: t.user, Password: t.password, PoolSize: t.pool, TLSConfig: config,
			DialTimeout: timeout, ReadTimeout: timeout, WriteTimeout: timeout, ContextTimeoutEnabled: true,
			MaxRetries: -1, DialerRetries: 1, DisableIdentity: true, ClusterStateReloadInterval: slotsLife,
			// What crosses slots is a fault here, not something to be split and put together again.
			DisableRoutingPolicies:   true,
			MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
			NewClient: func(o *redis.Options) *redis.Client {
				n := s.newNode(timeout)
				n.cluster, o.OnConnect = true, n.connected
				n.client = redis.NewClient(o)
				return n.hooked()
			},
		}), nil
	default:
		o, n := t.single, s.newNode(timeout)
		o.DialTimeout, o.ReadTimeout, o.WriteTimeout, o.ContextTimeoutEnabled = timeout, timeout, timeout, true
		o.MaxRetries, o.DialerRetries, o.DisableIdentity, o.TLSConfig, o.OnConnect = -1, 1, true, config, n.connected
		n.client = redis.NewClient(o)
		return n.hooked(), nil
	}
}
