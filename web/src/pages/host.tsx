import { useQuery } from "@connectrpc/connect-query";
import { getRouteApi, Link } from "@tanstack/react-router";
import { useMemo } from "react";
import { useLive } from "@/api/live";
import { useMay } from "@/api/may";
import { useSession } from "@/api/session";
import { AddressLink } from "@/components/address-link";
import { Badge, type Tone } from "@/components/badge";
import { Empty, Waiting } from "@/components/empty";
import { EventLine } from "@/components/event-line";
import { HostBadge } from "@/components/host-state";
import { Facts, Page, Panel } from "@/components/panel";
import { ProblemNote } from "@/components/problem";
import { type Columns, Table } from "@/components/table";
import { Time } from "@/components/time";
import { InsightService, BanOrder } from "@/gen/fleetban/operator/v1/insight_pb";
import { type FleetBan, type Host, type HostCommand, HostService, type SetProgress } from "@/gen/fleetban/operator/v1/operator_pb";
import { EventSource, Fail2banHealth_State, type Finding, Inert, Finding_Severity, type JailHealth, type SetException } from "@/gen/fleetban/v1/agent_pb";
import { useNumber, useText } from "@/i18n";
import { duration } from "@/lib/time";
import { prefixOfBytes } from "@/lib/packed";
import { visible } from "@/lib/visible";
import { HostActions } from "./host-actions";

const route = getRouteApi("/inside/hosts/$host");

/** HostPage is one host: whether it is well, what it enforces, what it sees. */
export function HostPage() {
  const { t } = useText();
  const may = useMay();
  const name = route.useParams().host;
  const session = useSession();
  const answer = useQuery(HostService.method.getHost, { host: name }, { refetchInterval: 3_000 });
  const h = answer.data?.host;
  if (!h)
    return (
      <Page title={visible(name, 80)}>
        {answer.error ? <ProblemNote error={answer.error} retry={() => void answer.refetch()} /> : <Waiting rows={8} />}
      </Page>
    );
  return (
    <Page
      title={visible(h.name, 80)}
      lead={
        <span className="flex flex-wrap items-center gap-2">
          <HostBadge host={h} />
          <span>
            {t.host.since} <Time ms={h.sinceUnixMs} />
          </span>
          {h.cause && <span>· {visible(h.cause, 200)}</span>}
        </span>
      }
      actions={
        may("hosts") && <HostActions host={h} tagged={session.state !== "in" || session.person.tags.length > 0} />
      }
    >
      <ProblemNote error={answer.error} />
      <Findings of={h.health?.findings ?? []} />
      <div className="grid gap-4 lg:grid-cols-2">
        <div className="flex min-w-0 flex-col gap-4">
          <Panel id="receipts" title={t.host.receipts} flush>
            <Receipts of={h.sets} />
          </Panel>
          <Panel id="capabilities" title={t.host.capabilities} flush>
            <Capabilities host={h} />
          </Panel>
        </div>
        <Panel id="facts" title={t.host.facts}>
          <HostFacts host={h} />
        </Panel>
      </div>
      <Panel id="jails" title={t.host.jails} flush>
        <Jails of={h.health?.fail2ban?.jails ?? []} host={h.name} />
      </Panel>
      {h.exceptions.length > 0 && (
        <Panel id="exceptions" title={t.host.exceptions(h.exceptionsTotal)} flush>
          <Exceptions of={h.exceptions} />
        </Panel>
      )}
      <Reported host={h.name} />
      <Commands host={h.name} />
      <Events host={h} />
    </Page>
  );
}

function Findings({ of }: { of: Finding[] }) {
  const { t } = useText();
  if (of.length === 0) return null;
  return (
    <Panel id="findings" title={t.host.findings} flush>
      <ul className="divide-y divide-line">
        {of.map((f) => (
          <li key={f.code} className="flex items-start gap-3 px-4 py-2.5">
            <Badge tone={f.severity === Finding_Severity.ERROR ? "bad" : f.severity === Finding_Severity.WARNING ? "warn" : "info"}>{t.severities[f.severity]}</Badge>
            <div className="min-w-0">
              <p className="break-words">{visible(f.problem, 500)}</p>
              {f.fix && <p className="break-words text-soft">{visible(f.fix, 500)}</p>}
            </div>
          </li>
        ))}
      </ul>
    </Panel>
  );
}

function Receipts({ of }: { of: SetProgress[] }) {
  const { t } = useText();
  const number = useNumber();
  if (of.length === 0) return <p className="p-4 text-soft">{t.host.noReceipts}</p>;
  return (
    <ul className="divide-y divide-line">
      {of.map((s) => (
        <li key={s.set} className="flex items-center justify-between gap-3 px-4 py-2">
          <span className="font-mono text-[13px]">{visible(s.set, 60)}</span>
          <span className="flex items-center gap-2 tabular-nums">
            {t.host.version(number(s.acknowledged), number(s.current))}
            <Badge tone={s.acknowledged >= s.current ? "ok" : "warn"}>{s.acknowledged >= s.current ? t.host.current : t.host.behind}</Badge>
          </span>
        </li>
      ))}
    </ul>
  );
}

