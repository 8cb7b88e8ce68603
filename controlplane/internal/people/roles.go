package people

import (
	"slices"

	"github.com/fleetban/fleetban/controlplane/internal/scope"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	optionsv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/options/v1"
)

// Role is what a member may do.
type Role = operatorv1.Role

// The roles.
const (
	Owner    = operatorv1.Role_ROLE_OWNER
	Admin    = operatorv1.Role_ROLE_ADMIN
	Operator = operatorv1.Role_ROLE_OPERATOR
	Viewer   = operatorv1.Role_ROLE_VIEWER
)

// granted is the one table from role to permissions. What owners may do beside it, with other owners, is decided where
// members are changed. TestMatrix shows what follows of it for each RPC.
var granted = map[Role][]optionsv1.Permission{
	Owner: {
		optionsv1.Permission_PERMISSION_SELF, optionsv1.Permission_PERMISSION_FLEET_READ, optionsv1.Permission_PERMISSION_BANS_WRITE,
		optionsv1.Permission_PERMISSION_ALLOWLIST_WRITE, optionsv1.Permission_PERMISSION_POLICY_WRITE, optionsv1.Permission_PERMISSION_HOSTS_WRITE,
		optionsv1.Permission_PERMISSION_AUDIT_READ, optionsv1.Permission_PERMISSION_MEMBERS_READ, optionsv1.Permission_PERMISSION_MEMBERS_WRITE, optionsv1.Permission_PERMISSION_TOKENS_WRITE,
		optionsv1.Permission_PERMISSION_APPROVE, optionsv1.Permission_PERMISSION_APPROVAL_POLICY_WRITE,
	},
	Admin: {
		optionsv1.Permission_PERMISSION_SELF, optionsv1.Permission_PERMISSION_FLEET_READ, optionsv1.Permission_PERMISSION_BANS_WRITE,
		optionsv1.Permission_PERMISSION_ALLOWLIST_WRITE, optionsv1.Permission_PERMISSION_POLICY_WRITE, optionsv1.Permission_PERMISSION_HOSTS_WRITE,
		optionsv1.Permission_PERMISSION_AUDIT_READ, optionsv1.Permission_PERMISSION_MEMBERS_READ, optionsv1.Permission_PERMISSION_MEMBERS_WRITE, optionsv1.Permission_PERMISSION_TOKENS_WRITE,
		optionsv1.Permission_PERMISSION_APPROVE,
	},
	Operator: {
		optionsv1.Permission_PERMISSION_SELF, optionsv1.Permission_PERMISSION_FLEET_READ, optionsv1.Permission_PERMISSION_BANS_WRITE,
		optionsv1.Permission_PERMISSION_ALLOWLIST_WRITE, optionsv1.Permission_PERMISSION_POLICY_WRITE, optionsv1.Permission_PERMISSION_MEMBERS_READ,
		optionsv1.Permission_PERMISSION_APPROVE,
	},
	Viewer: {
		optionsv1.Permission_PERMISSION_SELF, optionsv1.Permission_PERMISSION_FLEET_READ, optionsv1.Permission_PERMISSION_MEMBERS_READ,
	},
}

// Permissions are what role grants; none where there is no such role. The slice is the caller's to read only.
func Permissions(role Role) []optionsv1.Permission { return slices.Clip(granted[role]) }

// scoped are the permissions that mean something for a part of the fleet. Who is restricted to tags has no other: what
// changes or shows the whole organisation is not theirs. One that is new isn't either until it is written here.
var scoped = []optionsv1.Permission{
	optionsv1.Permission_PERMISSION_SELF, optionsv1.Permission_PERMISSION_FLEET_READ, optionsv1.Permission_PERMISSION_BANS_WRITE,
	optionsv1.Permission_PERMISSION_HOSTS_WRITE, optionsv1.Permission_PERMISSION_MEMBERS_READ,
}

// Within is what of permissions is left to who is restricted to tags.
func Within(permissions []optionsv1.Permission, tags scope.Tags) []optionsv1.Permission {
	if tags.Whole() {
		return slices.Clip(permissions)
	}
	var out []optionsv1.Permission
	for _, p := range permissions {
		if slices.Contains(scoped, p) {
			out = append(out, p)
		}
	}
	return out
}
