package chaos

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fleetban/fleetban/scripts/lab/internal/lab"
)

// Options of a run.
type Options struct {
	Lab lab.Options
	// Seed and the number of a round decide its plan.
	Seed uint64
	// First is the first round, Rounds how many there are.
	First, Rounds int
	// Keep is where the machines' whole logs go when a round doesn't hold; empty: nowhere.
	Keep string
	Out  io.Writer
}

const (
	// roundLength is how long faults and calls go on.
	roundLength = 3 * time.Second
	// settleLimit is how long the fleet may take to be right again after faults. Hosts come back within seconds; a machine
	// that does much else takes its time.
	settleLimit = 45 * time.Second
	// historyLimit is how long the history may take to be complete once kernels are right.
	historyLimit = 10 * time.Second
	// stepSlack is what a step of a clock may last longer than planned, on a machine that does much else.
	stepSlack = 10 * time.Second
	// lookEvery is the pause between two looks at the kernels while faults go on.
	lookEvery = 300 * time.Millisecond
)

// ViolationError is an invariant that did not hold.
type ViolationError struct {
	Seed  uint64
	Round int
	Plan  []string
	What  []string
}

func (v *ViolationError) Error() string {
	return fmt.Sprintf("round %d of seed %d did not hold; `fleetban-lab chaos --seed %d --first %d --rounds 1` plays it again\n  faults: %s\n  %s",
		v.Round, v.Seed, v.Seed, v.Round, strings.Join(v.Plan, "; "), strings.Join(v.What, "\n  "))
}

// Summary is what was done in a run, and how often: faults by kind, and calls, by whether they were acknowledged.
type Summary map[string]int

// Run makes a lab, breaks it for some rounds and takes it down. The error is a *ViolationError where something did not hold.
func Run(ctx context.Context, options Options) (_ Summary, err error) {
	options.Lab.Fleetban, options.Lab.Proxied, options.Lab.Leased = true, true, true
	options.Lab.SettableClock, options.Lab.SmallDisks = true, true
	options.Lab.Sentinels = hasSentinels(options.Seed)
	l, err := lab.Up(ctx, options.Lab)
	if err != nil {
		return nil, err
	}
	defer func() {
		var v *ViolationError
		if errors.As(err, &v) {
			fmt.Fprintln(options.Out, l.Report(context.WithoutCancel(ctx)))
			if options.Keep != "" {
				err = errors.Join(err, l.SaveLogs(options.Keep))
			}
		}
		if downErr := l.Down(context.WithoutCancel(ctx)); err == nil {
			err = downErr
		}
	}()
	run := &run{lab: l, options: options, journal: newJournal(), counts: Summary{}}
	run.checker = newChecker(l, run.journal)
	defer run.checker.http.CloseIdleConnections()
	for i := range options.Rounds {
		if err := run.round(ctx, options.First+i); err != nil {
			return run.counts, err
		}
	}
	run.sum()
	return run.counts, nil
}

type run struct {
	lab     *lab.Lab
	options Options
	journal *journal
	checker *checker
	counts  Summary
	settles []time.Duration
}

// round breaks things, mends them and looks.
func (r *run) round(ctx context.Context, number int) error {
	random := rand.New(rand.NewPCG(r.options.Seed, uint64(number))) //nolint:gosec // no secret
	faults := r.faults(number, random)
	work := &workload{lab: r.lab, journal: r.journal, random: random, round: number, counts: r.counts}
	steps := work.plan(roundLength)
	plan := make([]string, 0, len(faults))
	flushed, shaken, loses := map[string]bool{}, map[string]bool{}, false
	for _, f := range faults {
		loses = loses || f.loses
	}
	standing := map[netip.Prefix]bool{}
	now := time.Now()
	r.journal.begin(loses)
	for _, f := range faults {
		if f.steps != 0 {
			r.journal.stepped(now, f.steps, f.after+f.lasts+stepSlack)
		}
		plan = append(plan, fmt.Sprintf("%s after %s", f.fault, f.after.Round(100*time.Millisecond)))
		flushed[f.host] = flushed[f.host] || f.flushes
		shaken[f.host] = shaken[f.host] || f.shakes
		r.counts["fault: "+f.kind]++
	}
	violation := func(what []string) error { return &ViolationError{r.options.Seed, number, plan, what} }
	for _, f := range r.journal.all() {
		standing[f.prefix] = f.verdict(now) == banned
	}

	playing, end := context.WithCancel(ctx)
	defer end()
	var wg sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	for _, f := range faults {
		wg.Go(func() {
			err := f.play(playing)
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, err)
		})
	}
	for _, s := range steps {
		wg.Go(func() {
			if wait(playing, s.after) {
				s.do(playing)
			}
		})
	}
	looked := make(chan []string)
	over := make(chan struct{})
	go func() {
		var wrong []string
		for len(wrong) == 0 {
			wrong = r.checker.during(ctx, standing, flushed)
			select {
			case <-over:
				looked <- wrong
				return
			case <-time.After(lookEvery):
			}
		}
		<-over
		looked <- wrong
	}()
	wg.Wait()
	for _, f := range r.journal.all() {
		if f.round == number && shaken[f.host] {
			r.journal.change(r.journal.find(f.prefix), func(f *fact) { f.shaken = true })
		}
	}
	begun := time.Now()
	wrong, err := r.settle(ctx)
	close(over)
	seen := <-looked
	if err = errors.Join(append(errs, err)...); err != nil {
		return fmt.Errorf("round %d (%s): %w", number, strings.Join(plan, "; "), err)
	}
	if len(wrong) > 0 || len(seen) > 0 {
		return violation(append(wrong, seen...))
	}
	if wrong, err = r.toldOnce(ctx, number); err != nil {
		return err
	}
	if len(wrong) > 0 {
		return violation(wrong)
	}
	took := time.Since(begun)
	r.settles = append(r.settles, took)
	fmt.Fprintf(r.options.Out, "round %d held, settled after %s: %s\n", number, took.Round(10*time.Millisecond), strings.Join(plan, "; "))
	r.journal.forget(time.Now())
	return nil
}

