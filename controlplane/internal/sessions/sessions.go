package sessions

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/golang-jwt/jwt/v5"
	"github.com/oklog/ulid/v2"

	"github.com/fleetban/fleetban/controlplane/internal/auth"
	"github.com/fleetban/fleetban/controlplane/internal/people"
	"github.com/fleetban/fleetban/controlplane/internal/scope"
	"github.com/fleetban/fleetban/controlplane/internal/store"
	optionsv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/options/v1"
)

const (
	// life is how long a session lasts, idle how long without use.
	life = 90 * 24 * time.Hour
	idle = 30 * 24 * time.Hour
	// grace is how long a refresh token is taken a second time.
	grace = 10 * time.Second
	// maxSessions is how many one person may have; the one that would end first makes room.
	maxSessions = 100
	maxAgent    = 200 // bytes
)

// Errors that callers decide on.
var (
	// ErrNone: no such session.
	ErrNone = errors.New("no such session")
	// ErrReplayed: the refresh token was used before; the session is over now.
	ErrReplayed = errors.New("the refresh token was used before: someone else holds a copy, and the session was ended")
)

var (
	//go:embed lua/begin.lua
	beginText   string
	beginScript = store.NewScript("sessions/begin", beginText)

	//go:embed lua/turn.lua
	turnText   string
	turnScript = store.NewScript("sessions/turn", turnText)
)

// Options make a Sessions.
type Options struct {
	Store  *store.Store
	Keys   Deriver
	People *people.People
	// Factors says whose sessions are good for enrolling a second factor only. Nil: nobody's.
	Factors Factors
	// Replayed, where it is given, is told of each session that a second use of its refresh token ended.
	Replayed func(ctx context.Context, org, person, session string)
	// Now is Redis' clock as this replica knows it. Default time.Now.
	Now func() time.Time
	// Logger; default slog.Default().
	Logger *slog.Logger
}

// Factors is what sessions ask of second factors.
type Factors interface {
	// Missing reports whether org asks its members for a second factor and the person has none.
	Missing(ctx context.Context, org, person string) (bool, error)
}

// With what a person signs in, as sessions and the audit log have it.
const (
	Password         = "password"
	PasswordTOTP     = "password+totp"
	PasswordRecovery = "password+recovery-code"
	PasswordPasskey  = "password+passkey"
	Passkey          = "passkey"
	OIDC             = "oidc"
)

// Sessions keeps people's sessions. Safe for concurrent use. Nobody is let in before Run reads what was revoked.
type Sessions struct {
	store   *store.Store
	people  *people.People
	factors Factors
	signer  *signer
	revoked *revoked
	logger  *slog.Logger
	// replayed is Options.Replayed.
	replayed func(ctx context.Context, org, person, session string)
}

var (
	_ auth.Authenticator = (*Sessions)(nil)
	_ auth.Standing      = (*Sessions)(nil)
)

// New makes a Sessions.
func New(o Options) *Sessions {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return &Sessions{store: o.Store, people: o.People, factors: o.Factors, signer: newSigner(o.Keys, o.Now), revoked: newRevoked(o.Store, o.Logger), logger: o.Logger, replayed: o.Replayed}
}

// Run follows which sessions end, until ctx does.
func (s *Sessions) Run(ctx context.Context) { s.revoked.run(ctx) }

// Client is where a session is used from.
type Client struct {
	Address netip.Addr
	Agent   string
}

func (c Client) agent() string {
	text := strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(c.Agent, ""))
	if len(text) > maxAgent {
		text = strings.ToValidUTF8(text[:maxAgent], "")
	}
	return text
}

func (c Client) address() string {
	if !c.Address.IsValid() {
		return ""
	}
	return c.Address.String()
}

// Tokens are what a client gets, and whose they are.
type Tokens struct {
	Access, Refresh string
	Member          people.Member
	Org, Session    string
	Ends            int64 // of the session, Unix milliseconds
	// Enrol: it is good for enrolling a second factor and nothing else.
	Enrol bool
}

