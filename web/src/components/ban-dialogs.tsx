import { createClient } from "@connectrpc/connect";
import { useQueryClient } from "@tanstack/react-query";
import { type FormEvent, type ReactNode, useEffect, useState } from "react";
import { transport } from "@/api/session";
import { BannedPrefix_Effect as Effect, BanService, ClaimSource, type ExplainResponse, type FleetBan } from "@/gen/fleetban/operator/v1/operator_pb";
import { useNumber, useText } from "@/i18n";
import { looksLikePrefix } from "@/lib/prefix";
import { words } from "@/lib/words";
import { seconds } from "@/lib/time";
import { visible } from "@/lib/visible";
import { Badge } from "./badge";
import { Button } from "./button";
import { Dialog, DialogActions } from "./dialog";
import { AreaField, TextField } from "./field";
import { ProblemNote } from "./problem";
import { note } from "./toast";

const bans = createClient(BanService, transport);
const mostAtOnce = 1000;

interface Receipt {
  enforced: number;
  scope: number;
  complete: boolean;
  missing: string[];
}

/** BanDialog bans one address or many, and then shows where the ban stands, host by host, until it does. */
export function BanDialog({ open, onOpenChange, prefix = "", done }: { open: boolean; onOpenChange: (open: boolean) => void; prefix?: string; done: () => void }) {
  const { t } = useText();
  const number = useNumber();
  const queries = useQueryClient();
  const [text, setText] = useState(prefix);
  const [duration, setDuration] = useState("24h");
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>();
  const [receipt, setReceipt] = useState<{ banned: string[]; suppressed: string[]; at: number; state?: Receipt; took?: number }>();
  useEffect(() => {
    if (open) {
      setText(prefix);
      setError(undefined);
      setReceipt(undefined);
    }
  }, [open, prefix]);

  const wanted = words(text);
  const bad = wanted.find((p) => !looksLikePrefix(p));
  const time = seconds(duration);

  const submit = async (e: FormEvent<HTMLFormElement>) => {
    e.preventDefault();
    if (bad !== undefined || wanted.length === 0 || time === undefined) return;
    const reason = String(new FormData(e.currentTarget).get("reason"));
    setBusy(true);
    setError(undefined);
    const at = performance.now();
    try {
      const answer = await bans.ban({ prefixes: wanted, durationS: BigInt(time), reason });
      const suppressed = answer.prefixes.filter((p) => p.effect === Effect.SUPPRESSED).map((p) => p.prefix);
      const banned = answer.prefixes.map((p) => p.prefix);
      setReceipt({ banned, suppressed, at });
      void queries.invalidateQueries();
      done();
      if (!answer.cursor) return;
      for await (const r of bans.watchReceipts({ cursor: answer.cursor, prefixes: banned.slice(0, 100) })) {
        setReceipt({
          banned,
          suppressed,
          at,
          took: r.complete ? performance.now() - at : undefined,
          state: { enforced: r.enforced, scope: r.inScope, complete: r.complete, missing: r.missing.map((m) => m.hostName) },
        });
      }
    } catch (err) {
      setError(err);
    } finally {
      setBusy(false);
    }
  };
  return (
    <Dialog open={open} onOpenChange={onOpenChange} title={t.ban.title} lead={receipt ? undefined : t.ban.lead}>
      {receipt ? (
        <div className="flex flex-col gap-3" role="status">
          <p className="text-base">
            {receipt.state?.complete
              ? t.ban.enforced(number(receipt.state.enforced), number(receipt.state.scope), number(Math.round(receipt.took ?? 0)))
              : t.ban.enforcing(number(receipt.state?.enforced ?? 0), receipt.state ? number(receipt.state.scope) : "…")}
          </p>
          {receipt.suppressed.length > 0 && <p className="text-warn">{t.ban.suppressed(receipt.suppressed.join(", "))}</p>}
          {receipt.state && receipt.state.missing.length > 0 && <p className="text-soft">{t.ban.missing(receipt.state.missing.map((m) => visible(m, 60)).join(", "))}</p>}
          <ProblemNote error={error} />
          <DialogActions>
            <Button kind="primary" onClick={() => onOpenChange(false)}>
              {t.common.done}
            </Button>
          </DialogActions>
        </div>
      ) : (
        <form onSubmit={(e) => void submit(e)} className="flex flex-col gap-3">
          <AreaField
            label={t.ban.addresses}
            value={text}
            onChange={(e) => setText(e.target.value)}
            placeholder="203.0.113.9"
            className="font-mono"
            autoFocus={prefix === ""}
            required
            hint={t.ban.addressesHint}
            error={bad !== undefined ? t.ban.badAddress(visible(bad, 64)) : wanted.length > mostAtOnce ? t.ban.tooMany(number(mostAtOnce)) : undefined}
          />
          <TextField
            label={t.ban.duration}
            value={duration}
            onChange={(e) => setDuration(e.target.value)}
            required
            hint={t.ban.durationHint}
            error={time === undefined || time < 1 ? t.ban.badDuration : undefined}
          />
          <TextField label={t.ban.reason} name="reason" maxLength={500} />
          {wanted.length > 0 && bad === undefined && time !== undefined && <p className="text-soft">{t.ban.preview(number(wanted.length), duration)}</p>}
          <ProblemNote error={error} />
          <DialogActions>
            <Button onClick={() => onOpenChange(false)}>{t.common.cancel}</Button>
            <Button type="submit" kind="danger" busy={busy} disabled={bad !== undefined || wanted.length === 0 || wanted.length > mostAtOnce || time === undefined}>
              {t.ban.go(number(Math.max(wanted.length, 1)))}
            </Button>
          </DialogActions>
        </form>
      )}
    </Dialog>
  );
}

