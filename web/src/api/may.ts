import { Role } from "@/gen/fleetban/operator/v1/people_pb";
import { useSession } from "./session";

// What a role may do, so that a page doesn't offer what the API would refuse. The API decides; the table of
// controlplane/internal/people/roles.go is the source, and a browser test holds the two together.

export type Act = "ban" | "allow" | "policy" | "hosts" | "audit" | "members" | "settings" | "approvalPolicy";

const allowed: Record<Act, Role[]> = {
  ban: [Role.OWNER, Role.ADMIN, Role.OPERATOR],
  allow: [Role.OWNER, Role.ADMIN, Role.OPERATOR],
  policy: [Role.OWNER, Role.ADMIN, Role.OPERATOR],
  hosts: [Role.OWNER, Role.ADMIN],
  audit: [Role.OWNER, Role.ADMIN],
  members: [Role.OWNER, Role.ADMIN],
  settings: [Role.OWNER, Role.ADMIN],
  approvalPolicy: [Role.OWNER],
};

export function useMay(): (act: Act) => boolean {
  const session = useSession();
  const role = session.state === "in" ? session.person.role : Role.UNSPECIFIED;
  return (act) => allowed[act].includes(role);
}
