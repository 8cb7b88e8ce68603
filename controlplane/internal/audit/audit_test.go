package audit_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"pgregory.net/rapid"

	"github.com/fleetban/fleetban/controlplane/internal/audit"
	"github.com/fleetban/fleetban/controlplane/internal/keys"
	"github.com/fleetban/fleetban/controlplane/internal/store"
	"github.com/fleetban/fleetban/controlplane/internal/store/redistest"
	"github.com/fleetban/fleetban/controlplane/internal/testwait"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
)

const org = "01JAUD1T000000000000000000"

var secret = [keys.SecretLen]byte{7}

func open(t *testing.T, st *store.Store, o audit.Options) *audit.Log {
	t.Helper()
	o.Store, o.Signer, o.Logger = st, keys.New(secret), slog.New(slog.NewTextHandler(t.Output(), nil))
	return audit.New(o)
}

func record(action string) audit.Record {
	return audit.Record{Actor: audit.OperatorCommand, Action: action, Targets: []string{"203.0.113.9"}}
}

func write(t *testing.T, l *audit.Log, n int) {
	t.Helper()
	for i := range n {
		if err := l.Record(t.Context(), org, record(fmt.Sprintf("test.%d", i))); err != nil {
			t.Fatal(err)
		}
	}
}

func verify(t *testing.T, l *audit.Log, head audit.Head) *operatorv1.VerifyAuditResponse {
	t.Helper()
	v, err := l.Verify(t.Context(), org, head)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func intact(t *testing.T, l *audit.Log, head audit.Head) *operatorv1.VerifyAuditResponse {
	t.Helper()
	v := verify(t, l, head)
	if !v.GetIntact() {
		t.Fatalf("not intact: %v", v)
	}
	return v
}

func headOf(v *operatorv1.VerifyAuditResponse) audit.Head {
	return audit.Head{Number: v.GetHeadNumber(), Hash: v.GetHeadHash()}
}

func list(t *testing.T, l *audit.Log, f audit.Filter, size int) []*operatorv1.AuditEntry {
	t.Helper()
	var out []*operatorv1.AuditEntry
	for token := ""; ; {
		page, next, err := l.List(t.Context(), org, f, size, token)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, page...)
		if token = next; token == "" {
			return out
		}
	}
}

func actions(entries []*operatorv1.AuditEntry) []string {
	var out []string
	for _, e := range entries {
		out = append(out, e.GetAction())
	}
	return out
}

