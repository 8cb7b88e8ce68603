import { createClient } from "@connectrpc/connect";
import { useInfiniteQuery } from "@connectrpc/connect-query";
import { keepPreviousData } from "@tanstack/react-query";
import { getRouteApi, useNavigate } from "@tanstack/react-router";
import { ScrollText } from "lucide-react";
import { useCallback, useMemo, useState } from "react";
import { useMay } from "@/api/may";
import { transport } from "@/api/session";
import { Badge } from "@/components/badge";
import { Button } from "@/components/button";
import { Dialog } from "@/components/dialog";
import { Empty, Waiting } from "@/components/empty";
import { TextField } from "@/components/field";
import { Facts, Page, Panel } from "@/components/panel";
import { ProblemNote } from "@/components/problem";
import { type Columns, LongTable } from "@/components/table";
import { Time } from "@/components/time";
import { type AuditEntry, AuditOutcome, AuditService, type VerifyAuditResponse } from "@/gen/fleetban/operator/v1/audit_pb";
import { useNumber, useText } from "@/i18n";
import { visible } from "@/lib/visible";

const route = getRouteApi("/inside/audit");

/** Audit is who did what, and whether anybody touched the record of it. */
export function Audit() {
  const { t } = useText();
  const number = useNumber();
  const may = useMay();
  const search = route.useSearch();
  const navigate = useNavigate({ from: "/audit" });
  const [shown, setShown] = useState<AuditEntry>();
  const [verified, setVerified] = useState<VerifyAuditResponse>();
  const [verifying, setVerifying] = useState(false);
  const [error, setError] = useState<unknown>();
  const answer = useInfiniteQuery(
    AuditService.method.listAudit,
    { filter: { actor: search.actor ?? "", action: search.action ?? "", target: search.target ?? "" }, pageSize: 200, pageToken: "" },
    { pageParamKey: "pageToken", getNextPageParam: (last) => last.nextPageToken || undefined, placeholderData: keepPreviousData, enabled: may("audit") },
  );
  const { fetchNextPage, hasNextPage, isFetchingNextPage, refetch } = answer;
  const rows = useMemo(() => answer.data?.pages.flatMap((p) => p.entries) ?? [], [answer.data]);
  const more = useCallback(() => {
    if (hasNextPage && !isFetchingNextPage) void fetchNextPage();
  }, [hasNextPage, isFetchingNextPage, fetchNextPage]);
  const set = useCallback((next: Partial<typeof search>) => void navigate({ search: (old) => ({ ...old, ...next }), replace: true }), [navigate]);
  const columns = useMemo<Columns<AuditEntry>>(
    () => [
      { id: "number", header: "#", cell: ({ row }) => <span className="tabular-nums text-soft">{number(row.original.number)}</span> },
      { id: "at", header: t.audit.at, cell: ({ row }) => <Time ms={row.original.atUnixMs} /> },
      {
        id: "actor",
        header: t.audit.actor,
        cell: ({ row: { original: e } }) => (
          <button type="button" className="max-w-full truncate text-accent hover:underline" onClick={() => set({ actor: e.actor?.name })}>
            {visible(e.actor?.name ?? "", 80) || "–"}
          </button>
        ),
      },
      {
        id: "action",
        header: t.audit.action,
        cell: ({ row: { original: e } }) => (
          <button type="button" className="max-w-full truncate text-accent hover:underline" onClick={() => set({ action: e.action })}>
            {visible(e.action, 64)}
          </button>
        ),
      },
      { id: "target", header: t.audit.target, cell: ({ row }) => visible(row.original.targets.join(", "), 200) },
      {
        id: "outcome",
        header: t.audit.outcome,
        cell: ({ row: { original: e } }) => (
          <Badge tone={e.outcome === AuditOutcome.OK ? "ok" : e.outcome === AuditOutcome.REFUSED ? "warn" : "none"}>{t.auditOutcomes[e.outcome]}</Badge>
        ),
      },
      { id: "address", header: t.audit.from, cell: ({ row }) => <span className="text-soft">{visible(row.original.address, 64)}</span> },
      {
        id: "more",
        header: () => <span className="sr-only">{t.audit.details}</span>,
        cell: ({ row }) => (
          <Button small kind="ghost" onClick={() => setShown(row.original)}>
            {t.audit.details}
          </Button>
        ),
      },
    ],
    [t, number, set],
  );
  const verify = () => {
    setVerifying(true);
    setError(undefined);
    createClient(AuditService, transport)
      .verifyAudit({})
      .then(setVerified)
      .catch(setError)
      .finally(() => setVerifying(false));
  };
  if (!may("audit"))
    return (
      <Page title={t.pages.audit}>
        <Panel>{t.common.mayNot}</Panel>
      </Page>
    );
  return (
    <Page
      title={t.pages.audit}
      lead={t.audit.lead}
      actions={
        <Button busy={verifying} onClick={verify}>
          {t.audit.verify}
        </Button>
      }
    >
      <ProblemNote error={error ?? answer.error} retry={() => void refetch()} />
      {verified && (
        <p role="status" className={`rounded-md px-3 py-2 ${verified.intact ? "bg-ok-soft text-ok" : "bg-bad-soft text-bad"}`}>
          {verified.intact ? t.audit.intact(number(verified.entries), number(verified.headNumber), verified.headHash) : t.audit.broken(number(verified.findingsTotal), visible(verified.findings[0]?.text ?? "", 300))}
        </p>
      )}
      <div className="flex flex-wrap gap-3">
        {(["actor", "action", "target"] as const).map((name) => (
          <div key={name} className="w-full sm:w-56">
            <TextField quiet label={t.audit[name]} placeholder={t.audit[name]} value={search[name] ?? ""} onChange={(e) => set({ [name]: e.target.value || undefined })} />
          </div>
        ))}
      </div>
      {answer.isPending ? (
        <Panel>
          <Waiting rows={8} />
        </Panel>
      ) : rows.length === 0 && answer.isSuccess ? (
        <Panel>
          <Empty icon={<ScrollText size={24} aria-hidden />} title={t.audit.none} />
        </Panel>
      ) : (
        <LongTable
          label={t.pages.audit}
          columns={columns}
          widths="4.5rem 7rem minmax(11rem,1fr) 7rem minmax(14rem,2fr) 6rem 7rem 5.5rem"
          least="62rem"
          narrow={{ widths: "minmax(0,1fr) auto auto", areas: '"actor action at" "target target more"', height: 68, heads: ["actor", "action", "at"] }}
          rows={rows}
          rowId={(e) => String(e.number)}
          total={rows.length}
          more={more}
        />
      )}
      <Entry entry={shown} onClose={() => setShown(undefined)} />
    </Page>
  );
}

