import { createClient } from "@connectrpc/connect";
import { useQuery } from "@connectrpc/connect-query";
import { getRouteApi, Link } from "@tanstack/react-router";
import { Ban, CircleCheck, ShieldCheck, Undo2 } from "lucide-react";
import { useCallback, useMemo, useState } from "react";
import { useEvents } from "@/api/live";
import { useMay } from "@/api/may";
import { transport } from "@/api/session";
import { HostLink } from "@/components/address-link";
import { Badge, type Tone } from "@/components/badge";
import { BanDialog, UnbanDialog } from "@/components/ban-dialogs";
import { Button } from "@/components/button";
import { Empty, Waiting } from "@/components/empty";
import { EventLine } from "@/components/event-line";
import { Page, Panel } from "@/components/panel";
import { ProblemNote } from "@/components/problem";
import { type Columns, Table } from "@/components/table";
import { Time } from "@/components/time";
import { note } from "@/components/toast";
import { AllowlistService, BanService, type Claim, ClaimSource, EnforcementState, type HostEnforcement } from "@/gen/fleetban/operator/v1/operator_pb";
import { useNumber, useText } from "@/i18n";
import { looksLikePrefix } from "@/lib/prefix";
import { visible } from "@/lib/visible";

const route = getRouteApi("/inside/address/$");

/** Address is everything about one address: is it banned, why, by whom, where does it stand. */
export function Address() {
  const { t } = useText();
  const number = useNumber();
  const may = useMay();
  const address = route.useParams()._splat ?? "";
  const valid = looksLikePrefix(address);
  const [banning, setBanning] = useState(false);
  const [unbanning, setUnbanning] = useState<string[]>();
  const answer = useQuery(BanService.method.explain, { address }, { enabled: valid, refetchInterval: 10_000 });
  const { refetch } = answer;
  useEvents(
    useCallback(
      (events) => {
        if (events.some((e) => e.prefix === address)) void refetch();
      },
      [address, refetch],
    ),
  );
  const e = answer.data;
  if (!valid)
    return (
      <Page title={visible(address, 80)}>
        <Panel>
          <Empty title={t.address.invalid}>{t.address.invalidHint}</Empty>
        </Panel>
      </Page>
    );
  // What was unbanned is remembered for a while, with nothing left that bans it.
  const bans = e?.bans.filter((b) => b.claims.length > 0) ?? [];
  const exact = bans.find((b) => b.prefix === e?.address);
  return (
    <Page
      title={<span className="font-mono">{visible(address, 80)}</span>}
      lead={e && <Verdict banned={e.banned} suppressed={e.allowedBy.length > 0} claims={exact?.claims.length ?? 0} expires={Math.max(0, ...bans.map((b) => Number(b.expiresUnixMs)))} />}
      actions={
        <>
          {may("allow") && e && e.allowedBy.length === 0 && <Allow address={address} done={() => void refetch()} />}
          {may("ban") && exact && (
            <Button icon={<Undo2 size={15} aria-hidden />} onClick={() => setUnbanning([address])}>
              {t.address.unban}
            </Button>
          )}
          {may("ban") && (
            <Button kind="danger" icon={<Ban size={15} aria-hidden />} onClick={() => setBanning(true)}>
              {exact ? t.address.extend : t.address.ban}
            </Button>
          )}
        </>
      }
    >
      <ProblemNote error={answer.error} retry={() => void refetch()} />
      {!e ? (
        !answer.error && <Waiting rows={8} />
      ) : (
        <>
          {e.allowedBy.length > 0 && (
            <Panel id="allowed" title={t.address.allowedTitle}>
              <ul className="flex flex-col gap-1">
                {e.allowedBy.map((a) => (
                  <li key={a.prefix}>
                    <Link to="/policy" className="font-mono text-[13px] text-accent hover:underline">
                      {a.prefix}
                    </Link>{" "}
                    {t.event.by(visible(a.actor, 80))}, <Time ms={a.sinceUnixMs} />
                    {a.reason && <span className="text-soft"> · {visible(a.reason, 300)}</span>}
                  </li>
                ))}
              </ul>
            </Panel>
          )}
          {bans.map((b) => (
            <Panel key={b.prefix} id={`claims-${b.prefix}`} title={t.address.whyTitle(b.prefix, b.prefix === e.address)} flush>
              <Claims of={b.claims} />
            </Panel>
          ))}
          {bans.length === 0 && (
            <Panel>
              <Empty icon={<CircleCheck size={24} aria-hidden />} title={t.address.free}>
                {e.tombstones.length + e.events.length > 0 ? t.address.freeNow : t.address.freeHint}
              </Empty>
            </Panel>
          )}
          {e.hosts.length > 0 && (
            <Panel id="where" title={t.address.where(number(e.hosts.filter((h) => h.state === EnforcementState.ENFORCED).length), number(e.hosts.length))} flush>
              <Where of={e.hosts} />
            </Panel>
          )}
          {e.tombstones.length > 0 && (
            <Panel id="tombstones" title={t.address.retracted} flush>
              <ul className="divide-y divide-line">
                {e.tombstones.map((s) => (
                  <li key={s.prefix + s.atUnixMs} className="px-4 py-2">
                    <span className="font-mono text-[13px]">{s.prefix}</span> {t.event.by(visible(s.actor, 80))}, <Time ms={s.atUnixMs} />
                  </li>
                ))}
              </ul>
            </Panel>
          )}
          {e.events.length > 0 && (
            <Panel id="timeline" title={t.address.timeline} flush>
              <ul className="divide-y divide-line">
                {e.events.map((event) => (
                  <EventLine key={event.id} event={event} />
                ))}
              </ul>
            </Panel>
          )}
        </>
      )}
      <BanDialog open={banning} onOpenChange={setBanning} prefix={address} done={() => void refetch()} />
      <UnbanDialog prefixes={unbanning} onClose={() => setUnbanning(undefined)} done={() => void refetch()} />
    </Page>
  );
}