// Whoever writes to Redis without the fleet's secret can't change what the log says unseen.
func TestDamage(t *testing.T) {
	st := redistest.Start(t).Open()
	ctx, client := t.Context(), st.Client()
	key, metaKey := store.Key(org, "audit"), store.Key(org, "auditmeta")
	const entries = 12
	l := open(t, st, audit.Options{})
	write(t, l, entries-1) // and the one that begins the log
	if err := l.Tend(ctx, org); err != nil {
		t.Fatal(err)
	}
	noted := headOf(intact(t, l, audit.Head{}))
	if noted.Number != entries {
		t.Fatalf("head %v", noted)
	}
	whole, err := client.XRange(ctx, key, "-", "+").Result()
	if err != nil {
		t.Fatal(err)
	}
	meta := client.HGetAll(ctx, metaKey).Val()

	// rebuild puts these entries in the place of the log, numbered anew and with hashes computed anew as far as is told,
	// which is all that a writer of Redis can do.
	rebuild := func(t *testing.T, chain bool, entries []redis.XMessage) {
		t.Helper()
		client.Del(ctx, key)
		hash, number := strings.Repeat("0", 40), 0
		for _, m := range entries {
			id := m.ID
			values := map[string]any{}
			for k, v := range m.Values {
				values[k] = v
			}
			if chain {
				number++
				id = fmt.Sprintf("%d-0", number)
				hash = link(hash, number, values)
				values["h"] = hash
			}
			flat := []any{}
			for k, v := range values {
				flat = append(flat, k, v)
			}
			if err := client.XAdd(ctx, &redis.XAddArgs{Stream: key, ID: id, Values: flat}).Err(); err != nil {
				t.Fatal(err)
			}
		}
		if chain {
			client.HSet(ctx, metaKey, "n", number, "h", hash)
			client.HDel(ctx, metaKey, "sn", "sh", "sm")
		}
	}
	with := func(i int, field, value string) []redis.XMessage {
		out := slices.Clone(whole)
		values := map[string]any{}
		for k, v := range out[i].Values {
			values[k] = v
		}
		values[field] = value
		out[i].Values = values
		return out
	}
	swapped := slices.Clone(whole)
	swapped[4].Values, swapped[5].Values = whole[5].Values, whole[4].Values
	body := func(i int) string { return whole[i].Values["b"].(string) } //nolint:forcetypeassert // strings

	for name, c := range map[string]struct {
		chain  bool
		log    []redis.XMessage
		noted  audit.Head
		head   bool // the head in Redis is put back too
		wanted []operatorv1.AuditFindingKind
	}{
		"removed":                            {log: slices.Delete(slices.Clone(whole), 5, 6), wanted: kinds(removed)},
		"removed, chained anew":              {chain: true, log: slices.Delete(slices.Clone(whole), 5, 6), wanted: kinds(gap)},
		"the first removed":                  {log: whole[3:], wanted: kinds(removed)},
		"the first removed, chained anew":    {chain: true, log: whole[1:], wanted: kinds(gap)},
		"changed":                            {log: with(5, "b", strings.Replace(body(5), "203.0.113.9", "203.0.113.8", 1)), wanted: kinds(changed)},
		"changed, chained anew":              {chain: true, log: with(5, "b", strings.Replace(body(5), "203.0.113.9", "203.0.113.8", 1)), wanted: kinds(changed)},
		"time changed":                       {log: with(5, "t", "1"), wanted: kinds(moved)},
		"time changed, chained anew":         {chain: true, log: with(5, "t", "1"), wanted: kinds(moved, gap)},
		"what was found changed":             {log: with(5, "x", "banned=7"), wanted: kinds(moved)},
		"what was found changed, and anew":   {chain: true, log: with(5, "x", "banned=7"), wanted: kinds(gap)},
		"signature gone":                     {chain: true, log: with(5, "m", ""), wanted: kinds(forged)},
		"reordered":                          {log: swapped, wanted: kinds(moved)},
		"reordered, chained anew":            {chain: true, log: swapped, wanted: kinds(gap)},
		"one repeated":                       {chain: true, log: append(slices.Clone(whole), whole[5]), wanted: kinds(moved)},
		"one put in":                         {chain: true, log: slices.Insert(slices.Clone(whole), 5, forgery()), wanted: kinds(changed)},
		"cut off at the end":                 {log: whole[:8], wanted: kinds(truncated)},
		"cut off with its head, noted":       {chain: true, log: whole[:8], noted: noted, wanted: kinds(truncated)},
		"cut off and gone on with, noted":    {chain: true, log: append(slices.Clone(whole[:entries-1]), forgery()), noted: noted, wanted: kinds(changed, gap)},
		"all removed":                        {log: nil, wanted: kinds(truncated)},
		"nothing, with the head that it had": {log: whole, noted: noted},
	} {
		t.Run(name, func(t *testing.T) {
			client.Del(ctx, metaKey)
			client.HSet(ctx, metaKey, meta)
			rebuild(t, c.chain, c.log)
			// A replica that was started just now: nothing but the secret tells it anything.
			v := verify(t, open(t, st, audit.Options{}), c.noted)
			if len(c.wanted) == 0 {
				if !v.GetIntact() {
					t.Fatalf("found %v", v.GetFindings())
				}
				return
			}
			if v.GetIntact() {
				t.Fatal("nothing was found")
			}
			for _, kind := range c.wanted {
				if !slices.ContainsFunc(v.GetFindings(), func(f *operatorv1.AuditFinding) bool { return f.GetKind() == kind }) {
					t.Errorf("no %s among %v", kind, v.GetFindings())
				}
			}
		})
	}
	t.Run("another seal", func(t *testing.T) {
		client.Del(ctx, metaKey)
		client.HSet(ctx, metaKey, meta)
		client.HSet(ctx, metaKey, "sn", 5)
		rebuild(t, false, whole)
		if v := verify(t, l, audit.Head{}); v.GetIntact() {
			t.Fatal("nothing was found")
		}
	})
	t.Run("another secret", func(t *testing.T) {
		client.Del(ctx, metaKey)
		client.HSet(ctx, metaKey, meta)
		rebuild(t, false, whole)
		other := audit.New(audit.Options{Store: st, Signer: keys.New([keys.SecretLen]byte{8})})
		if v := verify(t, other, audit.Head{}); v.GetFindingsTotal() < entries-1 {
			t.Fatalf("found %v", v.GetFindings())
		}
	})
	t.Run("of another organisation", func(t *testing.T) {
		const foreign = "01JAUD1T000000000000000001"
		for _, m := range whole {
			client.XAdd(ctx, &redis.XAddArgs{Stream: store.Key(foreign, "audit"), ID: m.ID, Values: m.Values})
		}
		client.HSet(ctx, store.Key(foreign, "auditmeta"), meta)
		v, err := l.Verify(ctx, foreign, audit.Head{})
		if err != nil || v.GetFindingsTotal() < entries-1 {
			t.Fatalf("found %v, %v", v.GetFindings(), err)
		}
		page, _, err := l.List(ctx, foreign, audit.Filter{}, 3, "")
		if err != nil || page[0].GetAction() != audit.ActionDamaged || len(page[0].GetTargets()) > 0 {
			t.Fatalf("listed %v, %v", page, err)
		}
	})
}

