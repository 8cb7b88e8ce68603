import { createClient } from "@connectrpc/connect";
import { useQuery } from "@connectrpc/connect-query";
import { useQueryClient } from "@tanstack/react-query";
import { ShieldCheck } from "lucide-react";
import { type FormEvent, useMemo, useState } from "react";
import { useMay } from "@/api/may";
import { optimistic } from "@/api/optimistic";
import { transport } from "@/api/session";
import { AddressLink } from "@/components/address-link";
import { Button } from "@/components/button";
import { Dialog, DialogActions } from "@/components/dialog";
import { Empty, Waiting } from "@/components/empty";
import { AreaField, SelectField, TextField } from "@/components/field";
import { Page, Panel } from "@/components/panel";
import { ProblemNote } from "@/components/problem";
import { type Columns, Table } from "@/components/table";
import { Time } from "@/components/time";
import { note } from "@/components/toast";
import { type AllowedPrefix, AllowlistService, FleetService } from "@/gen/fleetban/operator/v1/operator_pb";
import { Mode } from "@/gen/fleetban/v1/agent_pb";
import { useText } from "@/i18n";
import { words } from "@/lib/words";
import { useNow } from "@/lib/time";
import { visible } from "@/lib/visible";

/** Policy is what the fleet bans by itself, what it never bans, and whether it enforces anything at all. */
export function Policy() {
  const { t } = useText();
  return (
    <Page title={t.pages.policy} lead={t.policy.lead}>
      <div className="grid gap-4 lg:grid-cols-2">
        <ModePanel />
        <PausePanel />
      </div>
      <Panel id="rules" title={t.policy.rules}>
        <ol className="flex list-decimal flex-col gap-1.5 pl-5">
          {t.policy.sentences.map((s) => (
            <li key={s}>{s}</li>
          ))}
        </ol>
      </Panel>
      <Allowlist />
    </Page>
  );
}

const fleetClient = createClient(FleetService, transport);

function ModePanel() {
  const { t } = useText();
  const may = useMay();
  const queries = useQueryClient();
  const fleet = useQuery(FleetService.method.getFleet);
  const [busy, setBusy] = useState(false);
  const mode = fleet.data?.mode ?? Mode.UNSPECIFIED;
  const set = (next: Mode) => {
    setBusy(true);
    fleetClient
      .setMode({ mode: next })
      .then(() => {
        note(t.policy.modeSet(next === Mode.ENFORCE ? t.modes.enforce : t.modes.watch), { undo: () => set(mode) });
        return queries.invalidateQueries();
      })
      .catch((err: unknown) => note(<ProblemNote error={err} />, { bad: true }))
      .finally(() => setBusy(false));
  };
  return (
    <Panel id="mode" title={t.policy.mode}>
      {fleet.isPending ? (
        <Waiting rows={2} />
      ) : (
        <>
          <p>{t.modeLine[mode]}</p>
          {may("policy") && (
            <div className="mt-3">
              <Button busy={busy} onClick={() => set(mode === Mode.ENFORCE ? Mode.WATCH : Mode.ENFORCE)}>
                {mode === Mode.ENFORCE ? t.policy.toWatch : t.policy.toEnforce}
              </Button>
            </div>
          )}
        </>
      )}
    </Panel>
  );
}

function PausePanel() {
  const { t } = useText();
  const may = useMay();
  const now = useNow();
  const queries = useQueryClient();
  const fleet = useQuery(FleetService.method.getFleet);
  const [asking, setAsking] = useState(false);
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>();
  const until = Number(fleet.data?.pausedUntilUnixMs ?? 0n);
  const run = (work: Promise<unknown>) => {
    setBusy(true);
    setError(undefined);
    work
      .then(() => {
        setAsking(false);
        return queries.invalidateQueries();
      })
      .catch(setError)
      .finally(() => setBusy(false));
  };
  const pause = (e: FormEvent<HTMLFormElement>) => {
    e.preventDefault();
    const form = new FormData(e.currentTarget);
    run(fleetClient.pause({ durationS: BigInt(String(form.get("for"))), reason: String(form.get("reason")) }));
  };
  return (
    <Panel id="pause" title={t.policy.pause}>
      {until > now ? (
        <p>
          {t.shell.paused} <Time ms={until} />.
        </p>
      ) : (
        <p>{t.policy.notPaused}</p>
      )}
      {!asking && <ProblemNote error={error} />}
      {may("policy") && (
        <div className="mt-3">
          {until > now ? (
            <Button busy={busy} kind="primary" onClick={() => run(fleetClient.resume({}))}>
              {t.policy.resume}
            </Button>
          ) : (
            <Button onClick={() => setAsking(true)}>{t.policy.pauseGo}…</Button>
          )}
        </div>
      )}
      <Dialog open={asking} onOpenChange={setAsking} title={t.policy.pauseTitle} lead={t.policy.pauseLead}>
        <form onSubmit={pause} className="flex flex-col gap-3">
          <SelectField label={t.policy.pauseFor} name="for" defaultValue="900">
            <option value="300">{t.policy.minutes(5)}</option>
            <option value="900">{t.policy.minutes(15)}</option>
            <option value="3600">{t.addHost.hour}</option>
            <option value="86400">{t.addHost.day}</option>
          </SelectField>
          <TextField label={t.ban.reason} name="reason" maxLength={500} />
          <ProblemNote error={error} />
          <DialogActions>
            <Button onClick={() => setAsking(false)}>{t.common.cancel}</Button>
            <Button type="submit" kind="danger" busy={busy}>
              {t.policy.pauseGo}
            </Button>
          </DialogActions>
        </form>
      </Dialog>
    </Panel>
  );
}

