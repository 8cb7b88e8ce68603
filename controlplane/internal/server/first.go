package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/setup"
)

func (s *Server) notBegun() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.begun
}

// begin looks, as soon as Redis lets it, whether there is an organisation. Where there is none it shows a set-up link, and
// waits until a person has used it, or until hosts brought back the organisation that Redis lost.
//
// Nothing is made here: an empty Redis may as well have lost everything, and a second organisation beside the one that hosts
// are about to bring back would be no service.
func (s *Server) begin(ctx context.Context) {
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		there, err := s.first(ctx)
		if err == nil && there {
			s.setBegun("")
			return
		}
		if err == nil {
			s.await(ctx)
			return
		}
		s.setBegun("it isn't known whether there is an organisation: " + short(err))
		s.logger.WarnContext(ctx, "can't look for the organisation, trying again", slog.Any("error", err))
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
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

// first opens the gate where there is an organisation, and offers the set-up link where there is none.
func (s *Server) first(ctx context.Context) (there bool, err error) {
	// A replica with another secret must not leave its mark.
	if err := s.base.keys.Agree(ctx, s.base.store); err != nil {
		return false, err
	}
	there, err = s.look(ctx)
	if there || err != nil {
		return there, err
	}
	// With a secret of its own there is no other replica, and who starts it again may have lost the link.
	alone := s.config.SecretFile == "" && s.config.KEKFile == "" && len(s.config.KMSKeyIDs) == 0
	return s.offer(ctx, alone)
}

// look opens the gate where there is an organisation.
func (s *Server) look(ctx context.Context) (there bool, err error) {
	if there, err = s.setup.Done(ctx); !there || err != nil {
		return false, err
	}
	s.gate.Open()
	return true, s.base.firstDone()
}

// offer shows a set-up link, unless one was shown that is still good, here or by another replica.
func (s *Server) offer(ctx context.Context, replace bool) (there bool, err error) {
	link, err := s.setup.Offer(ctx, s.config.PublicURL, s.pin, replace)
	switch {
	case errors.Is(err, setup.ErrDone):
		return s.look(ctx)
	case errors.Is(err, setup.ErrBusy):
		return false, nil
	case err != nil:
		return false, err
	case link != "":
		s.logger.InfoContext(ctx, "a set-up link was shown: the control plane waits for its owner")
		showLink(s.notices, link, s.base.firstStart == "")
	}
	return false, nil
}

// await waits until there is an organisation. Meanwhile it shows another link when the last one expired.
func (s *Server) await(ctx context.Context) {
	s.logger.WarnContext(ctx, "Redis holds no organisation. If nobody has set this control plane up: one of its replicas shows the link, "+
		"`fleetban-controlplane setup-link` another one, and `fleetban-controlplane setup` does it without. If Redis lost an organisation, wait: "+
		"hosts bring it back when they connect, and then `fleetban-controlplane token create` makes a new administrator's token.")
	s.setBegun("")
	tick := time.NewTicker(organisationEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		there, err := s.look(ctx)
		if err == nil && !there {
			there, err = s.offer(ctx, false)
		}
		if err != nil || !there {
			continue
		}
		s.setBegun("") // /readyz shall say so now
		s.logger.InfoContext(ctx, "there is an organisation now; `fleetban-controlplane token create` makes an administrator's token where none is left")
		return
	}
}

// organisationEvery is how often to look whether there is an organisation now.
const organisationEvery = time.Second

// showLink prints a set-up link for a person, and never through a logger. perhaps: Redis may have lost an organisation.
func showLink(w io.Writer, link string, perhaps bool) {
	warning := ""
	if perhaps {
		warning = "If Redis has lost its data, don't: your hosts bring the organisation back when they connect.\n\n"
	}
	_, _ = fmt.Fprintf(w, "\nFleetban waits to be set up. Run this where you will work, or open the link in a browser:\n\n    fleetban setup '%s'\n\n"+
		"It makes you the owner of this fleet. The link is shown once and good once, for a day: whoever has it can take the fleet.\n\n%s",
		link, warning)
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
