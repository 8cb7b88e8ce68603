package auth

import (
	"fmt"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/fleetban/fleetban/controlplane/internal/apierr"
	optionsv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/options/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// Scoped reports whether callers who are restricted to tags can use an RPC: it says so (option fleetban.options.v1.scoped),
// for its code keeps to them, or its permission is about no host at all. One that says nothing is refused to them.
func Scoped(method protoreflect.MethodDescriptor) bool {
	switch permission, _ := proto.GetExtension(method.Options(), optionsv1.E_Permission).(optionsv1.Permission); permission {
	case optionsv1.Permission_PERMISSION_NONE, optionsv1.Permission_PERMISSION_HOST, optionsv1.Permission_PERMISSION_SELF,
		optionsv1.Permission_PERMISSION_MEMBERS_READ:
		return true
	default:
		scoped, _ := proto.GetExtension(method.Options(), optionsv1.E_Scoped).(bool)
		return scoped
	}
}

func unscopedOf(services []protoreflect.ServiceDescriptor) map[string]bool {
	out := make(map[string]bool)
	for _, service := range services {
		for i := range service.Methods().Len() {
			if method := service.Methods().Get(i); !Scoped(method) {
				out[fmt.Sprintf("/%s/%s", service.FullName(), method.Name())] = true
			}
		}
	}
	return out
}

func beyondTags(p Principal) error {
	return apierr.New(connect.CodePermissionDenied, fleetbanv1.Reason_REASON_PERMISSION_DENIED, "",
		quote(p.Name)+" may not do this: it is about more than the hosts with "+strings.Join(p.Tags.Strings(), " or "),
		"ask somebody who isn't restricted to tags")
}