const allowlist = createClient(AllowlistService, transport);

function Allowlist() {
  const { t } = useText();
  const may = useMay();
  const [adding, setAdding] = useState(false);
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>();
  const answer = useQuery(AllowlistService.method.listAllowed, { pageSize: 5000 }, { refetchInterval: 10_000 });
  const { refetch } = answer;
  const queries = useQueryClient();
  const columns = useMemo<Columns<AllowedPrefix>>(
    () => [
      { id: "prefix", header: t.bans.address, cell: ({ row }) => <AddressLink of={row.original.prefix} /> },
      { id: "reason", header: t.ban.reason, cell: ({ row }) => visible(row.original.reason, 300) },
      { id: "actor", header: t.host.actor, cell: ({ row }) => visible(row.original.actor, 80) },
      { id: "since", header: t.bans.since, cell: ({ row }) => <Time ms={row.original.sinceUnixMs} /> },
      { id: "ends", header: t.bans.ends, cell: ({ row }) => <Time ms={row.original.expiresUnixMs} /> },
      {
        id: "remove",
        header: () => <span className="sr-only">{t.policy.disallow}</span>,
        cell: ({ row: { original: a } }) =>
          may("allow") && (
            <Button
              small
              onClick={() => {
                optimistic(
                  queries,
                  AllowlistService.method.listAllowed,
                  { pageSize: 5000 },
                  (shown) => ({ ...shown, allowed: shown.allowed.filter((o) => o.prefix !== a.prefix) }),
                  () => allowlist.disallow({ prefixes: [a.prefix] }),
                )
                  .then(() => {
                    note(t.policy.disallowed(a.prefix), {
                      undo: () => {
                        const left = Number(a.expiresUnixMs) > 8.64e15 / 1000 ? 0n : BigInt(Math.max(1, Math.round((Number(a.expiresUnixMs) - Date.now()) / 1000)));
                        allowlist.allow({ prefixes: [a.prefix], durationS: left, reason: a.reason }).then(() => refetch(), (err: unknown) => note(<ProblemNote error={err} />, { bad: true }));
                      },
                    });
                  })
                  .catch((err: unknown) => note(<ProblemNote error={err} />, { bad: true }));
              }}
            >
              {t.policy.disallow}
            </Button>
          ),
      },
    ],
    [t, may, refetch, queries],
  );
  const add = (e: FormEvent<HTMLFormElement>) => {
    e.preventDefault();
    const form = new FormData(e.currentTarget);
    setBusy(true);
    setError(undefined);
    allowlist
      .allow({ prefixes: words(String(form.get("prefixes"))), durationS: BigInt(String(form.get("for"))), reason: String(form.get("reason")) })
      .then(() => {
        setAdding(false);
        return refetch();
      })
      .catch(setError)
      .finally(() => setBusy(false));
  };
  const rows = answer.data?.allowed ?? [];
  return (
    <Panel id="allowlist" title={t.policy.allowlist} flush actions={may("allow") && <Button small onClick={() => setAdding(true)}>{t.policy.allow}…</Button>}>
      <ProblemNote error={answer.error} retry={() => void refetch()} />
      {answer.isPending ? (
        <Waiting />
      ) : rows.length === 0 ? (
        <Empty icon={<ShieldCheck size={24} aria-hidden />} title={t.policy.noneAllowed}>
          {t.policy.noneAllowedHint}
        </Empty>
      ) : (
        <Table label={t.policy.allowlist} columns={columns} rows={rows} rowId={(a) => a.prefix} />
      )}
      <Dialog open={adding} onOpenChange={setAdding} title={t.policy.allowTitle} lead={t.policy.allowLead}>
        <form onSubmit={add} className="flex flex-col gap-3">
          <AreaField label={t.ban.addresses} name="prefixes" required className="font-mono" placeholder="198.51.100.0/24" hint={t.ban.addressesHint} />
          <SelectField label={t.ban.duration} name="for" defaultValue="0">
            <option value="0">{t.common.forEver}</option>
            <option value="3600">{t.addHost.hour}</option>
            <option value="86400">{t.addHost.day}</option>
            <option value="604800">{t.addHost.week}</option>
          </SelectField>
          <TextField label={t.ban.reason} name="reason" maxLength={500} />
          <ProblemNote error={error} />
          <DialogActions>
            <Button onClick={() => setAdding(false)}>{t.common.cancel}</Button>
            <Button type="submit" kind="primary" busy={busy}>
              {t.policy.allow}
            </Button>
          </DialogActions>
        </form>
      </Dialog>
    </Panel>
  );
}