/** Capabilities are what the host can do for the fleet, and what keeps it from the rest. */
function Capabilities({ host: h }: { host: Host }) {
  const { t } = useText();
  const number = useNumber();
  const health = h.health;
  if (!health) return <p className="p-4 text-soft">{t.host.noReceipts}</p>;
  const e = health.enforcer;
  const f = health.fail2ban;
  const inert = h.inert !== Inert.UNSPECIFIED;
  const up = f?.state === Fail2banHealth_State.UP;
  const rows: [string, Tone, string][] = [
    [t.host.canEnforce, inert ? "bad" : "ok", inert ? t.inert[h.inert] : t.host.enforcesBy(visible(e?.backend ?? "", 32))],
    [t.host.canSee, up ? "ok" : "bad", up ? t.host.seesBy(t.sources[f.source], number(f.delayMs)) : visible(f?.problem ?? "", 300)],
    [t.host.takesOrders, health.policyLevel === "observe" ? "warn" : "ok", t.policyLevels[health.policyLevel] ?? visible(health.policyLevel, 32)],
  ];
  if (e && e.repairs > 0n) rows.push([t.host.repairs, "warn", t.host.repairsLine(number(e.repairs))]);
  return (
    <ul className="divide-y divide-line">
      {rows.map(([name, tone, text]) => (
        <li key={name} className="flex flex-wrap items-baseline justify-between gap-x-3 px-4 py-2">
          <span>{name}</span>
          <Badge tone={tone} dot>
            <span className="whitespace-normal">{text}</span>
          </Badge>
        </li>
      ))}
    </ul>
  );
}

/** Reported are the latest bans of its jails that are in force. */
function Reported({ host }: { host: string }) {
  const { t } = useText();
  const number = useNumber();
  const answer = useQuery(InsightService.method.searchBans, { host, includeUnpromoted: true, order: BanOrder.SINCE, descending: true, pageSize: 5 }, { refetchInterval: 10_000 });
  const columns = useMemo<Columns<FleetBan>>(
    () => [
      { id: "prefix", header: t.bans.address, cell: ({ row }) => <AddressLink of={row.original.prefix} /> },
      { id: "jail", header: t.host.jail, cell: ({ row }) => visible([...new Set(row.original.claims.filter((c) => c.hostName === host).map((c) => c.jail))].join(", "), 120) },
      {
        id: "fleet",
        header: t.address.fleetwide,
        cell: ({ row: { original: b } }) => (b.expiresUnixMs > 0n ? <Badge tone="bad">{t.address.yes}</Badge> : <span className="text-soft">{t.bans.notFleet}</span>),
      },
      { id: "ends", header: t.bans.ends, cell: ({ row: { original: b } }) => <Time ms={b.expiresUnixMs || b.claims.reduce((most, c) => (c.expiresUnixMs > most ? c.expiresUnixMs : most), 0n)} /> },
    ],
    [t, host],
  );
  const rows = answer.data?.bans ?? [];
  if (rows.length === 0) return null;
  return (
    <Panel
      id="reported"
      title={t.host.reported}
      flush
      actions={
        <Link to="/bans" search={{ host, all: true }} className="text-accent hover:underline">
          {t.host.allReported(number(answer.data?.matching ?? 0n))}
        </Link>
      }
    >
      <Table label={t.host.reported} columns={columns} rows={rows} rowId={(b) => b.prefix} />
    </Panel>
  );
}

