package setup

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/audit"
	"github.com/fleetban/fleetban/controlplane/internal/keys"
	"github.com/fleetban/fleetban/controlplane/internal/orgs"
	"github.com/fleetban/fleetban/controlplane/internal/people"
	"github.com/fleetban/fleetban/controlplane/internal/seal"
	"github.com/fleetban/fleetban/controlplane/internal/store/redistest"
	"github.com/fleetban/fleetban/controlplane/internal/testwait"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

const (
	url      = "https://fleet.example.com"
	password = "plinth-verandah-oxbow"
)

func start(t *testing.T, lease time.Duration) *Setup {
	t.Helper()
	st := redistest.Start(t).Open()
	k := keys.New([keys.SecretLen]byte{7})
	sealer := seal.New(k, seal.Options{Logger: slog.New(slog.DiscardHandler)})
	return New(Options{
		Store: st, Orgs: orgs.New(st, sealer), People: people.New(st, sealer), Audit: audit.New(audit.Options{Store: st, Signer: k}), Seal: sealer, lease: lease,
	})
}

func offer(t *testing.T, s *Setup) (secret string) {
	t.Helper()
	link, err := s.Offer(t.Context(), url, "", true)
	if err != nil {
		t.Fatal(err)
	}
	_, secret, found := strings.Cut(link, url+"/setup#")
	if !found {
		t.Fatal(link)
	}
	return secret
}

func (s *Setup) as(secret, email string) error {
	_, err := s.Use(context.Background(), Request{Secret: secret, Name: "Acme", Mode: fleetbanv1.Mode_MODE_ENFORCE, Email: email, Password: password})
	return err
}

// A replica that dies in the middle leaves a link that is good again once its time is over, and a new one can't be shown
// behind the back of who uses it now.
func TestDiedHalfWay(t *testing.T) {
	t.Parallel()
	s := start(t, 300*time.Millisecond)
	secret := offer(t, s)
	// It took the link and made the owner, and then no more.
	if answer, _, _, err := s.link(t.Context(), "claim", s.mark(secret), "dead", int64(300)); answer != "ok" || err != nil {
		t.Fatal(answer, err)
	}
	if err := s.as(secret, "ada@example.com"); !errors.Is(err, ErrBusy) {
		t.Errorf("while someone uses it: %v", err)
	}
	if _, err := s.Offer(t.Context(), url, "", true); !errors.Is(err, ErrBusy) {
		t.Errorf("another link while someone uses the first: %v", err)
	}
	id, err := s.o.Orgs.Reserve(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.o.People.Found(t.Context(), id, "ada@example.com", password); err != nil {
		t.Fatal(err)
	}
	testwait.For(t, "whoever died half way is given up", func() bool {
		err := s.as(secret, "bob@example.com")
		if !errors.Is(err, people.ErrOwnerStands) && !errors.Is(err, ErrBusy) {
			t.Fatalf("another person after the owner was made: %v", err)
		}
		return errors.Is(err, people.ErrOwnerStands)
	})
	if done, err := s.Done(t.Context()); done || err != nil {
		t.Fatal(done, err)
	}
	// Who began it completes it; also with a link that was shown meanwhile.
	if err := s.as(offer(t, s), "ada@example.com"); err != nil {
		t.Fatal(err)
	}
	if err := s.as(secret, "ada@example.com"); !errors.Is(err, ErrDone) {
		t.Errorf("once it is done: %v", err)
	}
	if _, err := s.Offer(t.Context(), url, "", true); !errors.Is(err, ErrDone) {
		t.Errorf("a link once it is done: %v", err)
	}
}

// A link is good for a day, and the next is shown by whoever looks first.
func TestOneLinkStands(t *testing.T) {
	t.Parallel()
	s := start(t, 0)
	first := offer(t, s)
	if link, err := s.Offer(t.Context(), url, "", false); link != "" || err != nil {
		t.Errorf("beside the first: %q, %v", link, err)
	}
	if left, err := s.o.Store.Client().PTTL(t.Context(), linkKey).Result(); err != nil || left > Life || left < Life-time.Minute {
		t.Errorf("it is good for %s, %v", left, err)
	}
	if err := s.o.Store.Client().Del(t.Context(), linkKey).Err(); err != nil {
		t.Fatal(err)
	}
	if err := s.as(first, "ada@example.com"); !errors.Is(err, ErrLink) {
		t.Errorf("an expired one: %v", err)
	}
	const pin = "sha256//AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
	link, err := s.Offer(t.Context(), url, pin, false)
	if err != nil || !strings.HasSuffix(link, ".AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8") {
		t.Fatal(link, err)
	}
	// An operator's command knows neither.
	again, err := s.Offer(t.Context(), "", "", true)
	if err != nil || !strings.HasPrefix(again, url) || !strings.HasSuffix(again, link[len(link)-43:]) || again == link {
		t.Fatal(again, err)
	}
	_, secret, _ := strings.Cut(again, "#")
	if err := s.as(secret, "ada@example.com"); err != nil {
		t.Fatal(err)
	}
}
