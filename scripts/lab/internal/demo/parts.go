package demo

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"time"

	"connectrpc.com/connect"

	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	"github.com/fleetban/fleetban/scripts/lab/internal/await"
	"github.com/fleetban/fleetban/scripts/lab/internal/lab"
)

const (
	// partLimit is how long any part may take before it counts as failed. The times that are printed are the claim; the
	// limits are for machines that do much else.
	partLimit = 2 * time.Minute
	// cutLimit is how long after fail2ban's ban a standing connection may stand.
	cutLimit = 30 * time.Second
)

// attack has fail2ban on one host ban the attacker, and checks that all others shut it out.
func (s *show) attack(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, partLimit)
	defer cancel()
	attacker, host := s.lab.Node(lab.Attacker), s.lab.Node("a")
	others := s.lab.Targets()[1:]
	s.title("An attack on host a")
	var probes []*lab.Probe
	for _, target := range others {
		p, err := lab.NewProbe(ctx, attacker, lab.AttackerAddr, target)
		if err != nil {
			return err
		}
		defer p.Close()
		probes = append(probes, p)
	}
	s.ok(fmt.Sprintf("%s reaches b, c and the box; a connection to each stands", lab.AttackerAddr), "")
	s.busy("the attacker tries SSH passwords on a")
	ban, err := s.lab.Attack(ctx, host, lab.AttackerAddr)
	if err != nil {
		return err
	}
	s.ok(fmt.Sprintf("it tries %d SSH passwords on a, until fail2ban there bans it", ban.Attempts), figure(ban.Took))
	s.title("Shut out everywhere: times from the line in fail2ban's log on a, as the attacker sees it")
	limited, cancelCut := context.WithTimeout(ctx, cutLimit)
	defer cancelCut()
	for _, p := range probes {
		at, err := p.Cut(limited)
		if err != nil {
			return fmt.Errorf("expected the ban of host a to cut it: %w", err)
		}
		s.ok(fmt.Sprintf("%s drops its packets: the connection that stood is cut", described(p.Target.Name)), figure(max(0, at.Sub(ban.At))))
	}
	if err := s.each(others, func(t lab.Target) error {
		if err := lab.Reach(ctx, attacker, lab.AttackerAddr, t); !errors.Is(err, lab.ErrUnreachable) {
			return fmt.Errorf("expected %s to refuse a new connection from %s, but: %v", t.Name, lab.AttackerAddr, orAnswered(err))
		}
		return nil
	}); err != nil {
		return err
	}
	s.ok("a connect that worked before fails, on b, c and the box", "")
	admin := s.lab.Node(lab.Admin)
	if err := s.each(s.lab.Targets(), func(t lab.Target) error {
		_, err := lab.AwaitReach(ctx, admin, lab.AdminAddr, t)
		return err
	}); err != nil {
		return fmt.Errorf("expected everyone else to get through: %w", err)
	}
	s.ok(fmt.Sprintf("everyone else gets through: %s reaches all of them", lab.AdminAddr), "")
	return nil
}

func orAnswered(err error) any {
	if err == nil {
		return "it answered"
	}
	return err
}

// described says what a target is.
func described(name string) string {
	if name == lab.Box {
		return "the box behind c"
	}
	return "host " + name
}

