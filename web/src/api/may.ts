import { Permission } from "@/gen/fleetban/options/v1/options_pb";
import { useSession } from "./session";

// What the session may do, as the control plane says it: a page doesn't offer what would be refused. It is refused there
// whatever a page offers.

const needs = {
  ban: Permission.BANS_WRITE,
  allow: Permission.ALLOWLIST_WRITE,
  policy: Permission.POLICY_WRITE,
  hosts: Permission.HOSTS_WRITE,
  audit: Permission.AUDIT_READ,
  membersRead: Permission.MEMBERS_READ,
  members: Permission.MEMBERS_WRITE,
  tokens: Permission.TOKENS_WRITE,
  approve: Permission.APPROVE,
  approvalPolicy: Permission.APPROVAL_POLICY_WRITE,
} as const;

export type Act = keyof typeof needs;

export function useMay(): (act: Act) => boolean {
  const session = useSession();
  const held = session.state === "in" ? session.person.permissions : [];
  return (act) => held.includes(needs[act]);
}
