// Package auth decides who calls and whether they may.
//
// What an RPC asks of its caller is declared on the RPC (option fleetban.v1.permission) and nowhere else. The Interceptor
// reads the declarations of all services when it is made and refuses to be made if one is missing; an RPC it has no
// declaration of is never let through. Handlers find the caller with From, and take the organisation from there only,
// never from a message.
package auth

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	"github.com/fleetban/fleetban/controlplane/internal/orgs"
	"github.com/fleetban/fleetban/controlplane/internal/scope"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	optionsv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/options/v1"
)

// Principal is an authenticated caller of the operator API.
type Principal struct {
	Org string
	// ID is stable and unique in the organisation; Name is what people read.
	ID, Name    string
	Permissions []optionsv1.Permission
	// Tags restrict the caller to hosts that have one of them; none is the whole fleet.
	Tags scope.Tags
	// Session is set for a person who signed in, and zero for an API token.
	Session Session
	// Token is set for an API token, and zero for a person who signed in.
	Token Token
}

// Token is what a program calls with.
type Token struct {
	ID, Name string
	// Maker is the id of who made it; empty where no person did.
	Maker string
	// Person is whose it is and Version that of the membership; empty for one of the organisation.
	Person  string
	Version uint64
	// Expires is when it is over, Unix milliseconds; 0: never.
	Expires int64
}

// Session is how a person is signed in.
type Session struct {
	ID   string
	Role operatorv1.Role
	// Version is that of the membership: it grows when the role changes.
	Version uint64
	// Ends is when it is over, Unix milliseconds.
	Ends int64
	// Proved is when the person last proved to be that, with a password, a passkey or a provider: Unix seconds.
	Proved int64
	// MustEnrol: the organisation asks for a second factor, the person has none, and holds nothing but PERMISSION_SELF.
	MustEnrol bool
}

// May reports whether the caller holds p.
func (p Principal) May(permission optionsv1.Permission) bool {
	return slices.Contains(p.Permissions, permission)
}

// Authenticator finds whose credential this is: Tokens those of programs, package sessions those of people. It returns ErrBadCredential (wrapped, with what is wrong) or an error of the store, never a Principal and an error.
type Authenticator interface {
	Authenticate(ctx context.Context, credential string) (Principal, error)
}

// ErrBadCredential is wrapped by every refusal of a credential.
var ErrBadCredential = errors.New("bad credential")

// ErrSession is wrapped too where it is a person's access token.
var ErrSession = errors.New("session")

// Standing is implemented by an Authenticator that can tell at any moment, for nothing, whether a principal that it once
// let in is still one. A stream is then bound to the principal and not to the credential it was opened with.
type Standing interface {
	// Standing returns what Authenticate would, were the credential not to expire.
	Standing(p Principal) error
}

// Callers authenticates programs by their API tokens and people by their access tokens, told apart by their form.
type Callers struct {
	Programs Authenticator
	// People is nil where nobody can sign in.
	People interface {
		Authenticator
		Standing
	}
}

var (
	_ Authenticator = Callers{}
	_ Standing      = Callers{}
)

// Authenticate implements Authenticator.
func (c Callers) Authenticate(ctx context.Context, credential string) (Principal, error) {
	// A JWT has two dots, and a token of ours none.
	if c.People != nil && strings.Count(credential, ".") == 2 {
		return c.People.Authenticate(ctx, credential)
	}
	return c.Programs.Authenticate(ctx, credential)
}

// Standing implements Standing. Of a program it tells what became known of its token; a replica that is cut off from that
// goes on, for no call of it succeeds there.
func (c Callers) Standing(p Principal) error {
	if c.People == nil {
		return nil
	}
	return c.People.Standing(p)
}

// Tokens authenticates API tokens.
type Tokens struct {
	Orgs *orgs.Orgs
	// Members tells as what a personal token's person belongs to the organisation. Nil: no personal token is good.
	Members Members
	// Logger; default slog.Default().
	Logger *slog.Logger
}

// Members is *people.People, as far as tokens need it.
type Members interface {
	// Standing is what a person may in an organisation, restricted to which tags, since when (the membership's), and the
	// version of that; ok is false for one who doesn't belong to it.
	Standing(ctx context.Context, org, person string) (may []optionsv1.Permission, tags scope.Tags, since int64, version uint64, ok bool, err error)
	// Within is what of permissions is left to who is restricted to tags.
	Within(permissions []optionsv1.Permission, tags scope.Tags) []optionsv1.Permission
}

var _ Authenticator = Tokens{}

// Authenticate implements Authenticator: one round trip to Redis, two for a personal token.
func (t Tokens) Authenticate(ctx context.Context, credential string) (Principal, error) {
	token, err := t.Orgs.Token(ctx, credential)
	switch {
	case errors.Is(err, orgs.ErrMalformed), errors.Is(err, orgs.ErrUnknownToken), errors.Is(err, orgs.ErrAPITokenExpired):
		return Principal{}, fmt.Errorf("%w: %w", ErrBadCredential, err)
	case err != nil:
		return Principal{}, err
	}
	p, err := t.principal(ctx, token)
	if err != nil {
		return Principal{}, err
	}
	if err := t.Orgs.NoteUse(ctx, token, Address(ctx), time.Now()); err != nil {
		// It is a note for people, and no reason to refuse.
		logger := t.Logger
		if logger == nil {
			logger = slog.Default()
		}
		logger.WarnContext(ctx, "the use of an API token is not noted", slog.String("token", token.ID), slog.Any("error", err))
	}
	return p, nil
}