// Two replicas at once keep one unbroken log, whatever they do.
func TestReplicas(t *testing.T) {
	server := redistest.Start(t)
	const writers, each = 8, 25
	logs := []*audit.Log{open(t, server.Open(), audit.Options{}), open(t, server.Open(), audit.Options{})}
	var wg sync.WaitGroup
	for w := range writers {
		l := logs[w%2]
		wg.Go(func() {
			for i := range each {
				if i%2 == 0 {
					if err := l.Record(t.Context(), org, record("whole")); err != nil {
						t.Error(err)
					}
					continue
				}
				begun, err := l.Begin(t.Context(), org, record("parts"))
				if err != nil {
					t.Error(err)
					return
				}
				if err := begun.End(t.Context(), operatorv1.AuditOutcome_AUDIT_OUTCOME_OK, ""); err != nil {
					t.Error(err)
				}
			}
		})
		wg.Go(func() {
			for range 3 {
				if err := l.Tend(t.Context(), org); err != nil {
					t.Error(err)
				}
				if v := verify(t, l, audit.Head{}); !v.GetIntact() {
					t.Errorf("not intact: %v", v.GetFindings())
				}
			}
		})
	}
	wg.Wait()
	for _, l := range logs {
		v := intact(t, l, audit.Head{})
		if want := uint64(1 + writers*(each+each/2)); v.GetEntries() != want || v.GetHeadNumber() != want {
			t.Errorf("%d entries, head %d, want %d", v.GetEntries(), v.GetHeadNumber(), want)
		}
	}
	if got := list(t, logs[0], audit.Filter{}, 7); len(got) != 1+writers*each {
		t.Errorf("%d listed: beginnings must not be", len(got))
	}
}

// A crash between a beginning and its end shows.
func TestUnknownOutcome(t *testing.T) {
	st := redistest.Start(t).Open()
	l := open(t, st, audit.Options{})
	if _, err := l.Begin(t.Context(), org, record("crashed")); err != nil {
		t.Fatal(err)
	}
	done, err := l.Begin(t.Context(), org, record("refused"))
	if err != nil {
		t.Fatal(err)
	}
	if err := done.End(t.Context(), operatorv1.AuditOutcome_AUDIT_OUTCOME_REFUSED, "no"); err != nil {
		t.Fatal(err)
	}
	got := list(t, l, audit.Filter{}, 0)
	if !slices.Equal(actions(got), []string{"refused", "crashed", audit.ActionBegin}) || got[1].GetOutcome() != operatorv1.AuditOutcome_AUDIT_OUTCOME_UNDER_WAY ||
		got[0].GetOutcome() != operatorv1.AuditOutcome_AUDIT_OUTCOME_REFUSED || got[0].GetReason() != "no" {
		t.Fatalf("listed %v", got)
	}
	intact(t, l, audit.Head{})
}

