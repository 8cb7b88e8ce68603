package store

import (
	"reflect"
	"strings"
	"testing"
)

func TestTargets(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]target{
		"redis+sentinel://h1:26380,h2/fleet": {topology: Sentinel, addresses: []string{"h1:26380", "h2:26379"}, master: "fleet"},
		"rediss+sentinel://u:p%40ss@[2001:db8::1]:1,[::1]/m.1?db=3&sentinel_user=s&sentinel_password=t&pool_size=7": {
			topology: Sentinel, addresses: []string{"[2001:db8::1]:1", "[::1]:26379"}, master: "m.1", db: 3, user: "u", password: "p@ss",
			sentinelUser: "s", sentinelPassword: "t", pool: 7, tls: true,
		},
		"redis+cluster://10.0.0.1:7000,10.0.0.2:7000,redis.example": {
			topology: Cluster, addresses: []string{"10.0.0.1:7000", "10.0.0.2:7000", "redis.example:6379"},
		},
		"rediss+cluster://:secret@h:65535/": {topology: Cluster, addresses: []string{"h:65535"}, password: "secret", tls: true},
	} {
		if got, err := parseTarget(url); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v; want %+v", url, got, err, want)
		}
	}
	for _, url := range []string{"redis://h:6379/2", "rediss://u:p@h:6379/0", "unix:///run/redis.sock?db=1", "redis://h?pool_size=3"} {
		if got, err := parseTarget(url); err != nil || got.topology != Standalone || got.single == nil || got.tls != strings.HasPrefix(url, "rediss") {
			t.Errorf("%s: %+v, %v", url, got, err)
		}
	}
	for url, problem := range map[string]string{
		"":                    "no scheme",
		"localhost:6379":      "no scheme",
		"http://hunter2@h":    "scheme",
		"redis+sentinel://h1": "name of a master",
		"redis+sentinel://hunter2:hunter2@h1:26379/a b":                 "name of a master",
		"redis+sentinel://h1/m?db=-1":                                   "db isn't 0 to",
		"redis+sentinel://h1/m?db=0&db=1":                               "twice",
		"redis+sentinel://h1/m?pool_size=100000000":                     "pool_size isn't 1 to",
		"redis+sentinel://h1/m?master=x":                                "knows no \"master\"",
		"redis+sentinel:///m":                                           "server 1",
		"redis+cluster://:hunter2@h1:0":                                 "the port of its server 1",
		"redis+cluster://h1:6379,:6379":                                 "server 2",
		"redis+cluster://h1:6379,":                                      "server 2",
		"redis+cluster://2001:db8::1":                                   "server 1",
		"redis+cluster://h1:65536":                                      "port",
		"redis+cluster://h1/1":                                          "no databases",
		"redis+cluster://h1?sentinel_password=hunter2":                  "knows no",
		"redis+cluster://u:%zzhunter2@h1":                               "percent-encoded",
		"redis+cluster://h1?x=%zz":                                      "can't be parsed",
		"redis+cluster://" + strings.Repeat("h,", 100) + "h":            "101 servers",
		"redis+cluster://" + strings.Repeat("h", 5000):                  "longer than",
		"redis://user:hunter2@host:port/x":                              "can't be parsed",
		"redis://user:hunter2":                                          "can't be parsed",
		"redis://h/0?hunter2=1":                                         "can't be parsed",
		"unix://user:hunter2@/run/\x01redis.sock?db=hunter2":            "can't be parsed",
		"redis+cluster://user:hunter2@ho st:6379":                       "server 1",
		"rediss+sentinel://h1:26379/fleet?sentinel_password=hunter2&y=": "knows no",
	} {
		_, err := parseTarget(url)
		if err == nil || !strings.Contains(err.Error(), problem) || strings.Contains(err.Error(), "hunter2") || !strings.Contains(err.Error(), Forms) {
			t.Errorf("%q: %v; want one that says %q", url, err, problem)
		}
	}
}

func FuzzParseTarget(f *testing.F) {
	f.Add("redis+sentinel://u:p@h1:26379,[::1]/fleet?db=1")
	f.Add("rediss+cluster://h1,h2:1")
	f.Add("unix:///run/redis.sock")
	f.Fuzz(func(t *testing.T, url string) {
		got, err := parseTarget(url)
		if err != nil {
			return
		}
		if got.topology != Standalone && (len(got.addresses) == 0 || len(got.addresses) > mostAddresses || got.single != nil) {
			t.Errorf("%q: %+v", url, got)
		}
	})
}