function Entry({ entry, onClose }: { entry: AuditEntry | undefined; onClose: () => void }) {
  const { t } = useText();
  return (
    <Dialog open={entry !== undefined} onOpenChange={(open) => !open && onClose()} title={entry ? `#${entry.number} ${visible(entry.action, 64)}` : ""} wide>
      {entry && (
        <Facts
          of={[
            [t.audit.at, new Date(Number(entry.atUnixMs)).toISOString()],
            [t.audit.actor, `${visible(entry.actor?.name ?? "", 120)} (${t.auditActors[entry.actor?.kind ?? 0]} ${visible(entry.actor?.id ?? "", 64)})`],
            [t.audit.from, visible(`${entry.address} ${entry.userAgent}`, 300)],
            [t.audit.target, visible(entry.targets.join(", "), 1000)],
            [t.audit.outcome, `${t.auditOutcomes[entry.outcome]}${entry.reason ? ` · ${visible(entry.reason, 300)}` : ""}`],
            ...entry.details.map((d): [string, string] => [visible(d.name, 64), d.before ? `${visible(d.before, 300)} → ${visible(d.after, 300)}` : visible(d.after, 300)]),
            [t.audit.request, visible(entry.requestId, 64)],
            ["SHA-1", entry.hash],
          ]}
        />
      )}
    </Dialog>
  );
}
