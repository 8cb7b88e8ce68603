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
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	"github.com/fleetban/fleetban/controlplane/internal/orgs"
	optionsv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/options/v1"
)

// Principal is an authenticated caller of the operator API.
type Principal struct {
	Org string
	// ID is stable and unique in the organisation; Name is what people read.
	ID, Name    string
	Permissions []optionsv1.Permission
}

// May reports whether the caller holds p.
func (p Principal) May(permission optionsv1.Permission) bool {
	return slices.Contains(p.Permissions, permission)
}

// Authenticator finds whose credential this is. API tokens are the first implementation; sessions of accounts will be
// the second. It returns ErrBadCredential (wrapped, with what is wrong) or an error of the store, never a Principal and an error.
type Authenticator interface {
	Authenticate(ctx context.Context, credential string) (Principal, error)
}

// ErrBadCredential is wrapped by every refusal of a credential.
var ErrBadCredential = errors.New("bad credential")

// Tokens authenticates API tokens.
type Tokens struct{ Orgs *orgs.Orgs }

var _ Authenticator = Tokens{}

// Authenticate implements Authenticator.
func (t Tokens) Authenticate(ctx context.Context, credential string) (Principal, error) {
	token, err := t.Orgs.Token(ctx, credential)
	switch {
	case errors.Is(err, orgs.ErrMalformed), errors.Is(err, orgs.ErrUnknownToken):
		return Principal{}, fmt.Errorf("%w: %w", ErrBadCredential, err)
	case err != nil:
		return Principal{}, err
	}
	return Principal{Org: token.Org, ID: token.ID, Name: token.Name, Permissions: token.Permissions}, nil
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
