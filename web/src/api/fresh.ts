import { createConnectQueryKey } from "@connectrpc/connect-query";
import type { QueryKey } from "@tanstack/react-query";
import { type FleetEvent, AllowlistService, FleetEventKind as Kind, FleetService } from "@/gen/fleetban/operator/v1/operator_pb";
import { queries } from "./client";

const fleet: QueryKey = createConnectQueryKey({ schema: FleetService.method.getFleet, cardinality: undefined });
const allowlist: QueryKey = createConnectQueryKey({ schema: AllowlistService.method.listAllowed, cardinality: undefined });
const changes: Partial<Record<Kind, QueryKey>> = {
  [Kind.PAUSED]: fleet,
  [Kind.RESUMED]: fleet,
  [Kind.MODE]: fleet,
  [Kind.ALLOWED]: allowlist,
  [Kind.DISALLOWED]: allowlist,
};

/** refresh reads anew what these events changed: what somebody else does is seen at once, not at the next turn. */
export function refresh(events: readonly FleetEvent[]): void {
  for (const queryKey of new Set(events.map((e) => changes[e.kind]))) {
    // One that is under way may have read what was before, but a storm of events must not keep it from ever ending.
    if (queryKey) void queries.invalidateQueries({ queryKey }, { cancelRefetch: events.length < 20 });
  }
}
