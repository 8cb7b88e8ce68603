import { useQuery } from "@connectrpc/connect-query";
import { keepPreviousData } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import { CircleCheck, Server } from "lucide-react";
import { lazy, type ReactNode, Suspense, useEffect, useMemo, useRef, useState } from "react";
import { useLive } from "@/api/live";
import { useMay } from "@/api/may";
import { useWaiting } from "@/api/waiting";
import { AddButton } from "@/components/add-button";
import { EventLine } from "@/components/event-line";
import { AddressLink, HostLink } from "@/components/address-link";
import { Empty, Waiting } from "@/components/empty";
import { hostState } from "@/components/host-state";
import { Page, Panel } from "@/components/panel";
import { ProblemNote } from "@/components/problem";
import { type GetActivityResponse, InsightService, type Tally } from "@/gen/fleetban/operator/v1/insight_pb";
import { type FleetEvent, FleetService, type Host, HostService } from "@/gen/fleetban/operator/v1/operator_pb";
import { useNumber, useFirst } from "@/i18n";
import { later } from "@/lib/later";
import { visible } from "@/lib/visible";

const Chart = lazy(later(() => import("@/components/chart").then((m) => ({ default: m.Chart }))));

/** Overview answers: are my hosts all right, what is hitting us now, is it blocked everywhere. */
export function Overview() {
  const { t } = useFirst();
  const number = useNumber();
  const fleet = useQuery(FleetService.method.getFleet, {}, { refetchInterval: 15_000 });
  const hosts = useQuery(HostService.method.listHosts, { pageSize: 1000 }, { refetchInterval: 5_000 });
  const activity = useQuery(InsightService.method.getActivity, { windowS: 3600 }, { refetchInterval: 5_000, placeholderData: keepPreviousData });
  const live = useLive();
  const may = useMay();
  const all = hosts.data?.hosts ?? [];
  const f = fleet.data;
  const waiting = all.flatMap((h) => needs(h).map((what) => ({ host: h, what })));
  const approvals = useWaiting();
  const paused = f !== undefined && Number(f.pausedUntilUnixMs) > Date.now();
  const attention = waiting.length + (approvals > 0 ? 1 : 0) + (paused ? 1 : 0);
  const minute = activity.data?.buckets.at(-1)?.banned ?? 0;

  if (hosts.isSuccess && all.length === 0)
    return (
      <Page title={t.pages.overview}>
        <Panel>
          <Empty icon={<Server size={24} aria-hidden />} title={t.overview.emptyTitle} action={may("hosts") ? <AddButton /> : undefined}>
            {t.overview.empty}
          </Empty>
        </Panel>
      </Page>
    );
  return (
    <Page title={f ? visible(f.organisationName, 60) : t.pages.overview} lead={f && t.modeLine[f.mode]} coming={fleet.isPending}>
      <ProblemNote error={fleet.error ?? hosts.error} retry={() => void Promise.all([fleet.refetch(), hosts.refetch()])} />
      <ul className="grid grid-cols-2 gap-3 lg:grid-cols-4">
        <Figure name={t.overview.hosts} to="/hosts" value={f ? `${number(f.hostsOnline)} / ${number(f.hosts)}` : "…"} note={t.overview.online} tone={f && f.hostsOnline < f.hosts ? "text-warn" : ""} />
        <Figure name={t.overview.bans} to="/bans" value={f ? number(f.bans) : "…"} note={t.overview.inForce} />
        <Figure name={t.overview.rate} to="/bans" value={activity.data ? number(minute) : "…"} note={t.overview.lastMinute} />
        <Figure name={t.overview.attention} to="/hosts" value={number(attention)} note={attention === 0 ? t.overview.allWell : t.overview.needsYou} tone={attention > 0 ? "text-warn" : "text-ok"} />
      </ul>
      <HostStrip hosts={all} />
      <div className="grid gap-4 lg:grid-cols-3">
        <div className="flex min-w-0 flex-col gap-4 lg:col-span-2">
          <Panel id="rate" title={t.overview.rateTitle}>
            {activity.data ? <Rate of={activity.data} /> : <Waiting />}
          </Panel>
          <Panel id="feed" title={t.overview.feed} flush>
            {live.events.length === 0 ? (
              <p className="p-4 text-soft">{t.overview.quiet}</p>
            ) : (
              <Feed events={live.events} />
            )}
          </Panel>
        </div>
        <div className="flex min-w-0 flex-col gap-4">
          <Panel id="attention" title={t.overview.attentionTitle} flush>
            {attention === 0 ? (
              <p className="flex items-center gap-2 p-4 text-soft">
                <CircleCheck size={16} className="text-ok" aria-hidden /> {t.overview.nothingToDo}
              </p>
            ) : (
              <ul className="divide-y divide-line">
                {approvals > 0 && (
                  <li className="px-4 py-2">
                    <Link to="/approvals" className="text-accent hover:underline">
                      {t.overview.approvals(approvals)}
                    </Link>
                  </li>
                )}
                {paused && (
                  <li className="px-4 py-2">
                    <Link to="/policy" className="text-accent hover:underline">
                      {t.overview.paused}
                    </Link>
                  </li>
                )}
                {waiting.slice(0, 12).map(({ host, what }) => (
                  <li key={host.hostId + what} className="flex flex-wrap gap-x-2 px-4 py-2">
                    <HostLink name={host.name} /> <span className="break-words">{visible(what, 300)}</span>
                  </li>
                ))}
                {waiting.length > 12 && (
                  <li className="px-4 py-2">
                    <Link to="/hosts" search={{ state: "attention" }} className="text-accent hover:underline">
                      {t.overview.more(waiting.length - 12)}
                    </Link>
                  </li>
                )}
              </ul>
            )}
          </Panel>
          <Top title={t.overview.topJails} of={activity.data?.jails} row={(tally) => <Link to="/bans" search={{ jail: tally.name }} className="text-accent hover:underline">{visible(tally.name, 60)}</Link>} />
          <Top title={t.overview.topAddresses} of={activity.data?.addresses} row={(tally) => <AddressLink of={tally.name} />} />
          <Top title={t.overview.topHosts} of={activity.data?.hosts} row={(tally) => <HostLink name={tally.name} />} />
        </div>
      </div>
    </Page>
  );

  function needs(h: Host): string[] {
    const state = hostState(h);
    const out = state.tone === "warn" || state.tone === "bad" ? [t.hostStates[state.name]] : [];
    for (const finding of h.health?.findings ?? []) if (finding.severity >= 2) out.push(finding.problem);
    return out;
  }
}