/** UnbanDialog says what an unban would lift and what would still cover it, and does it; it can be taken back. */
export function UnbanDialog({ prefixes, known = [], onClose, done }: {
  prefixes: string[] | undefined;
  /** Bans that the page shows: of many, the preview is made of them. */
  known?: FleetBan[];
  onClose: () => void;
  done: () => void;
}) {
  const { t } = useText();
  const number = useNumber();
  const queries = useQueryClient();
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>();
  const [preview, setPreview] = useState<ExplainResponse>();
  const [covered, setCovered] = useState<string[]>();
  const only = prefixes?.length === 1 ? prefixes[0] : undefined;
  useEffect(() => {
    setError(undefined);
    setPreview(undefined);
    setCovered(undefined);
    if (only === undefined) return;
    const stop = new AbortController();
    bans.explain({ address: only }, { signal: stop.signal }).then(setPreview, () => {});
    return () => stop.abort();
  }, [only]);

  const go = async () => {
    if (!prefixes) return;
    setBusy(true);
    try {
      const answer = await bans.unban({ prefixes, reason: "" });
      void queries.invalidateQueries();
      done();
      const still = answer.prefixes.flatMap((p) => p.stillCoveredBy.map((c) => `${p.prefix} ← ${c.prefix}`));
      // The way back: bans until the ends that they had, in this person's name.
      const before = answer.prefixes.map((p) => ({ prefix: p.prefix, until: p.retracted.reduce((most, c) => (c.expiresUnixMs > most ? c.expiresUnixMs : most), 0n) }));
      note(t.unban.done(number(prefixes.length)), {
        undo: () => {
          restore(before, t.unban.undone)
            .then(() => queries.invalidateQueries())
            .catch((err: unknown) => note(<ProblemNote error={err} />, { bad: true }));
        },
      });
      if (still.length > 0) setCovered(still);
      else onClose();
    } catch (err) {
      setError(err);
    } finally {
      setBusy(false);
    }
  };
  return (
    <Dialog open={prefixes !== undefined} onOpenChange={(open) => !open && onClose()} title={t.unban.title(number(prefixes?.length ?? 0))} lead={t.unban.lead}>
      {covered ? (
        <>
          <p className="text-warn">{t.unban.covered}</p>
          <List of={covered} />
          <DialogActions>
            <Button kind="primary" onClick={onClose}>
              {t.common.done}
            </Button>
          </DialogActions>
        </>
      ) : (
        <>
          <List of={prefixes ?? []} />
          {preview && <Preview of={preview} />}
          {!only && prefixes && <Sum of={known.filter((b) => prefixes.includes(b.prefix))} />}
          <ProblemNote error={error} />
          <DialogActions>
            <Button onClick={onClose}>{t.common.cancel}</Button>
            <Button kind="primary" busy={busy} onClick={() => void go()}>
              {t.unban.go}
            </Button>
          </DialogActions>
        </>
      )}
    </Dialog>
  );
}

/** restore bans again until the ends that there were, those with the same end together. */
async function restore(before: { prefix: string; until: bigint }[], reason: string): Promise<void> {
  const now = Date.now();
  const groups = new Map<number, string[]>();
  for (const b of before) {
    const left = Math.round((Number(b.until) - now) / 1000);
    groups.set(left, [...(groups.get(left) ?? []), b.prefix]);
  }
  for (const [left, prefixes] of groups) if (left > 0) await bans.ban({ prefixes, durationS: BigInt(left), reason });
}

function List({ of }: { of: string[] }) {
  return (
    <ul className="max-h-48 overflow-y-auto rounded-md border border-line bg-sunken px-3 py-2 font-mono text-[13px]" tabIndex={0}>
      {of.map((p) => (
        <li key={p}>{visible(p, 120)}</li>
      ))}
    </ul>
  );
}

function Sum({ of }: { of: FleetBan[] }) {
  const { t } = useText();
  const number = useNumber();
  const hosts = [...new Set(of.flatMap((b) => b.claims.filter((c) => c.source === ClaimSource.JAIL).map((c) => c.hostName)))];
  const named = hosts.slice(0, 5).map((h) => visible(h, 60)).join(", ");
  return (
    <ul className="mt-3 flex list-disc flex-col gap-1 pl-5">
      <li>{t.unban.claims(number(of.reduce((sum, b) => sum + b.claims.length, 0)))}</li>
      {hosts.length > 0 && <li>{t.unban.orders(hosts.length > 5 ? `${named} ${t.bans.moreHosts(hosts.length - 5)}` : named)}</li>}
    </ul>
  );
}

function Preview({ of }: { of: ExplainResponse }): ReactNode {
  const { t } = useText();
  const number = useNumber();
  const [own, ...wider] = of.bans;
  const jails = of.hosts.filter((h) => h.jails.length > 0);
  return (
    <ul className="mt-3 flex list-disc flex-col gap-1 pl-5">
      {own && <li>{t.unban.claims(number(own.claims.length))}</li>}
      {jails.length > 0 && <li>{t.unban.orders(jails.map((h) => visible(h.hostName, 60)).join(", "))}</li>}
      {wider.length > 0 && (
        <li>
          <Badge tone="warn">{t.unban.still}</Badge> {wider.map((b) => b.prefix).join(", ")}
        </li>
      )}
    </ul>
  );
}
