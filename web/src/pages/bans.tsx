import { useInfiniteQuery } from "@connectrpc/connect-query";
import { keepPreviousData } from "@tanstack/react-query";
import { getRouteApi, useNavigate } from "@tanstack/react-router";
import { ArrowDown, ArrowUp, Ban, Download, X } from "lucide-react";
import { useCallback, useEffect, useMemo, useRef, useState } from "react";
import { useEvents } from "@/api/live";
import { useMay } from "@/api/may";
import { useSession } from "@/api/session";
import { AddressLink, HostLink } from "@/components/address-link";
import { Badge } from "@/components/badge";
import { BanDialog, UnbanDialog } from "@/components/ban-dialogs";
import { Button } from "@/components/button";
import { Empty, Waiting } from "@/components/empty";
import { TextField } from "@/components/field";
import { Page, Panel } from "@/components/panel";
import { ProblemNote } from "@/components/problem";
import { type Columns, LongTable } from "@/components/table";
import { Time } from "@/components/time";
import { BanOrder, InsightService } from "@/gen/fleetban/operator/v1/insight_pb";
import { type Claim, ClaimSource, type FleetBan } from "@/gen/fleetban/operator/v1/operator_pb";
import { useNumber, useText } from "@/i18n";
import { changedBy } from "@/lib/news";
import { visible } from "@/lib/visible";

const route = getRouteApi("/inside/bans");
/** What one call may name. */
const mostAtOnce = 1000;
const orders = { prefix: BanOrder.ADDRESS, expires: BanOrder.EXPIRES, since: BanOrder.SINCE } as const;

