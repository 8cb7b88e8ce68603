package server

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/audit"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

func (s *Server) notBegun() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.begun
}

// begin does the first start's work, as soon as Redis lets it: there is an organisation, and its administrator's token was
// shown to a person.
//
// Only a secret that was made here says that there never was a fleet. With any other one, an empty Redis may as well have
// lost everything: a second organisation beside the one that hosts are about to bring back would be no service. Then this
// replica serves, so that they can, and waits.
func (s *Server) begin(ctx context.Context) {
	mode, err := modeOf(s.config.Mode)
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		if err == nil {
			var there bool
			if there, err = s.first(ctx, mode); err == nil && there {
				s.setBegun("")
				return
			} else if err == nil {
				s.await(ctx)
				return
			}
			s.setBegun("the first organisation can't be made: " + short(err))
			s.logger.WarnContext(ctx, "first start's work failed, trying again", slog.Any("error", err))
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
			err = nil
		}
	}
}

func (s *Server) setBegun(problem string) {
	s.mu.Lock()
	s.begun = problem
	s.mu.Unlock()
	s.ready.mu.Lock()
	s.ready.at = time.Time{}
	s.ready.mu.Unlock()
}

// await waits until there is an organisation: its hosts bring it back, or a person sets one up.
func (s *Server) await(ctx context.Context) {
	s.logger.WarnContext(ctx, "Redis holds no organisation. If it lost one, wait: hosts bring theirs back when they connect, and then "+
		"`fleetban-controlplane token create` makes a new administrator's token. If there never was one, run `fleetban-controlplane setup`.")
	s.mu.Lock()
	s.bare = true
	s.mu.Unlock()
	s.setBegun("")
	tick := time.NewTicker(organisationEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		ids, err := s.base.orgs.IDs(ctx)
		if err != nil || len(ids) == 0 {
			continue
		}
		s.logger.InfoContext(ctx, "Redis holds an organisation now; `fleetban-controlplane token create --organisation-id ID` makes an "+
			"administrator's token where none is left", slog.Any("organisations", ids))
		s.mu.Lock()
		s.bare = false
		s.mu.Unlock()
		return
	}
}

// organisationEvery is how often to look whether there is an organisation now.
const organisationEvery = time.Second

func (s *Server) isBare() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bare
}

// first makes the first organisation where that is this start's business; false where there is none and it isn't.
func (s *Server) first(ctx context.Context, mode fleetbanv1.Mode) (bool, error) {
	// A replica with another secret must not leave its mark.
	if err := s.base.keys.Agree(ctx, s.base.store); err != nil {
		return false, err
	}
	if s.base.firstStart == "" {
		ids, err := s.base.orgs.IDs(ctx)
		return len(ids) > 0, err
	}
	made, err := s.base.orgs.First(ctx, s.config.Organisation, mode)
	if err != nil {
		return false, err
	}
	if made.AdminToken != "" {
		if err := s.base.recordFirst(ctx, audit.System, "fleetban-controlplane serve", made.Organisation); err != nil {
			s.logger.WarnContext(ctx, "the first start is missing in the audit log", slog.Any("error", err))
		}
		s.logger.InfoContext(ctx, "first organisation made", slog.String("name", made.Organisation.Name), slog.String("mode", s.config.Mode))
		showToken(s.notices, fmt.Sprintf("Fleetban made the organisation %q; its mode is %s.", made.Organisation.Name, s.config.Mode),
			made.AdminToken, s.config.PublicURL, s.pin)
	}
	return true, s.base.firstDone()
}

// showToken prints a token for a person: once, and never through a logger.
func showToken(w io.Writer, heading, token, url, pin string) {
	login := "fleetban login"
	if url != "" {
		login += " --url " + url
	}
	if pin != "" {
		login += " --pin " + pin
	}
	_, _ = fmt.Fprintf(w, "\n%s\nAdministrator's token, shown this once:\n\n    %s\n\nLog in with it (it is asked for, or read from standard input with --token-stdin):\n\n    %s\n\n",
		heading, token, login)
}