/** How long the feed stands still after the pointer last moved over it, milliseconds. */
const stillFor = 3_000;

/** Feed is what happens, newest first. It stands still while a pointer moves over it: nothing moves that somebody is about to press. */
function Feed({ events }: { events: readonly FleetEvent[] }) {
  const { t } = useFirst();
  const [held, setHeld] = useState<readonly FleetEvent[]>();
  const timer = useRef<ReturnType<typeof setTimeout>>(undefined);
  const go = () => {
    clearTimeout(timer.current);
    setHeld(undefined);
  };
  const hold = () => {
    clearTimeout(timer.current);
    timer.current = setTimeout(go, stillFor);
    setHeld((old) => old ?? events);
  };
  useEffect(() => () => clearTimeout(timer.current), []);
  const newer = held ? events.findIndex((e) => e.id === held[0]?.id) : 0;
  return (
    <div className="relative">
      <ul
        className="max-h-96 divide-y divide-line overflow-y-auto"
        tabIndex={0}
        aria-label={t.overview.feed}
        onPointerMove={(e) => {
          // A browser also tells of a pointer that rests where the page moved beneath it.
          if (e.pointerType === "mouse" && (e.movementX !== 0 || e.movementY !== 0)) hold();
        }}
        onPointerLeave={go}
      >
        {(held ?? events).slice(0, 60).map((e) => (
          <EventLine key={e.id} event={e} />
        ))}
      </ul>
      {newer > 0 && (
        <p aria-hidden className="pointer-events-none absolute top-1 right-4 rounded-full bg-accent-soft px-2 py-0.5 text-xs text-accent">
          {t.overview.newer(newer)}
        </p>
      )}
    </div>
  );
}

function Figure({ name, value, note, to, tone = "" }: { name: string; value: string; note: string; to: "/hosts" | "/bans"; tone?: string }) {
  return (
    <li>
      <Link to={to} className="block h-full rounded-lg border border-line bg-surface px-4 py-3 hover:border-line-strong">
        <span className="block text-[13px] text-soft">{name}</span>
        <span className={`block text-2xl font-semibold tabular-nums ${tone}`}>{value}</span>
        <span className="block text-[13px] text-soft">{note}</span>
      </Link>
    </li>
  );
}