// What Redis lost shows: to verify, in the log, and to a person who noted the head.
func TestLoss(t *testing.T) {
	server := redistest.StartOne(t)
	st := server.Open()
	var logged bytes.Buffer
	l := audit.New(audit.Options{Store: st, Signer: keys.New(secret), Logger: slog.New(slog.NewTextHandler(&logged, nil))})
	write(t, l, 5)
	restore := server.Backup()
	write(t, l, 5)
	noted := headOf(intact(t, l, audit.Head{}))
	restore()
	if v := verify(t, l, noted); v.GetIntact() || v.GetFindings()[0].GetKind() != truncated {
		t.Errorf("with the noted head: %v", v)
	}
	write(t, l, 2)
	v := verify(t, l, audit.Head{})
	if v.GetIntact() || v.GetFindings()[0].GetKind() != gap || v.GetRestarts() != 1 {
		t.Errorf("without: %v", v)
	}
	if got := actions(list(t, l, audit.Filter{}, 0)); !slices.Contains(got, audit.ActionGap) || !slices.Contains(got, audit.ActionRestart) {
		t.Errorf("listed %v", got)
	}
	if !strings.Contains(logged.String(), "lost entries") {
		t.Error("the process' log doesn't say so")
	}
	// It is said once.
	write(t, l, 2)
	if got := list(t, l, audit.Filter{Action: audit.ActionGap}, 0); len(got) != 1 {
		t.Errorf("%d gaps", len(got))
	}
}

func TestTrim(t *testing.T) {
	st := redistest.Start(t).Open()
	l := open(t, st, audit.Options{KeepNumber: 20})
	write(t, l, 30)
	old := headOf(intact(t, l, audit.Head{}))
	for range 4 {
		write(t, l, 10)
		if err := l.Tend(t.Context(), org); err != nil {
			t.Fatal(err)
		}
		v := intact(t, l, audit.Head{})
		if v.GetEntries() > 22 || v.GetEntries() < 20 || v.GetFirstNumber() < 2 {
			t.Fatalf("%v", v)
		}
		intact(t, open(t, st, audit.Options{}), headOf(v))
	}
	if _, err := l.Verify(t.Context(), org, old); err == nil {
		t.Error("a head that was dropped passed for checked")
	}
	// What says that entries were dropped is signed.
	st.Client().XTrimMaxLen(t.Context(), store.Key(org, "audit"), 10)
	if verify(t, l, audit.Head{}).GetIntact() {
		t.Error("more was dropped than is said, and nothing was found")
	}
	last := st.Client().XRange(t.Context(), store.Key(org, "audit"), "-", "+").Val()[0]
	number, _, _ := strings.Cut(last.ID, "-")
	n, _ := strconv.Atoi(number)
	st.Client().XDel(t.Context(), store.Key(org, "audit"), last.ID)
	st.Client().HSet(t.Context(), store.Key(org, "auditmeta"), "bn", n, "bh", last.Values["h"])
	if verify(t, l, audit.Head{}).GetIntact() {
		t.Error("Redis says that more was dropped than the control plane does, and nothing was found")
	}
}

func TestTrimByAge(t *testing.T) {
	st := redistest.Start(t).Open()
	l := open(t, st, audit.Options{Keep: 24 * time.Hour})
	write(t, l, 3)
	if err := l.Tend(t.Context(), org); err != nil {
		t.Fatal(err)
	}
	if v := intact(t, l, audit.Head{}); v.GetFirstNumber() != 1 {
		t.Fatal("young entries were dropped")
	}
	// As if they were written long ago.
	old := open(t, st, audit.Options{Keep: time.Nanosecond})
	if err := old.Tend(t.Context(), org); err != nil {
		t.Fatal(err)
	}
	if v := intact(t, l, audit.Head{}); v.GetFirstNumber() != 1 {
		t.Fatal("dropped before the slack")
	}
	clock := func() int64 {
		now, err := st.Time(t.Context(), org)
		if err != nil {
			t.Fatal(err)
		}
		return now.UnixMilli()
	}
	newest := list(t, l, audit.Filter{}, 0)[0].GetAtUnixMs()
	testwait.For(t, "the clock says that they are old", func() bool { return clock() > newest+1 })
	old.WithoutSlack()
	if err := old.Tend(t.Context(), org); err != nil {
		t.Fatal(err)
	}
	// The newest stays, beside the one that says so.
	if v := intact(t, l, audit.Head{}); v.GetFirstNumber() != 4 || v.GetEntries() != 2 {
		t.Fatalf("%v", v)
	}
}