// Begin begins a session of a person, who has just proved to be that, in an organisation; people.ErrNoMember where they
// don't belong to it. method is one of the constants above.
func (s *Sessions) Begin(ctx context.Context, person, org, method string, client Client) (Tokens, error) {
	return s.begin(ctx, person, org, method, "", client)
}

// BeginFrom is Begin on the word of another session of the person, in which they proved to be that at a time, zero: never. The
// session that begins proves no more.
func (s *Sessions) BeginFrom(ctx context.Context, person, org, method string, proved time.Time, client Client) (Tokens, error) {
	at := int64(0)
	if !proved.IsZero() {
		at = proved.UnixMilli()
	}
	return s.begin(ctx, person, org, method, strconv.FormatInt(at, 10), client)
}

func (s *Sessions) begin(ctx context.Context, person, org, method, proved string, client Client) (Tokens, error) {
	member, err := s.people.Member(ctx, org, person)
	if err != nil {
		return Tokens{}, err
	}
	id := ulid.Make().String()
	reply, err := beginScript.Run(ctx, s.store, []string{sessionKey(person, id), listKey(person)},
		id, org, client.address(), client.agent(), life.Milliseconds(), idle.Milliseconds(), maxSessions, method, proved).Slice()
	if err != nil {
		return Tokens{}, fmt.Errorf("begin session: %w", err)
	}
	if len(reply) != 3 {
		return Tokens{}, fmt.Errorf("begin session: unexpected reply %v", reply)
	}
	ends, _ := reply[1].(int64)
	if out, _ := reply[2].(string); out != "" {
		if err := s.end(ctx, person, out); err != nil {
			return Tokens{}, err
		}
	}
	at, _ := reply[0].(int64)
	if proved != "" {
		at = number(proved)
	}
	return s.issue(ctx, member, turned{org: org, session: id, ends: ends, proved: at, method: method})
}

// Refresh takes a refresh token: ErrToken, ErrReplayed, people.ErrNoMember, or an error of the store.
func (s *Sessions) Refresh(ctx context.Context, text string, client Client) (Tokens, error) {
	token, err := s.signer.parseRefresh(text)
	if err != nil {
		return Tokens{}, err
	}
	reply, err := turnScript.Run(ctx, s.store, []string{sessionKey(token.person, token.session)},
		strconv.FormatUint(token.turn, 10), grace.Milliseconds(), idle.Milliseconds(), client.address(), client.agent()).Slice()
	if err != nil {
		return Tokens{}, fmt.Errorf("refresh session: %w", err)
	}
	switch answer, _ := reply[0].(string); {
	case answer == "again":
		s.logger.WarnContext(ctx, "a refresh token was used twice, its session is ended", slog.String("person", token.person), slog.String("session", token.session))
		// Whose it was is read before it is gone, and recorded where that can be: the session ends in any case.
		org, _ := s.store.Client().HGet(ctx, sessionKey(token.person, token.session), "org").Result()
		if err := s.end(ctx, token.person, token.session); err != nil {
			return Tokens{}, err
		}
		if org != "" && s.replayed != nil {
			s.replayed(ctx, org, token.person, token.session)
		}
		return Tokens{}, fmt.Errorf("%w: %w", ErrToken, ErrReplayed)
	case answer != "ok" || len(reply) != 7:
		return Tokens{}, fmt.Errorf("%w: its session ended", ErrToken)
	}
	turn, _ := reply[1].(int64)
	ends, _ := reply[3].(int64)
	org, _ := reply[4].(string)
	proved, _ := reply[5].(int64)
	method, _ := reply[6].(string)
	// The role is read after the turn: one that changes meanwhile revokes what is issued here.
	member, err := s.people.Member(ctx, org, token.person)
	if err != nil {
		return Tokens{}, err
	}
	return s.issue(ctx, member, turned{
		org: org, session: token.session, turn: uint64(turn), ends: ends, proved: proved, method: method, //nolint:gosec // counts up from 0
	})
}