/** Bans is every ban in force: searched and sorted by the control plane, however many there are. */
export function Bans() {
  const { t } = useText();
  const number = useNumber();
  const may = useMay();
  const search = route.useSearch();
  const navigate = useNavigate({ from: "/bans" });
  const [chosen, setChosen] = useState<ReadonlySet<string>>(new Set());
  const [banning, setBanning] = useState(false);
  const [unbanning, setUnbanning] = useState<string[]>();
  const [stale, setStale] = useState(false);
  // What is typed is searched for at once, and the URL follows. It leads where it changes by itself: somebody goes back.
  const inUrl = search.q ?? "";
  const [text, setText] = useState(inUrl);
  const sent = useRef<string[]>([]);
  useEffect(() => {
    const at = sent.current.indexOf(inUrl);
    if (at < 0) setText(inUrl);
    else sent.current.splice(0, at + 1);
  }, [inUrl]);

  const answer = useInfiniteQuery(
    InsightService.method.searchBans,
    {
      text,
      jail: search.jail ?? "",
      host: search.host ?? "",
      actor: search.actor ?? "",
      includeUnpromoted: search.all ?? false,
      order: orders[search.sort ?? "since"],
      descending: !search.up,
      pageSize: 200,
      pageToken: "",
    },
    { pageParamKey: "pageToken", getNextPageParam: (last) => last.nextPageToken || undefined, placeholderData: keepPreviousData },
  );
  const { fetchNextPage, hasNextPage, isFetchingNextPage, refetch } = answer;
  const rows = useMemo(() => answer.data?.pages.flatMap((p) => p.bans) ?? [], [answer.data]);
  const first = answer.data?.pages[0];
  const more = useCallback(() => {
    if (hasNextPage && !isFetchingNextPage) void fetchNextPage();
  }, [hasNextPage, isFetchingNextPage, fetchNextPage]);

  // What somebody is about to press never moves by itself: the list says that it is no longer what is in force. What they
  // did themselves is no news: it shows at once.
  const session = useSession();
  const self = session.state === "in" ? session.person.email : "";
  useEvents(
    useCallback(
      (events) => {
        const whose = changedBy(events, self);
        if (whose === "others") setStale(true);
        else if (whose === "self") void refetch();
      },
      [self, refetch],
    ),
  );
  useEffect(() => setStale(false), [answer.dataUpdatedAt]);

  const set = useCallback((next: Partial<typeof search>) => void navigate({ search: (old) => ({ ...old, ...next }), replace: true }), [navigate]);
  const type = (next: string) => {
    setText(next);
    sent.current = next === inUrl ? [] : [...sent.current, next];
    set({ q: next || undefined });
  };
  const columns = useMemo<Columns<FleetBan>>(() => {
    const sortable = (name: keyof typeof orders, label: string) => (
      <SortHeader label={label} active={(search.sort ?? "since") === name} up={search.up ?? false} onPress={(up) => set({ sort: name, up: up || undefined })} />
    );
    const toggle = (prefix: string) =>
      setChosen((old) => {
        const next = new Set(old);
        if (!next.delete(prefix)) next.add(prefix);
        return next;
      });
    const all = rows.length > 0 && chosen.size >= Math.min(rows.length, mostAtOnce);
    return [
      {
        id: "choose",
        header: () =>
          may("ban") ? (
            <input
              type="checkbox"
              aria-label={t.bans.chooseAll}
              title={t.bans.chooseAll}
              className="block size-4 accent-(--accent)"
              ref={(box) => {
                if (box) box.indeterminate = chosen.size > 0 && !all;
              }}
              checked={all}
              onChange={(e) => setChosen(new Set(e.target.checked ? rows.slice(0, mostAtOnce).map((b) => b.prefix) : []))}
            />
          ) : (
            <span className="sr-only">{t.bans.choose}</span>
          ),
        cell: ({ row }) =>
          may("ban") ? (
            <input
              type="checkbox"
              aria-label={t.bans.chooseOne(row.original.prefix)}
              className="block size-4 accent-(--accent)"
              checked={chosen.has(row.original.prefix)}
              onChange={() => toggle(row.original.prefix)}
            />
          ) : null,
      },
      { id: "prefix", header: () => sortable("prefix", t.bans.address), cell: ({ row }) => <AddressLink of={row.original.prefix} /> },
      { id: "why", header: t.bans.why, cell: ({ row }) => <Why ban={row.original} /> },
      { id: "hosts", header: t.bans.seenBy, cell: ({ row }) => <SeenBy claims={row.original.claims} /> },
      { id: "since", header: () => sortable("since", t.bans.since), cell: ({ row }) => <Time ms={since(row.original)} /> },
      {
        id: "expires",
        header: () => sortable("expires", t.bans.ends),
        cell: ({ row }) => (row.original.expiresUnixMs === 0n ? <Badge>{t.bans.notFleet}</Badge> : <Time ms={row.original.expiresUnixMs} />),
      },
    ];
  }, [t, may, chosen, rows, search.sort, search.up, set]);

  const filters = [
    ["jail", search.jail],
    ["host", search.host],
    ["actor", search.actor],
  ] as const;
  return (
    <Page
      title={t.pages.bans}
      lead={first && t.bans.count(number(first.matching), number(first.total))}
      actions={
        <>
          <Button icon={<Download size={15} aria-hidden />} onClick={() => save(rows)} disabled={rows.length === 0}>
            {t.bans.export(number(rows.length))}
          </Button>
          {may("ban") && (
            <>
              {chosen.size > 0 && <Button onClick={() => setUnbanning([...chosen])}>{t.bans.unbanMany(number(chosen.size))}</Button>}
              <Button kind="primary" icon={<Ban size={15} aria-hidden />} onClick={() => setBanning(true)}>
                {t.bans.ban}
              </Button>
            </>
          )}
        </>
      }
    >
      <div className="flex flex-wrap items-center gap-3">
        <div className="w-full sm:w-80">
          <TextField quiet type="search" maxLength={128} label={t.bans.filter} placeholder={t.bans.filter} value={text} onChange={(e) => type(e.target.value)} />
        </div>
        {filters.map(
          ([name, value]) =>
            value && (
              <Button key={name} small onClick={() => set({ [name]: undefined })} aria-label={t.bans.dropFilter(t.bans.filters[name], visible(value, 60))}>
                {t.bans.filters[name]}: {visible(value, 60)} <X size={13} aria-hidden />
              </Button>
            ),
        )}
        <label className="flex items-center gap-2">
          <input type="checkbox" className="size-4 accent-(--accent)" checked={search.all ?? false} onChange={(e) => set({ all: e.target.checked || undefined })} />
          {t.bans.all}
        </label>
        {stale && (
          <Button small onClick={() => void refetch()}>
            {t.bans.stale}
          </Button>
        )}
      </div>
      <ProblemNote error={answer.error} retry={() => void refetch()} />
      {answer.isPending ? (
        <Panel>
          <Waiting rows={10} />
        </Panel>
      ) : rows.length === 0 && answer.isSuccess ? (
        <Panel>
          <Empty icon={<Ban size={24} aria-hidden />} title={text || search.jail || search.host || search.actor ? t.bans.noMatch : t.bans.none}>
            {text || search.jail || search.host || search.actor ? t.bans.noMatchHint : t.bans.noneHint}
          </Empty>
        </Panel>
      ) : (
        <LongTable
          label={t.pages.bans}
          columns={columns}
          widths="3rem minmax(13rem,1.2fr) minmax(14rem,2.4fr) minmax(7rem,1fr) 8rem 8rem"
          least="58rem"
          narrow={{ widths: "3rem minmax(0,1fr) auto", areas: '"choose prefix expires" "choose why why"', height: 60, heads: ["choose", "prefix", "since", "expires"] }}
          rows={rows}
          rowId={(b) => b.prefix}
          total={Number(first?.matching ?? rows.length)}
          more={more}
        />
      )}
      <BanDialog open={banning} onOpenChange={setBanning} done={() => void refetch()} />
      <UnbanDialog
        prefixes={unbanning}
        known={rows}
        onClose={() => setUnbanning(undefined)}
        done={() => {
          setChosen(new Set());
          void refetch();
        }}
      />
    </Page>
  );
}