function HostFacts({ host: h }: { host: Host }) {
  const { t, locale } = useText();
  const number = useNumber();
  const f = h.facts;
  const health = h.health;
  return (
    <Facts
      of={[
        [t.host.machine, `${visible(f?.hostname ?? "", 80)} · ${visible(f?.os ?? "", 80)} · ${visible(f?.arch ?? "", 20)}`],
        [t.hosts.agent, visible(f?.agentVersion ?? "–", 64)],
        ["fail2ban", `${visible(health?.fail2ban?.version ?? "–", 64)}${health?.fail2ban?.problem ? ` · ${visible(health.fail2ban.problem, 300)}` : ""}`],
        [t.host.events, health?.fail2ban ? `${t.sources[health.fail2ban.source ?? EventSource.UNSPECIFIED]}, ≤ ${number(health.fail2ban.delayMs)} ms` : "–"],
        [t.host.enforcer, `${visible(health?.enforcer?.backend ?? "–", 32)} · ${t.host.enforced(number(health?.enforcer?.enforced ?? 0n), number(health?.enforcer?.refused ?? 0n))}`],
        [t.host.clock, h.clockOffsetMs === 0n ? t.host.clockRight : t.host.clockOff(number(h.clockOffsetMs))],
        [t.host.key, <Time key="k" ms={h.keySinceUnixMs} />],
        ...(h.ephemeralS > 0n ? [[t.host.ephemeral, t.host.ephemeralLine(duration(Number(h.ephemeralS), locale))] as [string, string]] : []),
        [t.host.spool, t.host.spoolLine(number(health?.spool?.waiting ?? 0n), number(health?.spool?.lost ?? 0n))],
        [t.hosts.tags, Object.entries(h.tags).map(([k, v]) => `${visible(k, 60)}=${visible(v, 60)}`).join(", ") || "–"],
        [t.host.enrolled, <Time key="e" ms={h.enrolledUnixMs} />],
        [t.hosts.seen, <Time key="s" ms={h.seenUnixMs} />],
        [t.host.replica, visible(h.replica || "–", 64)],
        ["ID", <code key="i" className="font-mono text-[13px]">{h.hostId}</code>],
      ]}
    />
  );
}

function Jails({ of, host }: { of: JailHealth[]; host: string }) {
  const { t } = useText();
  const number = useNumber();
  const columns = useMemo<Columns<JailHealth>>(
    () => [
      {
        id: "name",
        header: t.host.jail,
        cell: ({ row }) => (
          <Link to="/bans" search={{ jail: row.original.name, host }} className="text-accent hover:underline">
            {visible(row.original.name, 64)}
          </Link>
        ),
      },
      { id: "banned", header: t.host.bannedNow, cell: ({ row }) => number(row.original.banned) },
      { id: "total", header: t.host.bannedTotal, cell: ({ row }) => number(row.original.bannedTotal) },
      { id: "failed", header: t.host.failedNow, cell: ({ row }) => number(row.original.failed) },
      { id: "bantime", header: "bantime", cell: ({ row }) => (row.original.bantimeS < 0n ? t.common.forEver : t.common.seconds(number(row.original.bantimeS))) },
      { id: "findtime", header: "findtime", cell: ({ row }) => t.common.seconds(number(row.original.findtimeS)) },
      { id: "maxretry", header: "maxretry", cell: ({ row }) => number(row.original.maxretry) },
    ],
    [t, number, host],
  );
  if (of.length === 0) return <Empty title={t.host.noJails} />;
  return <Table label={t.host.jails} columns={columns} rows={of} rowId={(j) => j.name} />;
}

function Exceptions({ of }: { of: SetException[] }) {
  const { t } = useText();
  return (
    <ul className="divide-y divide-line">
      {of.slice(0, 100).map((e, i) => (
        <li key={i} className="flex justify-between gap-3 px-4 py-2">
          <AddressLink of={prefixOfBytes(e.prefix)} />
          <span className="text-soft">{t.refusals[e.refusal]}</span>
        </li>
      ))}
    </ul>
  );
}

function Commands({ host }: { host: string }) {
  const { t } = useText();
  const commands = useQuery(HostService.method.listCommands, { host }, { refetchInterval: 5_000 });
  const columns = useMemo<Columns<HostCommand>>(
    () => [
      { id: "at", header: t.host.issued, cell: ({ row }) => <Time ms={row.original.issuedUnixMs} /> },
      { id: "what", header: t.host.order, cell: ({ row }) => t.orders(row.original.command?.order.case ?? "") },
      { id: "actor", header: t.host.actor, cell: ({ row }) => visible(row.original.actor, 80) },
      { id: "result", header: t.host.result, cell: ({ row }) => t.outcomes[row.original.result?.outcome ?? 0] },
      { id: "message", header: t.host.message, cell: ({ row }) => <span className="text-soft">{visible(row.original.result?.message ?? "", 200)}</span> },
    ],
    [t],
  );
  const rows = commands.data?.commands ?? [];
  if (rows.length === 0) return null;
  return (
    <Panel id="commands" title={t.host.commands} flush>
      <Table label={t.host.commands} columns={columns} rows={rows} rowId={(c) => c.command?.commandId ?? ""} />
    </Panel>
  );
}

function Events({ host }: { host: Host }) {
  const { t } = useText();
  const live = useLive();
  const mine = live.events.filter((e) => e.hostId === host.hostId).slice(0, 50);
  if (mine.length === 0) return null;
  return (
    <Panel id="events" title={t.host.liveEvents} flush>
      <ul className="max-h-80 divide-y divide-line overflow-y-auto" tabIndex={0} aria-label={t.host.liveEvents}>
        {mine.map((e) => (
          <EventLine key={e.id} event={e} />
        ))}
      </ul>
    </Panel>
  );
}
