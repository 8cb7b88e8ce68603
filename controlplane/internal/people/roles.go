package people

import (
	"slices"

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
		optionsv1.Permission_PERMISSION_AUDIT_READ, optionsv1.Permission_PERMISSION_MEMBERS_READ, optionsv1.Permission_PERMISSION_MEMBERS_WRITE,
	},
	Admin: {
		optionsv1.Permission_PERMISSION_SELF, optionsv1.Permission_PERMISSION_FLEET_READ, optionsv1.Permission_PERMISSION_BANS_WRITE,
		optionsv1.Permission_PERMISSION_ALLOWLIST_WRITE, optionsv1.Permission_PERMISSION_POLICY_WRITE, optionsv1.Permission_PERMISSION_HOSTS_WRITE,
		optionsv1.Permission_PERMISSION_AUDIT_READ, optionsv1.Permission_PERMISSION_MEMBERS_READ, optionsv1.Permission_PERMISSION_MEMBERS_WRITE,
	},
	Operator: {
		optionsv1.Permission_PERMISSION_SELF, optionsv1.Permission_PERMISSION_FLEET_READ, optionsv1.Permission_PERMISSION_BANS_WRITE,
		optionsv1.Permission_PERMISSION_ALLOWLIST_WRITE, optionsv1.Permission_PERMISSION_POLICY_WRITE, optionsv1.Permission_PERMISSION_MEMBERS_READ,
	},
	Viewer: {
		optionsv1.Permission_PERMISSION_SELF, optionsv1.Permission_PERMISSION_FLEET_READ, optionsv1.Permission_PERMISSION_MEMBERS_READ,
	},
}

// Permissions are what role grants; none where there is no such role. The slice is the caller's to read only.
func Permissions(role Role) []optionsv1.Permission { return slices.Clip(granted[role]) }
