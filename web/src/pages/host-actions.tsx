import { createClient } from "@connectrpc/connect";
import { useQueryClient } from "@tanstack/react-query";
import { useNavigate } from "@tanstack/react-router";
import { type FormEvent, type ReactNode, useState } from "react";
import { transport } from "@/api/session";
import { Button } from "@/components/button";
import { CopyLine } from "@/components/copy";
import { Dialog, DialogActions } from "@/components/dialog";
import { CheckField, TextField } from "@/components/field";
import { ProblemNote } from "@/components/problem";
import { Time } from "@/components/time";
import { note } from "@/components/toast";
import { type CreateJoinTokenResponse, type Host, HostService, JoinTokenService, Presence } from "@/gen/fleetban/operator/v1/operator_pb";
import { useText } from "@/i18n";
import { visible } from "@/lib/visible";

const client = createClient(HostService, transport);

type Act = "release" | "disable" | "enable" | "again" | "delete";

/** HostActions are what people do with a host's identity; each says what it will do before it does it. */
export function HostActions({ host, tagged }: {
  host: Host;
  /** Who asks sees a part of the fleet only, and may do less. */
  tagged: boolean;
}) {
  const { t } = useText();
  const [act, setAct] = useState<Act>();
  const close = () => setAct(undefined);
  const disabled = host.presence === Presence.DISABLED;
  return (
    <>
      {host.presence === Presence.QUARANTINED && <Button onClick={() => setAct("release")}>{t.host.release}…</Button>}
      {!tagged && <Button onClick={() => setAct(disabled ? "enable" : "disable")}>{disabled ? t.host.enable : t.host.disable}…</Button>}
      {!tagged && <Button onClick={() => setAct("again")}>{t.host.again}…</Button>}
      <Button kind="danger" onClick={() => setAct("delete")}>
        {t.host.delete}
      </Button>
      {act === "release" && <Release host={host} close={close} />}
      {act === "disable" && <Disable host={host} close={close} />}
      {act === "enable" && <Enable host={host} close={close} />}
      {act === "again" && <Again host={host} close={close} />}
      {act === "delete" && <Delete host={host} close={close} />}
    </>
  );
}

/** Ask is a dialog that does one thing when it is confirmed, and stays with what went wrong where it couldn't. */
function Ask({ title, lead, go, danger, work, close, children }: {
  title: string;
  lead: string;
  go: string;
  danger?: boolean;
  work: (form: FormData) => Promise<void>;
  close: () => void;
  children?: ReactNode;
}) {
  const { t } = useText();
  const queries = useQueryClient();
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>();
  const submit = (e: FormEvent<HTMLFormElement>) => {
    e.preventDefault();
    setBusy(true);
    setError(undefined);
    work(new FormData(e.currentTarget))
      .then(close)
      .catch(setError)
      .finally(() => {
        setBusy(false);
        void queries.invalidateQueries();
      });
  };
  return (
    <Dialog open onOpenChange={(open) => !open && close()} title={title} lead={lead}>
      <form onSubmit={submit} className="flex flex-col gap-3">
        {children}
        <ProblemNote error={error} />
        <DialogActions>
          <Button onClick={close}>{t.common.cancel}</Button>
          <Button type="submit" kind={danger ? "danger" : "primary"} busy={busy}>
            {go}
          </Button>
        </DialogActions>
      </form>
    </Dialog>
  );
}

interface Asked {
  host: Host;
  close: () => void;
}

function Release({ host, close }: Asked) {
  const { t } = useText();
  const work = async () => {
    await client.releaseHost({ host: host.hostId });
    note(t.host.released);
  };
  return <Ask title={t.host.releaseTitle(visible(host.name, 80))} lead={t.host.releaseLead} go={t.host.release} work={work} close={close} />;
}