// settle waits until nothing is wrong any more, or no longer.
func (r *run) settle(ctx context.Context) (wrong []string, err error) {
	for deadline := time.Now().Add(settleLimit); ; {
		wrong, err = r.checker.settled(ctx)
		if err == nil && len(wrong) == 0 {
			return nil, nil
		}
		if time.Now().After(deadline) {
			return wrong, err
		}
		if !wait(ctx, 100*time.Millisecond) {
			return wrong, ctx.Err()
		}
	}
}

// planned is a fault with its moment.
type planned struct {
	fault

	kind  string
	after time.Duration
}

// play has a fault happen and mends it, whatever else happens.
func (p planned) play(ctx context.Context) error {
	if !wait(ctx, p.after) {
		return ctx.Err()
	}
	if err := p.begin(ctx); err != nil {
		return fmt.Errorf("%s: %w", p.fault, err)
	}
	if p.mend == nil {
		return nil
	}
	wait(ctx, p.lasts)
	if err := p.mend(context.WithoutCancel(ctx)); err != nil {
		return fmt.Errorf("mend %s: %w", p.fault, err)
	}
	return nil
}

// toldOnce asks the history until it has all that it must have: a stream may be behind the kernels for a moment.
func (r *run) toldOnce(ctx context.Context, number int) (wrong []string, err error) {
	for deadline := time.Now().Add(historyLimit); ; {
		wrong, err = r.checker.told(ctx, number)
		if err == nil && len(wrong) == 0 || time.Now().After(deadline) || !wait(ctx, 200*time.Millisecond) {
			return wrong, err
		}
	}
}

// hasSentinels says what Redis is in a seed's fleet: with an odd one, two servers and Sentinels; else one server.
func hasSentinels(seed uint64) bool { return seed%2 == 1 }

// kindsOf are the faults that there are in a seed's fleet.
func kindsOf(seed uint64) map[string]kind {
	all := maps.Clone(kinds)
	if hasSentinels(seed) {
		maps.Copy(all, withSentinels)
	} else {
		maps.Copy(all, oneServer)
	}
	return all
}

// deal is which kinds of faults a round has: one to three, from packs of all of them, shuffled by the seed, so that each comes up
// as soon as it can.
func deal(seed uint64, round int) []string {
	names := slices.Sorted(maps.Keys(kindsOf(seed)))
	random := rand.New(rand.NewPCG(seed, 1<<32)) //nolint:gosec // no secret
	var pack []string
	for number := 0; ; number++ {
		n := 1 + random.IntN(3)
		for len(pack) < n {
			more := slices.Clone(names)
			random.Shuffle(len(more), func(i, j int) { more[i], more[j] = more[j], more[i] })
			pack = append(pack, more...)
		}
		if number == round {
			return pack[:n]
		}
		pack = pack[n:]
	}
}

// faults makes a round's, none twice of the same name.
func (r *run) faults(number int, random *rand.Rand) (out []planned) {
	kinds := kindsOf(r.options.Seed)
	taken := map[string]bool{}
	for _, kind := range deal(r.options.Seed, number) {
		f := planned{kinds[kind](r.lab, random), kind, time.Duration(random.Int64N(int64(roundLength) * 2 / 3))}
		if taken[f.name] || f.way != "" && taken[f.way] {
			continue
		}
		taken[f.name], taken[f.way] = true, true
		out = append(out, f)
	}
	return out
}

// sum tells what was done.
func (r *run) sum() {
	if r.checker.lost > 0 {
		r.counts["ban lost with a master's tail that no host had, and shown"] = r.checker.lost
	}
	slices.Sort(r.settles)
	fmt.Fprintf(r.options.Out, "\n%d rounds of seed %d held. The fleet was right again after p50 %s, at most %s.\n", len(r.settles), r.options.Seed,
		r.settles[len(r.settles)/2].Round(10*time.Millisecond), r.settles[len(r.settles)-1].Round(10*time.Millisecond))
	for _, name := range slices.Sorted(maps.Keys(r.counts)) {
		fmt.Fprintf(r.options.Out, "  %5d  %s\n", r.counts[name], name)
	}
}