func TestFilter(t *testing.T) {
	st := redistest.Start(t).Open()
	l := open(t, st, audit.Options{})
	for i := range 30 {
		r := audit.Record{
			Actor: audit.Actor{ID: fmt.Sprintf("id%d", i%3), Name: fmt.Sprintf("name%d", i%3)}, Action: []string{"ban", "join-token.create"}[i%2],
			Targets: []string{fmt.Sprintf("192.0.2.%d", i%5), "other"},
		}
		if err := l.Record(t.Context(), org, r); err != nil {
			t.Fatal(err)
		}
	}
	all := list(t, l, audit.Filter{}, 4)
	if len(all) != 31 || all[0].GetNumber() != 31 {
		t.Fatalf("%d entries", len(all))
	}
	for f, want := range map[audit.Filter]int{
		{Actor: "name1"}: 10, {Actor: "id2"}: 10, {Actor: "name"}: 0, {Action: "ban"}: 15, {Action: "join-token"}: 15, {Action: "join"}: 0,
		{Target: "192.0.2.3"}: 6, {Target: "other"}: 30, {Since: all[0].GetAtUnixMs() + 1}: 0, {Until: all[30].GetAtUnixMs()}: 0,
		{Since: all[30].GetAtUnixMs(), Until: all[0].GetAtUnixMs() + 1}: 31, {Actor: "name1", Action: "ban", Target: "192.0.2.4"}: 1,
	} {
		if got := list(t, l, f, 3); len(got) != want {
			t.Errorf("%+v: %d entries, want %d", f, len(got), want)
		}
	}
	// Newer entries move no page.
	page, next, err := l.List(t.Context(), org, audit.Filter{}, 10, "")
	if err != nil {
		t.Fatal(err)
	}
	write(t, l, 5)
	second, _, err := l.List(t.Context(), org, audit.Filter{}, 10, next)
	if err != nil || second[0].GetNumber() != page[9].GetNumber()-1 {
		t.Errorf("the second page begins with %d, %v", second[0].GetNumber(), err)
	}
	for _, token := range []string{"x", "0", "-1", "1-0"} {
		if _, _, err := l.List(t.Context(), org, audit.Filter{}, 10, token); err == nil {
			t.Errorf("the token %q was taken", token)
		}
	}
}

// Text of any origin is kept within bounds, and nothing of it breaks the log.
func TestHostileText(t *testing.T) {
	st := redistest.Start(t).Open()
	l := open(t, st, audit.Options{})
	rapid.Check(t, func(rt *rapid.T) {
		text := func(name string) string { return string(rapid.SliceOfN(rapid.Byte(), 0, 900).Draw(rt, name)) }
		r := audit.Record{
			Actor: audit.Actor{ID: text("id"), Name: text("name")}, Client: audit.Client{UserAgent: text("ua"), RequestID: text("request")},
			Action: text("action"), Targets: []string{text("target")}, Reason: text("reason"),
			Details: []audit.Detail{{Name: text("detail"), Before: text("before"), After: text("after")}},
		}
		if err := l.Record(context.Background(), org, r); err != nil {
			rt.Fatal(err)
		}
	})
	for _, e := range list(t, l, audit.Filter{}, 0) {
		if len(e.GetUserAgent()) > 253 || len(e.GetReason()) > 500 || len(e.GetAction()) > 64 {
			t.Errorf("not bounded: %v", e)
		}
	}
	intact(t, l, audit.Head{})
	many := record("bulk")
	many.Targets = make([]string, 1000)
	if err := l.Record(t.Context(), org, many); err != nil {
		t.Fatal(err)
	}
	if e := list(t, l, audit.Filter{Action: "bulk"}, 0)[0]; len(e.GetTargets()) != audit.MaxTargets || e.GetTargetsTotal() != 1000 {
		t.Errorf("%d targets of %d", len(e.GetTargets()), e.GetTargetsTotal())
	}
}

func TestCluster(t *testing.T) {
	server := redistest.StartCluster(t)
	l := open(t, server.Open(), audit.Options{KeepNumber: 10})
	write(t, l, 30)
	if _, err := l.Begin(t.Context(), org, record("begun")); err != nil {
		t.Fatal(err)
	}
	if err := l.Tend(t.Context(), org); err != nil {
		t.Fatal(err)
	}
	if v := intact(t, l, audit.Head{}); v.GetFirstNumber() < 20 {
		t.Errorf("%v", v)
	}
	if got := list(t, l, audit.Filter{}, 3); len(got) != 11 {
		t.Errorf("%d listed", len(got))
	}
}