function Disable({ host, close }: Asked) {
  const { t } = useText();
  const queries = useQueryClient();
  const work = async (form: FormData) => {
    const retract = form.has("retract");
    const { retracted } = await client.disableHost({ host: host.hostId, reason: String(form.get("reason")), retractClaims: retract });
    note(retract ? t.host.disabledRetracted(visible(host.name, 80), retracted) : t.host.disabled(visible(host.name, 80)), {
      // What was retracted doesn't come back with it.
      undo: () => {
        client
          .enableHost({ host: host.hostId })
          .then(() => queries.invalidateQueries())
          .catch((err: unknown) => note(<ProblemNote error={err} />, { bad: true }));
      },
    });
  };
  return (
    <Ask title={t.host.disableTitle(visible(host.name, 80))} lead={t.host.disableLead} go={t.host.disable} danger work={work} close={close}>
      <TextField label={t.ban.reason} name="reason" maxLength={200} autoFocus />
      <CheckField label={t.host.retract} hint={t.host.retractHint} name="retract" />
    </Ask>
  );
}

function Enable({ host, close }: Asked) {
  const { t } = useText();
  const work = async () => {
    await client.enableHost({ host: host.hostId });
    note(t.host.enabled(visible(host.name, 80)));
  };
  return <Ask title={t.host.enableTitle(visible(host.name, 80))} lead={t.host.enableLead} go={t.host.enable} work={work} close={close} />;
}

function Delete({ host, close }: Asked) {
  const { t } = useText();
  const navigate = useNavigate();
  const work = async (form: FormData) => {
    await client.deleteHost({ host: host.hostId, retractClaims: form.has("retract") });
    note(t.host.deleted(visible(host.name, 80)));
    await navigate({ to: "/hosts" });
  };
  return (
    <Ask title={t.host.deleteTitle(visible(host.name, 80))} lead={t.host.deleteLead} go={t.host.delete} danger work={work} close={close}>
      <CheckField label={t.host.retract} hint={t.host.retractHint} name="retract" />
    </Ask>
  );
}

/** Again gives the host a new key: at once where it still has its own, with a token where it has lost it. */
function Again({ host, close }: Asked) {
  const { t } = useText();
  const [made, setMade] = useState<CreateJoinTokenResponse>();
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>();
  const make = () => {
    setBusy(true);
    setError(undefined);
    createClient(JoinTokenService, transport)
      .createJoinToken({ host: host.hostId, durationS: 86_400n, uses: 1 })
      .then(setMade)
      .catch(setError)
      .finally(() => setBusy(false));
  };
  return (
    <Dialog open onOpenChange={(open) => !open && close()} title={t.host.againTitle(visible(host.name, 80))} lead={t.host.againLead} wide>
      <div className="flex flex-col gap-3">
        <section>
          <h3 className="font-medium">{t.host.rotate}</h3>
          <p className="mb-2 text-soft">{t.host.rotateHint}</p>
          <CopyLine text="fleetban-agent rotate-key" label={t.host.rotate} />
        </section>
        <section>
          <h3 className="font-medium">{t.host.lost}</h3>
          <p className="mb-2 text-soft">{t.host.lostHint}</p>
          {made ? (
            <div className="flex flex-col gap-2">
              <CopyLine text={made.installLine} label={t.addHost.paste} />
              <p className="font-medium">{t.addHost.tokenTitle}</p>
              <CopyLine text={made.secret} label={t.addHost.tokenTitle} />
              <p className="text-soft">
                {t.addHost.tokenHint} {t.addHost.until} <Time ms={made.joinToken?.expiresUnixMs ?? 0n} />.
              </p>
            </div>
          ) : (
            <Button busy={busy} onClick={make}>
              {t.addHost.make}
            </Button>
          )}
          <ProblemNote error={error} />
        </section>
      </div>
      <DialogActions>
        <Button onClick={close}>{made ? t.common.done : t.common.cancel}</Button>
      </DialogActions>
    </Dialog>
  );
}
