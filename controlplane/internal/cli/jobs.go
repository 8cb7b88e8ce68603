package cli

import (
	"fmt"
	"time"

	"connectrpc.com/connect"

	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
)

type jobsCmd struct{}

// run tells of each lease who has it, when its work was done last, and who had it before.
func (jobsCmd) run(r *run) error {
	ctx, cancel := r.call()
	defer cancel()
	res, err := r.api.fleet.GetFleet(ctx, connect.NewRequest(&operatorv1.GetFleetRequest{}))
	if err != nil {
		return err
	}
	leases := res.Msg.GetLeases()
	if !r.out.people() {
		list(r.out, res.Msg, leases)
		return nil
	}
	if len(leases) == 0 {
		r.out.line("No replica says who does periodic work: Redis doesn't answer that, or the control plane is an older one.")
		return nil
	}
	for i, l := range leases {
		if i > 0 {
			r.out.line("")
		}
		jobsOf(r, l)
	}
	return nil
}

func jobsOf(r *run, l *operatorv1.Lease) {
	clock := r.out.clock
	holder := r.out.paint(warn, "nobody at the moment: a replica takes it within seconds where one is ready")
	switch {
	case l.GetHolder() == "" && l.GetName() == "acme":
		holder = "not needed now: a replica takes it while it has a certificate made"
		if before := l.GetHistory(); len(before) > 0 {
			holder += "; " + safe(before[0].GetHolder()) + " did last, " + clock.when(before[0].GetEndedUnixMs())
		}
	case l.GetHolder() != "":
		holder = fmt.Sprintf("%s, since %s, term %d", safe(l.GetHolder()), clock.when(l.GetSinceUnixMs()), l.GetTerm())
	}
	r.out.facts([2]string{"lease", safe(l.GetName())}, [2]string{"holder", holder})
	if runs := l.GetRuns(); len(runs) > 0 {
		rows := make([][]cell, 0, len(runs))
		for _, j := range runs {
			took := time.Duration(j.GetTookMs()) * time.Millisecond
			rows = append(rows, []cell{c(j.GetName()), c(clock.ago(j.GetBeganUnixMs())), c(took.String()), painted(wrong, j.GetProblem())})
		}
		r.out.line("")
		r.out.table([]string{"JOB", "LAST DONE", "TOOK", "PROBLEM"}, rows)
	}
	if history := l.GetHistory(); len(history) > 0 {
		rows := make([][]cell, 0, len(history))
		for _, t := range history {
			ended := "ran out"
			if t.GetReleased() {
				ended = "given back"
			}
			rows = append(rows, []cell{
				c(t.GetHolder()), c(fmt.Sprint(t.GetTerm())), c(clock.when(t.GetSinceUnixMs())), c(ended + " " + clock.when(t.GetEndedUnixMs())),
			})
		}
		r.out.line("")
		r.out.table([]string{"HELD BEFORE BY", "TERM", "SINCE", "ENDED"}, rows)
	}
}
