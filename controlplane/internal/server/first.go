package server

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"time"

	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

func (s *Server) notBegun() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.begun
}

// begin does the first start's work, as soon as Redis lets it: there is an organisation, and its administrator's token was
// shown to a person.
func (s *Server) begin(ctx context.Context) {
	mode, err := modeOf(s.config.Mode)
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		if err == nil {
			if err = s.first(ctx, mode); err == nil {
				s.setBegun("")
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

func (s *Server) first(ctx context.Context, mode fleetbanv1.Mode) error {
	// A replica with another secret must not leave its mark.
	if err := s.base.keys.Agree(ctx, s.base.store); err != nil {
		return err
	}
	made, err := s.base.orgs.First(ctx, s.config.Organisation, mode)
	if err != nil {
		return err
	}
	if made.AdminToken != "" {
		s.logger.InfoContext(ctx, "first organisation made", slog.String("name", made.Organisation.Name), slog.String("mode", s.config.Mode))
		showToken(s.notices, fmt.Sprintf("Fleetban made the organisation %q; its mode is %s.", made.Organisation.Name, s.config.Mode),
			made.AdminToken, s.config.PublicURL, s.pin)
	}
	return nil
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
