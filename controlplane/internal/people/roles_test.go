package people

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	optionsv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/options/v1"
)

var update = flag.Bool("update", false, "write testdata anew: review what changes")

// Each RPC of people's services × each role, as it follows from the protos and the one table. The file is reviewed: who
// may do something new, or something more, shows in its diff.
func TestMatrix(t *testing.T) {
	t.Parallel()
	roles := []Role{Owner, Admin, Operator, Viewer}
	var lines []string
	protoregistry.GlobalFiles.RangeFilesByPackage("fleetban.operator.v1", func(file protoreflect.FileDescriptor) bool {
		for i := range file.Services().Len() {
			methods := file.Services().Get(i).Methods()
			for j := range methods.Len() {
				method := methods.Get(j)
				permission, _ := proto.GetExtension(method.Options(), optionsv1.E_Permission).(optionsv1.Permission)
				line := fmt.Sprintf("%-36s %-16s", file.Services().Get(i).Name()+"."+method.Name(),
					strings.ToLower(strings.TrimPrefix(permission.String(), "PERMISSION_")))
				for _, role := range roles {
					may := "-"
					switch {
					case permission == optionsv1.Permission_PERMISSION_NONE:
						may = "anyone"
					case slices.Contains(Permissions(role), permission):
						may = strings.ToLower(strings.TrimPrefix(role.String(), "ROLE_"))
					}
					line += fmt.Sprintf(" %-8s", may)
				}
				// Whether it asks for a proof that is new.
				if proof, _ := proto.GetExtension(method.Options(), optionsv1.E_Proof).(bool); proof {
					line += " proof"
				}
				lines = append(lines, strings.TrimRight(line, " "))
			}
		}
		return true
	})
	slices.Sort(lines)
	got, path := strings.Join(lines, "\n")+"\n", filepath.Join("testdata", "matrix")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil || string(want) != got {
		t.Errorf("who may do what changed (go test -update writes it; review it): %v\n--- got\n%s--- want\n%s", err, got, want)
	}
	if len(Permissions(0)) != 0 || len(Permissions(99)) != 0 {
		t.Error("a role that isn't grants something")
	}
}