function Verdict({ banned, suppressed, claims, expires }: { banned: boolean; suppressed: boolean; claims: number; expires: number }) {
  const { t } = useText();
  return (
    <span className="flex flex-wrap items-center gap-2" role="status">
      {banned ? (
        <>
          <Badge tone="bad" dot>
            {t.address.banned}
          </Badge>
          <span>
            {t.address.until} <Time ms={expires} />
          </span>
        </>
      ) : suppressed ? (
        <Badge tone="ok" dot>
          {t.address.allowed}
        </Badge>
      ) : (
        <Badge dot>{claims > 0 ? t.address.observed : t.address.notBanned}</Badge>
      )}
    </span>
  );
}

function Claims({ of }: { of: Claim[] }) {
  const { t } = useText();
  const number = useNumber();
  const columns = useMemo<Columns<Claim>>(
    () => [
      {
        id: "who",
        header: t.address.who,
        cell: ({ row: { original: c } }) => (c.hostName ? <HostLink name={c.hostName} /> : <span>{visible(c.actor, 80) || t.claimSources[c.source]}</span>),
      },
      {
        id: "how",
        header: t.address.how,
        cell: ({ row: { original: c } }) => (
          <span>
            {c.source === ClaimSource.JAIL ? (
              <>
                <span className="text-soft">{t.bans.filters.jail}</span>{" "}
                <Link to="/bans" search={{ jail: c.jail }} className="text-accent hover:underline">
                  {visible(c.jail, 64)}
                </Link>
              </>
            ) : (
              t.claimSources[c.source]
            )}
            {c.failures > 0 && <span className="text-soft"> · {t.address.failures(number(c.failures))}</span>}
            {c.reason && <span className="text-soft"> · {visible(c.reason, 300)}</span>}
          </span>
        ),
      },
      {
        id: "fleet",
        header: t.address.fleetwide,
        cell: ({ row: { original: c } }) => (c.set ? <Badge tone="bad">{t.address.yes}</Badge> : <span className="text-soft">{t.unpromoted[c.unpromoted]}</span>),
      },
      { id: "since", header: t.bans.since, cell: ({ row }) => <Time ms={row.original.sinceUnixMs} /> },
      { id: "ends", header: t.bans.ends, cell: ({ row }) => <Time ms={row.original.expiresUnixMs} /> },
    ],
    [t, number],
  );
  return <Table label={t.address.why} columns={columns} rows={of} rowId={(c) => `${c.source} ${c.hostId} ${c.jail} ${c.actor} ${c.sinceUnixMs}`} />;
}

const stateTones: Partial<Record<EnforcementState, Tone>> = {
  [EnforcementState.ENFORCED]: "ok",
  [EnforcementState.PENDING]: "info",
  [EnforcementState.OFFLINE]: "warn",
  [EnforcementState.REFUSED]: "warn",
  [EnforcementState.INERT]: "warn",
};

function Where({ of }: { of: HostEnforcement[] }) {
  const { t } = useText();
  const columns = useMemo<Columns<HostEnforcement>>(
    () => [
      { id: "host", header: t.hosts.name, cell: ({ row }) => <HostLink name={row.original.hostName} /> },
      { id: "state", header: t.hosts.state, cell: ({ row }) => <Badge tone={stateTones[row.original.state] ?? "none"}>{t.enforcement[row.original.state]}</Badge> },
      {
        id: "why",
        header: t.bans.why,
        cell: ({ row: { original: h } }) => (
          <span className="text-soft">
            {h.refusal !== 0 && t.refusals[h.refusal]}
            {h.inert !== 0 && t.inert[h.inert]}
            {h.jails.length > 0 && t.address.inJails(h.jails.map((j) => visible(j, 64)).join(", "))}
          </span>
        ),
      },
      { id: "seen", header: t.hosts.seen, cell: ({ row }) => <Time ms={row.original.seenUnixMs} /> },
    ],
    [t],
  );
  return <Table label={t.address.where("", "")} columns={columns} rows={of} rowId={(h) => h.hostId} />;
}

function Allow({ address, done }: { address: string; done: () => void }) {
  const { t } = useText();
  const [busy, setBusy] = useState(false);
  const client = createClient(AllowlistService, transport);
  const go = () => {
    setBusy(true);
    client
      .allow({ prefixes: [address], durationS: 0n, reason: "" })
      .then(() => {
        done();
        note(t.address.allowDone(address), {
          undo: () => {
            client.disallow({ prefixes: [address] }).then(done, (err: unknown) => note(<ProblemNote error={err} />, { bad: true }));
          },
        });
      })
      .catch((err: unknown) => note(<ProblemNote error={err} />, { bad: true }))
      .finally(() => setBusy(false));
  };
  return (
    <Button busy={busy} icon={<ShieldCheck size={15} aria-hidden />} onClick={go}>
      {t.address.allow}
    </Button>
  );
}
