import { type Host, Presence } from "@/gen/fleetban/operator/v1/operator_pb";
import { Fail2banHealth_State, Inert } from "@/gen/fleetban/v1/agent_pb";
import { useFirst } from "@/i18n";
import { Badge, type Tone } from "./badge";

export type HostStateName = "online" | "behind" | "inert" | "paused" | "off" | "observe" | "degraded" | "offline" | "new" | "quarantined" | "disabled";

/** hostState is a host in one word: the worst that is true of it. */
export function hostState(h: Host): { name: HostStateName; tone: Tone } {
  switch (h.presence) {
    case Presence.QUARANTINED:
      return { name: "quarantined", tone: "bad" };
    case Presence.DISABLED:
      return { name: "disabled", tone: "none" };
    case Presence.OFFLINE:
      return { name: "offline", tone: "warn" };
    case Presence.NEW:
      return { name: "new", tone: "info" };
    default:
  }
  switch (h.inert) {
    case Inert.UNABLE:
    case Inert.PROXIED:
      return { name: "inert", tone: "bad" };
    case Inert.OFF:
      return { name: "off", tone: "warn" };
    case Inert.OBSERVE:
      return { name: "observe", tone: "info" };
    case Inert.PAUSED:
      return { name: "paused", tone: "warn" };
    default:
  }
  const f = h.health?.fail2ban;
  if (f && f.state !== Fail2banHealth_State.UP && f.state !== Fail2banHealth_State.UNSPECIFIED) return { name: "degraded", tone: "warn" };
  if (h.sets.some((s) => s.acknowledged < s.current)) return { name: "behind", tone: "info" };
  return { name: "online", tone: "ok" };
}

export function HostBadge({ host }: { host: Host }) {
  const { t } = useFirst();
  const state = hostState(host);
  return (
    <Badge tone={state.tone} dot>
      {t.hostStates[state.name]}
    </Badge>
  );
}