// turned is a session at one of its turns. Times are Unix milliseconds.
type turned struct {
	org, session, method string
	turn                 uint64
	ends, proved         int64
}

func (s *Sessions) issue(ctx context.Context, m people.Member, t turned) (Tokens, error) {
	enrol := false
	// An identity provider has factors of its own.
	if s.factors != nil && t.method != OIDC {
		var err error
		if enrol, err = s.factors.Missing(ctx, t.org, m.Person); err != nil {
			return Tokens{}, err
		}
	}
	if t.method == OIDC {
		// What a provider says is no proof of who may change an account's own password and factors: whoever runs it could.
		t.proved = 0
	}
	access, err := s.signer.sign(Claims{
		RegisteredClaims: jwt.RegisteredClaims{Subject: m.Person}, Org: t.org, Role: m.Role, Version: m.Version, Session: t.session, Ends: t.ends, Email: m.Email,
		Tags:   m.Tags.Strings(),
		Proved: t.proved / 1000, Enrol: enrol,
	})
	if err != nil {
		return Tokens{}, err
	}
	refresh, err := s.signer.refreshText(refreshToken{person: m.Person, session: t.session, turn: t.turn})
	if err != nil {
		return Tokens{}, err
	}
	return Tokens{Access: access, Refresh: refresh, Member: m, Org: t.org, Session: t.session, Ends: t.ends, Enrol: enrol}, nil
}

// enrolling is what who must enrol a second factor first may do: what is about themselves.
var enrolling = []optionsv1.Permission{optionsv1.Permission_PERMISSION_SELF}

func permissions(role people.Role, tags scope.Tags, enrol bool) []optionsv1.Permission {
	if enrol {
		return enrolling
	}
	return people.Within(people.Permissions(role), tags)
}

// Permissions are those that a call with the access token has. The slice is the caller's to read only.
func (t Tokens) Permissions() []optionsv1.Permission {
	return permissions(t.Member.Role, t.Member.Tags, t.Enrol)
}

// Authenticate implements auth.Authenticator, without a look at Redis.
func (s *Sessions) Authenticate(_ context.Context, credential string) (auth.Principal, error) {
	c, err := s.signer.check(credential)
	if err != nil {
		return auth.Principal{}, fmt.Errorf("%w: %w: %w", auth.ErrBadCredential, auth.ErrSession, err)
	}
	tags, err := scope.Parse(c.Tags)
	if err != nil {
		return auth.Principal{}, fmt.Errorf("%w: %w: %w", auth.ErrBadCredential, auth.ErrSession, err)
	}
	p := auth.Principal{
		Org: c.Org, ID: c.Subject, Name: c.Email, Permissions: permissions(c.Role, tags, c.Enrol), Tags: tags,
		Session: auth.Session{ID: c.Session, Role: c.Role, Version: c.Version, Ends: c.Ends, Proved: c.Proved, MustEnrol: c.Enrol},
	}
	return p, s.Standing(p)
}

// Standing implements auth.Standing: whether a principal of Authenticate is one still, however long ago that was.
func (s *Sessions) Standing(p auth.Principal) error {
	if p.Token.ID != "" {
		return s.standingToken(p)
	}
	err := s.revoked.check(p.Org, p.ID, p.Session.Version, p.Session.ID)
	if err == nil && s.signer.now().UnixMilli() >= p.Session.Ends {
		err = fmt.Errorf("%w: the session is over", ErrToken)
	}
	if err == nil || errors.Is(err, ErrStale) {
		return err
	}
	return fmt.Errorf("%w: %w: %w", auth.ErrBadCredential, auth.ErrSession, err)
}

// standingToken is Standing of a program.
func (s *Sessions) standingToken(p auth.Principal) error {
	err := s.revoked.checkToken(p.Org, p.Token)
	if err == nil && p.Token.Expires > 0 && s.signer.now().UnixMilli() >= p.Token.Expires {
		err = fmt.Errorf("%w: the API token expired", ErrToken)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", auth.ErrBadCredential, err)
	}
	return nil
}

