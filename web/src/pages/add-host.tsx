import { createClient } from "@connectrpc/connect";
import { useQuery } from "@connectrpc/connect-query";
import { CircleCheck, LoaderCircle } from "lucide-react";
import { type FormEvent, useState } from "react";
import { useMay } from "@/api/may";
import { transport } from "@/api/session";
import { HostLink } from "@/components/address-link";
import { Button } from "@/components/button";
import { CopyLine } from "@/components/copy";
import { SelectField, TextField } from "@/components/field";
import { HostBadge } from "@/components/host-state";
import { Page, Panel } from "@/components/panel";
import { ProblemNote } from "@/components/problem";
import { Time } from "@/components/time";
import { type CreateJoinTokenResponse, HostService, JoinTokenService } from "@/gen/fleetban/operator/v1/operator_pb";
import { useNumber, useText } from "@/i18n";

/** AddHost makes a join token and shows the one line to paste; the page turns green by itself when the host arrives. */
export function AddHost() {
  const { t } = useText();
  const may = useMay();
  const [made, setMade] = useState<{ token: CreateJoinTokenResponse; at: number }>();
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>();
  const [badTags, setBadTags] = useState("");

  const submit = (e: FormEvent<HTMLFormElement>) => {
    e.preventDefault();
    const form = new FormData(e.currentTarget);
    const tags = tagsOf(String(form.get("tags")));
    if (!tags) {
      setBadTags(t.addHost.badTags);
      return;
    }
    setBadTags("");
    setBusy(true);
    setError(undefined);
    createClient(JoinTokenService, transport)
      .createJoinToken({ uses: Number(form.get("uses")), durationS: BigInt(String(form.get("for"))), tags, note: "", ephemeralS: BigInt(String(form.get("ephemeral"))) })
      .then((token) => setMade({ token, at: Date.now() }))
      .catch(setError)
      .finally(() => setBusy(false));
  };
  if (!may("hosts"))
    return (
      <Page title={t.common.addHost}>
        <Panel>{t.common.mayNot}</Panel>
      </Page>
    );
  return (
    <Page title={t.common.addHost} lead={t.addHost.lead}>
      {!made ? (
        <Panel>
          <form onSubmit={submit} className="flex max-w-lg flex-col gap-3">
            <TextField label={t.addHost.uses} name="uses" type="number" min={1} max={100000} defaultValue={1} required hint={t.addHost.usesHint} />
            <SelectField label={t.addHost.valid} name="for" defaultValue="86400">
              <option value="3600">{t.addHost.hour}</option>
              <option value="86400">{t.addHost.day}</option>
              <option value="604800">{t.addHost.week}</option>
            </SelectField>
            <SelectField label={t.addHost.ephemeral} name="ephemeral" defaultValue="0" hint={t.addHost.ephemeralHint}>
              <option value="0">{t.addHost.stays}</option>
              <option value="3600">{t.addHost.hour}</option>
              <option value="86400">{t.addHost.day}</option>
              <option value="604800">{t.addHost.week}</option>
            </SelectField>
            <TextField label={t.hosts.tags} name="tags" placeholder="team=web, site=fra" hint={t.addHost.tagsHint} error={badTags} />
            <ProblemNote error={error} />
            <div>
              <Button type="submit" kind="primary" busy={busy}>
                {t.addHost.make}
              </Button>
            </div>
          </form>
        </Panel>
      ) : (
        <Line made={made} again={() => setMade(undefined)} />
      )}
    </Page>
  );
}

function Line({ made, again }: { made: { token: CreateJoinTokenResponse; at: number }; again: () => void }) {
  const { t } = useText();
  const number = useNumber();
  const hosts = useQuery(HostService.method.listHosts, { pageSize: 5000 }, { refetchInterval: 1_000 });
  // The clocks may differ by a little; a host that was there before is no arrival.
  const arrived = (hosts.data?.hosts ?? []).filter((h) => Number(h.enrolledUnixMs) > made.at - 5_000);
  const wanted = made.token.joinToken?.uses ?? 1;
  return (
    <>
      <Panel id="line" title={t.addHost.paste}>
        <CopyLine text={made.token.installLine} label={t.addHost.paste} />
        <p className="mt-4 mb-1 text-sm font-medium">{t.addHost.tokenTitle}</p>
        <CopyLine text={made.token.secret} label={t.addHost.tokenTitle} />
        <p className="mt-2 text-soft">
          {t.addHost.tokenHint} {t.addHost.until} <Time ms={made.token.joinToken?.expiresUnixMs ?? 0n} />.
        </p>
      </Panel>
      <Panel id="arrivals" title={t.addHost.arrivals(number(arrived.length), number(wanted))}>
        <div role="status" aria-live="polite">
          {arrived.length === 0 ? (
            <p className="flex items-center gap-2 text-soft">
              <LoaderCircle size={16} className="animate-spin" aria-hidden /> {t.addHost.waiting}
            </p>
          ) : (
            <ul className="flex flex-col gap-2">
              {arrived.map((h) => (
                <li key={h.hostId} className="flex flex-wrap items-center gap-3 rounded-md bg-ok-soft px-3 py-2">
                  <CircleCheck size={18} className="text-ok" aria-hidden />
                  <HostLink name={h.name} />
                  <HostBadge host={h} />
                  <span className="text-soft">
                    fail2ban {h.health?.fail2ban?.version || "–"} · {t.addHost.jails(h.health?.fail2ban?.jails.length ?? 0)}
                  </span>
                </li>
              ))}
            </ul>
          )}
        </div>
        <div className="mt-4">
          <Button onClick={again}>{t.addHost.another}</Button>
        </div>
      </Panel>
    </>
  );
}

/** tagsOf reads "k=v, k=v"; undefined where it is something else. */
export function tagsOf(text: string): Record<string, string> | undefined {
  const tags: Record<string, string> = {};
  for (const part of text.split(",").map((p) => p.trim())) {
    if (part === "") continue;
    const match = /^([a-z0-9][a-z0-9._-]{0,59})=([A-Za-z0-9][A-Za-z0-9._-]{0,59})$/.exec(part);
    if (!match) return undefined;
    tags[match[1] ?? ""] = match[2] ?? "";
  }
  return tags;
}
