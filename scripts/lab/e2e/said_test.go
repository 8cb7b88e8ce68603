package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/fleetban/fleetban/scripts/lab/internal/await"
	"github.com/fleetban/fleetban/scripts/lab/internal/lab"
)

// ear hears what a service logs from now on.
type ear struct {
	host    *lab.Node
	service string
	from    int
}

func listen(t *testing.T, host *lab.Node, service string) ear {
	t.Helper()
	return ear{host, service, len(read(t, host.ServiceLog(service)))}
}

// heard are the lines since then that have all the words in them.
func (e ear) heard(t *testing.T, words ...string) (lines []string) {
	t.Helper()
	log := read(t, e.host.ServiceLog(e.service))
	for line := range strings.Lines(log[min(e.from, len(log)):]) {
		has := true
		for _, w := range words {
			has = has && strings.Contains(line, w)
		}
		if has {
			lines = append(lines, line)
		}
	}
	return lines
}

// once waits for a line with all the words and checks that it is one: a fault that goes on must not fill a log.
func (e ear) once(t *testing.T, ctx context.Context, words ...string) {
	t.Helper()
	err := await.Until(ctx, fmt.Sprintf("a line of %s on %s with %q", e.service, e.host.Name, words), func() error {
		if len(e.heard(t, words...)) == 0 {
			return fmt.Errorf("it logged %q", e.heard(t))
		}
		return nil
	})
	if err != nil {
		t.Error(err)
		return
	}
	e.stillOnce(t, words...)
}

// stillOnce checks that there was no more than that one line.
func (e ear) stillOnce(t *testing.T, words ...string) {
	t.Helper()
	if lines := e.heard(t, words...); len(lines) != 1 {
		t.Errorf("%s on %s said it %d times:\n%s", e.service, e.host.Name, len(lines), strings.Join(lines, ""))
	}
}

// finding is a line of `fleetban-agent status`: what is wrong and what mends it.
type finding struct{ Severity, Code, Problem, Fix string }

func (f *fleet) findings(ctx context.Context, host *lab.Node) (found []finding, err error) {
	f.t.Helper()
	var status struct{ Findings []finding }
	output := f.status(ctx, host)
	if err := json.Unmarshal([]byte(output), &status); err != nil {
		return nil, fmt.Errorf("%w: the status is:\n%s", err, output)
	}
	return status.Findings, nil
}

// incident is what `fleetban-agent status` remembers of something that mended itself.
type incident struct{ Code, What, Count string }

// happened is how often something did on a host, by its status; both halves remember.
func (f *fleet) happened(ctx context.Context, host *lab.Node, code string) (n int, what string) {
	f.t.Helper()
	type half struct{ Incidents []incident }
	var status struct{ Agent, Helper half }
	output := f.status(ctx, host)
	if err := json.Unmarshal([]byte(output), &status); err != nil {
		f.t.Fatalf("%v: the status is:\n%s", err, output)
	}
	for _, i := range append(status.Agent.Incidents, status.Helper.Incidents...) {
		if i.Code == code {
			what = i.What
			if _, err := fmt.Sscan(i.Count, &n); err != nil {
				f.t.Errorf("%+v: %v", i, err)
			}
		}
	}
	return n, what
}

// mended is to be called before something happens that is over in a moment; what it returns checks afterwards that the
// host's log has one line of it, and that status counts it and shows it to people.
func (f *fleet) mended(ctx context.Context, host *lab.Node, service, code string, words ...string) (check func()) {
	f.t.Helper()
	ear := listen(f.t, host, service)
	before, _ := f.happened(ctx, host, code)
	return func() {
		f.t.Helper()
		ear.once(f.t, ctx, words...)
		now, what := f.happened(ctx, host, code)
		if now != before+1 {
			f.t.Errorf("the status on %s counts %s %d times, and %d before", host.Name, code, now, before)
		}
		if human, _ := host.Exec(ctx, "fleetban-agent", "status"); !strings.Contains(human, what) { // another status than 0 says that something is wrong
			f.t.Errorf("the status on %s doesn't show %q:\n%s", host.Name, what, human)
		}
	}
}

// finds waits until the status on a host has a finding with this code, and checks that it says what to do.
func (f *fleet) finds(ctx context.Context, host *lab.Node, code string) {
	f.t.Helper()
	err := await.Until(ctx, fmt.Sprintf("the status on %s to tell of %s", host.Name, code), func() error {
		found, err := f.findings(ctx, host)
		if err != nil {
			return err
		}
		for _, c := range found {
			if c.Code != code {
				continue
			}
			if c.Problem == "" || c.Fix == "" {
				f.t.Errorf("the status on %s says what is wrong and not what to do: %+v", host.Name, c)
			}
			return nil
		}
		return fmt.Errorf("it tells of %+v", found)
	})
	if err != nil {
		f.t.Error(err)
	}
}

// sound waits until the status on a host has no finding that needs a person.
func (f *fleet) sound(ctx context.Context, host *lab.Node) {
	f.t.Helper()
	err := await.Until(ctx, "nothing to be wrong any more on "+host.Name, func() error {
		found, err := f.findings(ctx, host)
		for _, c := range found {
			if c.Severity != "SEVERITY_INFO" {
				return fmt.Errorf("it tells of %+v", c)
			}
		}
		return err
	})
	if err != nil {
		f.t.Error(err)
	}
}
