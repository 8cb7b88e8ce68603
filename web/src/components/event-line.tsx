import { type FleetEvent, FleetEventKind as Kind } from "@/gen/fleetban/operator/v1/operator_pb";
import { useFirst } from "@/i18n";
import { clock, exact } from "@/lib/time";
import { visible } from "@/lib/visible";
import { AddressLink, HostLink } from "./address-link";
import { Badge, type Tone } from "./badge";

const tones: Partial<Record<Kind, Tone>> = {
  [Kind.BANNED]: "bad",
  [Kind.UNBANNED]: "ok",
  [Kind.ALLOWED]: "ok",
  [Kind.PAUSED]: "warn",
  [Kind.HOST_OFFLINE]: "warn",
  [Kind.HOST_CLONED]: "bad",
  [Kind.HOST_ONLINE]: "ok",
  [Kind.HOST_ENROLLED]: "info",
  [Kind.NOTICE]: "info",
};

/** EventLine is one thing that happened, in one line; on a phone in as many as it takes. */
export function EventLine({ event }: { event: FleetEvent }) {
  const { t, locale } = useFirst();
  const at = Number(event.atUnixMs);
  return (
    <li className="flex min-w-0 items-baseline gap-x-2.5 gap-y-0.5 px-4 py-1.5 max-sm:flex-wrap">
      <time dateTime={new Date(at).toISOString()} title={exact(at, locale)} className="shrink-0 font-mono text-xs text-soft tabular-nums">
        {clock(at, locale)}
      </time>
      {/* As wide as the longest kind: what follows begins in one column. */}
      <span className="shrink-0 max-sm:contents sm:w-36">
        <Badge tone={tones[event.kind] ?? "none"}>{t.eventKinds[event.kind]}</Badge>
      </span>
      <span className="min-w-0 break-words max-sm:basis-full sm:flex-1 sm:truncate">
        {event.prefix && <AddressLink of={event.prefix} />} {event.hostName && <HostLink name={event.hostName} />}
        {event.jail && <span className="text-soft"> {visible(event.jail, 64)}</span>}
        {event.actor && <span> {t.event.by(visible(event.actor, 80))}</span>}
        {event.unpromoted !== 0 && <span className="text-soft"> · {t.unpromoted[event.unpromoted]}</span>}
        {event.reason && <span className="text-soft"> · {visible(event.reason, 200)}</span>}
      </span>
    </li>
  );
}