func (s *show) each(targets []lab.Target, f func(lab.Target) error) error {
	errs := make([]error, len(targets))
	var wg sync.WaitGroup
	for i, t := range targets {
		wg.Go(func() { errs[i] = f(t) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// explain shows why.
func (s *show) explain(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, partLimit)
	defer cancel()
	s.title("Why")
	// A receipt is sent within a second of the kernel having it: explain tells of all hosts once they have.
	err := await.Until(ctx, "every host's receipt", func() error {
		answer, err := s.lab.Operator().Bans.Explain(ctx, connect.NewRequest(operatorv1.ExplainRequest_builder{
			Address: lab.AttackerAddr.String(),
		}.Build()))
		if err != nil {
			return err
		}
		for _, h := range answer.Msg.GetHosts() {
			if h.GetState() != operatorv1.EnforcementState_ENFORCEMENT_STATE_ENFORCED {
				return fmt.Errorf("%s is %s", h.GetHostName(), h.GetState())
			}
		}
		if len(answer.Msg.GetHosts()) != len(s.lab.Hosts()) {
			return fmt.Errorf("explain tells of %d hosts", len(answer.Msg.GetHosts()))
		}
		return nil
	})
	if err != nil {
		return err
	}
	output, err := s.lab.CLI(ctx, "explain", lab.AttackerAddr.String())
	if err != nil {
		return err
	}
	s.quote("fleetban explain "+lab.AttackerAddr.String(), output)
	for _, word := range []string{lab.AttackerAddr.String(), "sshd", "a"} {
		if !strings.Contains(output, word) {
			return fmt.Errorf("expected `fleetban explain` to name %q", word)
		}
	}
	return nil
}

// unban gives access back everywhere, and checks it.
func (s *show) unban(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, partLimit)
	defer cancel()
	s.title("Undone")
	address := lab.AttackerAddr.String()
	begin := time.Now()
	output, err := s.lab.CLI(ctx, "unban", address)
	if err != nil {
		return err
	}
	s.quote("fleetban unban "+address, output)
	attacker := s.lab.Node(lab.Attacker)
	var mu sync.Mutex
	var last time.Time
	if err := s.each(s.lab.Targets(), func(t lab.Target) error {
		at, err := lab.AwaitReach(ctx, attacker, lab.AttackerAddr, t)
		mu.Lock()
		defer mu.Unlock()
		if at.After(last) {
			last = at
		}
		return err
	}); err != nil {
		return err
	}
	s.ok("a, b, c and the box answer again, counted from the command's start", figure(last.Sub(begin)))
	host := s.lab.Node("a")
	err = await.Until(ctx, "fail2ban on a to have unbanned "+address, func() error {
		banned, err := host.Fail2ban(ctx, "get", "sshd", "banip")
		if err == nil && strings.Contains(banned, address) {
			err = fmt.Errorf("its jail says: %s", strings.TrimSpace(banned))
		}
		return err
	})
	if err != nil {
		return err
	}
	s.ok("fail2ban on a has unbanned it too, so it doesn't come back", figure(time.Since(begin)))
	return nil
}

// replicaDies kills the replica that holds a host's stream and checks that it makes no difference.
func (s *show) replicaDies(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, partLimit)
	defer cancel()
	s.title("A replica dies")
	before, err := s.lab.HostState(ctx, "b")
	if err != nil {
		return err
	}
	// One ban stands while it happens, another is made right after.
	standing, later := lab.SourceAddr(1), lab.SourceAddr(2)
	if _, err := s.lab.CLI(ctx, "ban", standing.String(), "--for", "10m", "--reason", "it stands"); err != nil {
		return err
	}
	attacker := s.lab.Node(lab.Attacker)
	target := s.lab.Targets()[1]
	if err := lab.AwaitUnreachable(ctx, attacker, standing, target); err != nil {
		return err
	}
	victim, err := s.lab.ReplicaOf(before.GetReplica())
	if err != nil {
		return err
	}
	cp := s.lab.Node(lab.ControlPlane)
	killed := time.Now()
	if err := cp.Stop(ctx, victim, syscall.SIGKILL); err != nil {
		return err
	}
	s.ok(fmt.Sprintf("kill -9 of %s, which holds the stream of host b", victim), "")
	if err := lab.Reach(ctx, attacker, standing, target); !errors.Is(err, lab.ErrUnreachable) {
		return fmt.Errorf("expected %s to stay banned on b with its replica dead: %v", standing, orAnswered(err))
	}
	s.ok("what was banned stays banned on b", "")
	err = await.Until(ctx, "every host's stream on the other replica", func() error {
		for _, h := range s.lab.Hosts() {
			state, err := s.lab.HostState(ctx, h.Name)
			if err != nil {
				return err
			}
			if state.GetPresence() != operatorv1.Presence_PRESENCE_ONLINE || state.GetReplica() == before.GetReplica() {
				return fmt.Errorf("that of %s is %s on %s", h.Name, state.GetPresence(), state.GetReplica())
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.ok("every host has its stream from the other replica, by itself", figure(time.Since(killed)))
	output, err := s.lab.CLI(ctx, "ban", later.String(), "--for", "10m", "--reason", "one replica is enough")
	if err != nil {
		return err
	}
	s.quote("fleetban ban "+later.String()+" --for 10m", output)
	if err := s.each(s.lab.Targets(), func(t lab.Target) error { return lab.AwaitUnreachable(ctx, attacker, later, t) }); err != nil {
		return err
	}
	s.ok("a new ban is enforced on all hosts through the replica that is left", "")
	if err := cp.StartAgain(ctx, victim); err != nil {
		return err
	}
	_, err = s.lab.CLI(ctx, "unban", standing.String(), later.String())
	return err
}

// ownSession tries to ban the address of a live SSH session.
func (s *show) ownSession(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, partLimit)
	defer cancel()
	s.title("Never locked out")
	admin, host := s.lab.Node(lab.Admin), s.lab.Node("b")
	session, err := s.lab.OpenSession(ctx, admin, lab.AdminAddr, host)
	if err != nil {
		return err
	}
	defer session.Close()
	s.ok(fmt.Sprintf("you are logged in on b over SSH, from %s", lab.AdminAddr), "")
	address := lab.AdminAddr.String()
	// The CLI tells by its status that not every host enforces it.
	output, err := s.lab.CLI(ctx, "ban", address, "--for", "10m", "--reason", "a slip of the finger")
	var exit *lab.ExitError
	if err != nil && !errors.As(err, &exit) {
		return err
	}
	if exit != nil {
		output += exit.Stderr
	}
	s.quote("fleetban ban "+address+" --for 10m", output)
	answer, err := s.lab.Operator().Bans.Explain(ctx, connect.NewRequest(operatorv1.ExplainRequest_builder{Address: address}.Build()))
	if err != nil {
		return err
	}
	state := operatorv1.EnforcementState_ENFORCEMENT_STATE_UNSPECIFIED
	for _, h := range answer.Msg.GetHosts() {
		if h.GetHostName() == host.Name {
			state = h.GetState()
		}
	}
	if state != operatorv1.EnforcementState_ENFORCEMENT_STATE_REFUSED {
		return fmt.Errorf("expected host b to refuse a ban of %s, it says %s", address, state)
	}
	if err := session.Answers(ctx); err != nil {
		return fmt.Errorf("expected the SSH session to go on: %w", err)
	}
	if _, err := lab.AwaitReach(ctx, admin, lab.AdminAddr, s.lab.Targets()[1]); err != nil {
		return fmt.Errorf("expected b to take new connections from %s: %w", address, err)
	}
	s.ok("b refuses it: the session goes on, and a new connection works", "")
	if _, err := s.lab.CLI(ctx, "unban", address); err != nil {
		return err
	}
	return nil
}
