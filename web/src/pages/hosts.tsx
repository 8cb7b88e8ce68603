import { useQuery } from "@connectrpc/connect-query";
import { getRouteApi, useNavigate } from "@tanstack/react-router";
import { Server } from "lucide-react";
import { useMemo } from "react";
import { useMay } from "@/api/may";
import { AddButton } from "@/components/add-button";
import { HostLink } from "@/components/address-link";
import { Badge } from "@/components/badge";
import { Empty, Waiting } from "@/components/empty";
import { SelectField, TextField } from "@/components/field";
import { HostBadge, hostState } from "@/components/host-state";
import { Page, Panel } from "@/components/panel";
import { ProblemNote } from "@/components/problem";
import { type Columns, LongTable } from "@/components/table";
import { Time } from "@/components/time";
import { type Host, HostService } from "@/gen/fleetban/operator/v1/operator_pb";
import { useNumber, useText } from "@/i18n";
import { visible } from "@/lib/visible";

const route = getRouteApi("/inside/hosts");

/** Hosts is every host in one line each, live. */
export function Hosts() {
  const { t } = useText();
  const number = useNumber();
  const may = useMay();
  const { q, state } = route.useSearch();
  const navigate = useNavigate({ from: "/hosts" });
  const hosts = useQuery(HostService.method.listHosts, { pageSize: 5000 }, { refetchInterval: 3_000 });
  const rows = useMemo(() => {
    const want = q?.toLowerCase();
    return (hosts.data?.hosts ?? []).filter((h) => {
      const s = hostState(h);
      if (state === "online" && s.tone !== "ok") return false;
      if (state === "offline" && s.name !== "offline") return false;
      if (state === "disabled" && s.name !== "disabled") return false;
      if (state === "attention" && s.tone !== "warn" && s.tone !== "bad") return false;
      return !want || h.name.toLowerCase().includes(want) || tagsOf(h).some((tag) => tag.includes(want));
    });
  }, [hosts.data, q, state]);
  const columns = useMemo<Columns<Host>>(
    () => [
      { id: "name", header: t.hosts.name, cell: ({ row }) => (
          <span>
            <HostLink name={row.original.name} /> {row.original.ephemeralS > 0n && <Badge>{t.hosts.ephemeral}</Badge>}
          </span>
        ) },
      { id: "state", header: t.hosts.state, cell: ({ row }) => <HostBadge host={row.original} /> },
      {
        id: "enforces",
        header: t.hosts.enforces,
        cell: ({ row }) => number(row.original.health?.enforcer?.enforced ?? 0n),
      },
      { id: "jails", header: t.hosts.jails, cell: ({ row }) => number(row.original.health?.fail2ban?.jails.length ?? 0) },
      { id: "fail2ban", header: "fail2ban", cell: ({ row }) => visible(row.original.health?.fail2ban?.version ?? "", 32) || "–" },
      { id: "agent", header: t.hosts.agent, cell: ({ row }) => visible(row.original.facts?.agentVersion ?? "", 32) || "–" },
      {
        id: "tags",
        header: t.hosts.tags,
        cell: ({ row }) => <span className="text-soft">{tagsOf(row.original).map((tag) => visible(tag, 60)).join(", ") || "–"}</span>,
      },
      { id: "seen", header: t.hosts.seen, cell: ({ row }) => <Time ms={row.original.seenUnixMs} /> },
    ],
    [t, number],
  );
  return (
    <Page title={t.pages.hosts} lead={t.hosts.lead} actions={may("hosts") && <AddButton />}>
      <div className="flex flex-wrap gap-3">
        <div className="w-full sm:w-72">
          <TextField quiet label={t.hosts.filter} placeholder={t.hosts.filter} value={q ?? ""} onChange={(e) => void navigate({ search: { q: e.target.value || undefined, state }, replace: true })} />
        </div>
        <SelectField
          quiet
          label={t.hosts.state}
          value={state ?? ""}
          onChange={(e) => void navigate({ search: { q, state: (e.target.value || undefined) as typeof state }, replace: true })}
        >
          <option value="">{t.hosts.all}</option>
          <option value="online">{t.hostStates.online}</option>
          <option value="offline">{t.hostStates.offline}</option>
          <option value="disabled">{t.hostStates.disabled}</option>
          <option value="attention">{t.hosts.attention}</option>
        </SelectField>
      </div>
      <ProblemNote error={hosts.error} retry={() => void hosts.refetch()} />
      {hosts.isPending ? (
        <Panel>
          <Waiting rows={6} />
        </Panel>
      ) : rows.length === 0 && hosts.isSuccess ? (
        <Panel>
          {q || state ? (
            <Empty title={t.hosts.noMatch} />
          ) : (
            <Empty icon={<Server size={24} aria-hidden />} title={t.overview.emptyTitle} action={may("hosts") ? <AddButton /> : undefined}>
              {t.overview.empty}
            </Empty>
          )}
        </Panel>
      ) : (
        <LongTable
          label={t.pages.hosts}
          columns={columns}
          widths="minmax(11rem,2fr) 10rem 7rem 5rem 6rem minmax(8rem,1fr) minmax(8rem,1fr) 8rem"
          least="62rem"
          narrow={{ widths: "minmax(0,1fr) auto", areas: '"name state" "tags seen"', height: 60, heads: ["name", "state"] }}
          rows={rows}
          rowId={(h) => h.hostId}
          total={rows.length}
        />
      )}
    </Page>
  );
}

function tagsOf(h: Host): string[] {
  return Object.entries(h.tags).map(([k, v]) => `${k}=${v}`);
}