/** As many hosts have their names shown; more are squares. */
const named = 16;

/** HostStrip is each host, at a glance whether all are well: by name where they are few. */
function HostStrip({ hosts }: { hosts: Host[] }) {
  const { t } = useFirst();
  const shades = { ok: "bg-ok", warn: "bg-warn", bad: "bg-bad", info: "bg-accent", none: "bg-line-strong" };
  if (hosts.length === 0) return null;
  return (
    <ul aria-label={t.overview.strip} className="flex flex-wrap gap-1.5">
      {hosts.slice(0, 400).map((h) => {
        const state = hostState(h);
        const label = `${visible(h.name, 80)}: ${t.hostStates[state.name]}`;
        return (
          <li key={h.hostId}>
            {hosts.length <= named ? (
              <Link to="/hosts/$host" params={{ host: h.name }} title={label} aria-label={label} className="flex max-w-48 items-center gap-2 rounded-md border border-line bg-surface px-2.5 py-1 hover:border-line-strong">
                <span className={`size-2.5 shrink-0 rounded-full ${shades[state.tone]}`} aria-hidden />
                <span className="truncate text-[13px]">{visible(h.name, 40)}</span>
              </Link>
            ) : (
              <Link to="/hosts/$host" params={{ host: h.name }} title={label} aria-label={label} className={`block size-6 rounded ${shades[state.tone]} opacity-80 hover:opacity-100`} />
            )}
          </li>
        );
      })}
    </ul>
  );
}

function toTheEnd(values: number[]): number[] {
  return [...values, values.at(-1) ?? 0];
}

function Rate({ of }: { of: GetActivityResponse }) {
  const { t, locale } = useFirst();
  // One more than there are: the last bucket has a width, too.
  const times = useMemo(() => Array.from({ length: of.buckets.length + 1 }, (_, i) => (Number(of.fromUnixMs) + i * Number(of.stepMs)) / 1000), [of]);
  const series = useMemo(
    () => [
      { name: t.overview.observed, colour: "--accent", values: toTheEnd(of.buckets.map((b) => b.observed)) },
      { name: t.overview.banned, colour: "--bad", values: toTheEnd(of.buckets.map((b) => b.banned)) },
    ],
    [of, t],
  );
  const sums = of.buckets.reduce((sum, b) => ({ observed: sum.observed + b.observed, banned: sum.banned + b.banned }), { observed: 0, banned: 0 });
  const label = t.overview.rateLabel(sums.observed, sums.banned);
  return (
    <>
      <div className="mb-2 flex flex-wrap gap-4 text-[13px]">
        {series.map((s) => (
          <span key={s.name} className="flex items-center gap-1.5">
            <span className="h-2.5 w-2.5 rounded-sm" style={{ background: `var(${s.colour})` }} aria-hidden />
            {s.name}
          </span>
        ))}
        {of.keptSinceUnixMs > 0n && (
          <span className="text-soft">{t.overview.keptSince(new Intl.DateTimeFormat(locale, { timeStyle: "short" }).format(Number(of.keptSinceUnixMs)))}</span>
        )}
      </div>
      <Suspense fallback={<div className="h-45" />}>
        <Chart label={label} times={times} series={series} theme={document.documentElement.dataset.theme ?? "light"} locale={locale} />
      </Suspense>
    </>
  );
}

function Top({ title, of, row }: { title: string; of: Tally[] | undefined; row: (tally: Tally) => ReactNode }) {
  const number = useNumber();
  if (!of || of.length === 0) return null;
  const most = Number(of[0]?.count ?? 1n);
  return (
    <Panel title={title} flush>
      <ol className="py-1">
        {of.slice(0, 6).map((tally) => (
          <li key={tally.name} className="relative flex items-center justify-between gap-3 px-4 py-1.5">
            <span aria-hidden className="absolute inset-y-1 left-2 rounded bg-accent-soft" style={{ width: `calc((100% - 1rem) * ${Number(tally.count) / most})` }} />
            <span className="relative min-w-0 truncate">{row(tally)}</span>
            <span className="relative tabular-nums">{number(tally.count)}</span>
          </li>
        ))}
      </ol>
    </Panel>
  );
}