function SortHeader({ label, active, up, onPress }: { label: string; active: boolean; up: boolean; onPress: (up: boolean) => void }) {
  const { t } = useText();
  return (
    <button type="button" onClick={() => onPress(active ? !up : false)} className={`inline-flex items-center gap-1 ${active ? "text-text" : ""}`}>
      {label}
      {active && (up ? <ArrowUp size={13} aria-label={t.bans.ascending} /> : <ArrowDown size={13} aria-label={t.bans.descending} />)}
    </button>
  );
}

export function since(ban: FleetBan): bigint {
  return ban.claims.reduce((least, c) => (least === 0n || c.sinceUnixMs < least ? c.sinceUnixMs : least), 0n);
}

function Why({ ban }: { ban: FleetBan }) {
  const { t } = useText();
  const c = ban.claims[0];
  if (!c) return null;
  return (
    <span title={visible(c.reason, 200) || undefined}>
      {ban.suppressedBy && <Badge tone="ok">{t.bans.suppressed}</Badge>} {c.jail && <span className="font-medium">{visible(c.jail, 64)}</span>}
      {c.source === ClaimSource.PERSON && <span>{t.event.by(visible(c.actor, 80))}</span>}
      {c.source === ClaimSource.RECOVERED && <span>{t.claimSources[c.source]}</span>}
      {c.reason && <span className="text-soft"> · {visible(c.reason, 200)}</span>}
      {ban.claims.length > 1 && <span className="text-soft"> · {t.bans.moreClaims(ban.claims.length - 1)}</span>}
    </span>
  );
}

function SeenBy({ claims }: { claims: Claim[] }) {
  const { t } = useText();
  const names = [...new Set(claims.map((c) => c.hostName).filter(Boolean))];
  const [first] = names;
  if (!first) return <span className="text-soft">–</span>;
  return (
    <span>
      <HostLink name={first} />
      {names.length > 1 && <span className="text-soft"> {t.bans.moreHosts(names.length - 1)}</span>}
    </span>
  );
}

/** save hands what is listed to the browser as a file, one prefix a line. */
function save(rows: FleetBan[]): void {
  const url = URL.createObjectURL(new Blob([`${rows.map((b) => b.prefix).join("\n")}\n`], { type: "text/plain" }));
  const link = document.createElement("a");
  link.href = url;
  link.download = "fleetban-bans.txt";
  link.click();
  URL.revokeObjectURL(url);
}