// TokenRevoked ends the open streams of an API token on every replica.
func (s *Sessions) TokenRevoked(ctx context.Context, id string) error {
	return s.revoked.add(ctx, "t "+id)
}

// Session is one as its owner sees it. Times are Unix milliseconds.
type Session struct {
	ID, Org, Address, Agent string
	Began, Used, Ends       int64
}

// List lists a person's sessions, latest used first.
func (s *Sessions) List(ctx context.Context, person string) ([]Session, error) {
	ids, err := s.store.Client().ZRange(ctx, listKey(person), 0, -1).Result()
	if err != nil {
		return nil, fmt.Errorf("list sessions: %w", store.Classify(err))
	}
	out := make([]Session, 0, len(ids))
	for _, id := range ids {
		v, err := s.store.Client().HGetAll(ctx, sessionKey(person, id)).Result()
		if err != nil {
			return nil, fmt.Errorf("read session: %w", store.Classify(err))
		}
		if v["org"] == "" {
			continue // idle for too long
		}
		out = append(out, Session{
			ID: id, Org: v["org"], Address: v["address"], Agent: v["agent"], Began: number(v["began"]), Used: number(v["used"]), Ends: number(v["ends"]),
		})
	}
	slices.SortFunc(out, func(a, b Session) int { return int(b.Used - a.Used) })
	return out, nil
}

// End ends one session of a person on every replica; ErrNone where it isn't one of theirs.
func (s *Sessions) End(ctx context.Context, person, id string) error {
	if err := s.store.Client().ZScore(ctx, listKey(person), id).Err(); err != nil {
		if err := store.Classify(err); errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrOutcomeUnknown) {
			return fmt.Errorf("find session: %w", err)
		}
		return ErrNone
	}
	return s.end(ctx, person, id)
}

// EndOthers ends all sessions of a person but one, and says how many. What was approved in that one and hasn't begun yet begins no
// more: see Proofs.
func (s *Sessions) EndOthers(ctx context.Context, person, except string) (int, error) {
	if except != "" {
		err := s.set(ctx, person, except, "alone", ulid.Make().String())
		if err != nil && !errors.Is(err, ErrNone) {
			return 0, err
		}
	}
	ids, err := s.store.Client().ZRange(ctx, listKey(person), 0, -1).Result()
	if err != nil {
		return 0, fmt.Errorf("list sessions: %w", store.Classify(err))
	}
	ids = slices.DeleteFunc(ids, func(id string) bool { return id == except })
	return len(ids), s.end(ctx, person, ids...)
}

// end makes access tokens refused everywhere, and then the sessions gone. Repeating it is safe.
func (s *Sessions) end(ctx context.Context, person string, ids ...string) error {
	if len(ids) == 0 {
		return nil
	}
	entries, keys, members := make([]string, 0, len(ids)), make([]string, 0, len(ids)), make([]any, 0, len(ids))
	for _, id := range ids {
		entries, keys, members = append(entries, sessionEntry(id)), append(keys, sessionKey(person, id)), append(members, id)
	}
	if err := s.revoked.add(ctx, entries...); err != nil {
		return err
	}
	if err := s.store.Client().Del(ctx, keys...).Err(); err != nil {
		return fmt.Errorf("end session: %w", store.Classify(err))
	}
	if err := s.store.Client().ZRem(ctx, listKey(person), members...).Err(); err != nil {
		return fmt.Errorf("end session: %w", store.Classify(err))
	}
	return nil
}

// MemberChanged makes access tokens of an older membership refused everywhere: a role that changed, a member who went.
func (s *Sessions) MemberChanged(ctx context.Context, org string, m people.Member) error {
	return s.revoked.add(ctx, memberEntry(org, m.Person, m.Version))
}

func sessionKey(person, id string) string { return store.Key(person, "session", id) }
func listKey(person string) string        { return store.Key(person, "sessions") }

func number(s string) int64 {
	n, _ := strconv.ParseInt(s, 10, 64)
	return n
}
