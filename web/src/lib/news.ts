import { type FleetEvent, FleetEventKind } from "@/gen/fleetban/operator/v1/operator_pb";

/** changedBy says whose events change what is banned: only those of the person with this email address, or others' too. */
export function changedBy(events: readonly Pick<FleetEvent, "kind" | "actor">[], email: string): "self" | "others" | undefined {
  const changes = events.filter((e) => e.kind === FleetEventKind.BANNED || e.kind === FleetEventKind.UNBANNED);
  if (changes.length === 0) return undefined;
  return email !== "" && changes.every((e) => e.actor === email) ? "self" : "others";
}