// Again is what Authenticate would return for the token with this id, now: whether who once called with it still may.
func (t Tokens) Again(ctx context.Context, org, id string) (Principal, error) {
	token, err := t.Orgs.FindToken(ctx, org, id)
	if errors.Is(err, orgs.ErrNotFound) || err == nil && token.Expires > 0 && time.Now().UnixMilli() >= token.Expires {
		return Principal{}, fmt.Errorf("%w: %w", ErrBadCredential, orgs.ErrUnknownToken)
	}
	if err != nil {
		return Principal{}, err
	}
	return t.principal(ctx, token)
}

// principal is who calls with a token.
func (t Tokens) principal(ctx context.Context, token orgs.Token) (Principal, error) {
	p := Principal{
		Org: token.Org, ID: token.ID, Name: token.Name, Permissions: token.Permissions, Tags: token.Tags,
		Token: Token{ID: token.ID, Name: token.Name, Maker: token.Maker, Expires: token.Expires},
	}
	if token.Person != "" {
		if err := t.asPerson(ctx, token, &p); err != nil {
			return Principal{}, err
		}
	}
	if t.Members != nil {
		p.Permissions = t.Members.Within(p.Permissions, p.Tags)
	}
	return p, nil
}

// asPerson makes p act as the person whose token it is, with no more than the person has now.
func (t Tokens) asPerson(ctx context.Context, token orgs.Token, p *Principal) error {
	if t.Members == nil {
		return fmt.Errorf("%w: nobody's token", ErrBadCredential)
	}
	may, tags, since, version, ok, err := t.Members.Standing(ctx, token.Org, token.Person)
	if err != nil {
		return err
	}
	// Who left and came back made no token since.
	if !ok || since != token.Since {
		return fmt.Errorf("%w: %w: whose it is left the organisation", ErrBadCredential, orgs.ErrUnknownToken)
	}
	both, ok := token.Tags.Narrow(tags)
	if !ok {
		return fmt.Errorf("%w: %w: no tag of it is one of its person's any more", ErrBadCredential, orgs.ErrUnknownToken)
	}
	p.ID, p.Name, p.Tags = token.Person, token.Email, both
	p.Token.Person, p.Token.Version = token.Person, version
	p.Permissions = slices.DeleteFunc(slices.Clone(token.Permissions), func(has optionsv1.Permission) bool { return !slices.Contains(may, has) })
	return nil
}

type principalKey struct{}

// With puts the caller in the context: the Interceptor does it for handlers, tests do it for what handlers call.
func With(ctx context.Context, p Principal) context.Context {
	return context.WithValue(ctx, principalKey{}, p)
}

// From is the caller that the Interceptor let through; false where the RPC asks for no principal.
func From(ctx context.Context) (Principal, bool) {
	p, ok := ctx.Value(principalKey{}).(Principal)
	return p, ok
}

type addressKey struct{}

// WithAddress puts the caller's address in the context.
func WithAddress(ctx context.Context, addr netip.Addr) context.Context {
	return context.WithValue(ctx, addressKey{}, addr)
}

// Address is where the call came from, as Options.ClientAddr says; the zero Addr where that isn't known.
func Address(ctx context.Context) netip.Addr {
	addr, _ := ctx.Value(addressKey{}).(netip.Addr)
	return addr
}

// PermissionOf reads what an RPC asks of its caller; an error if it declares nothing, or nothing this build knows.
func PermissionOf(method protoreflect.MethodDescriptor) (optionsv1.Permission, error) {
	options, ok := method.Options().(*descriptorpb.MethodOptions)
	if !ok || !proto.HasExtension(options, optionsv1.E_Permission) {
		return 0, fmt.Errorf("%s declares no permission: add option (fleetban.v1.permission)", method.FullName())
	}
	permission, _ := proto.GetExtension(options, optionsv1.E_Permission).(optionsv1.Permission)
	if _, known := optionsv1.Permission_name[int32(permission)]; !known || permission == optionsv1.Permission_PERMISSION_UNSPECIFIED {
		return 0, fmt.Errorf("%s declares the permission %d, which means nothing", method.FullName(), permission)
	}
	return permission, nil
}

// procedures maps each RPC of the services, by its path, to what it asks.
func procedures(services []protoreflect.ServiceDescriptor) (map[string]optionsv1.Permission, error) {
	table := make(map[string]optionsv1.Permission)
	var errs []error
	for _, service := range services {
		for i := range service.Methods().Len() {
			method := service.Methods().Get(i)
			permission, err := PermissionOf(method)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			table[fmt.Sprintf("/%s/%s", service.FullName(), method.Name())] = permission
		}
	}
	return table, errors.Join(errs...)
}
