import { createClient } from "@connectrpc/connect";
import { useQuery } from "@connectrpc/connect-query";
import { type FormEvent, type ReactNode, useState } from "react";
import { encode } from "uqr";
import { transport } from "@/api/session";
import { Badge } from "@/components/badge";
import { Button } from "@/components/button";
import { CopyLine } from "@/components/copy";
import { Dialog, DialogActions } from "@/components/dialog";
import { Waiting } from "@/components/empty";
import { TextField } from "@/components/field";
import { Panel } from "@/components/panel";
import { ProblemNote } from "@/components/problem";
import { Time } from "@/components/time";
import { note } from "@/components/toast";
import { type BeginTotpResponse, SecondFactorService } from "@/gen/fleetban/operator/v1/factors_pb";
import { AccountService } from "@/gen/fleetban/operator/v1/people_pb";
import { useNumber, useText } from "@/i18n";
import { makePasskey, passkeysWork } from "@/lib/passkey";
import { visible } from "@/lib/visible";

const account = createClient(AccountService, transport);
const factors = createClient(SecondFactorService, transport);

/** Account is about oneself: the password and what proves more than it. */
export function Account() {
  return (
    <>
      <Password />
      <Factors />
    </>
  );
}

function Password() {
  const { t } = useText();
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>();
  const submit = (e: FormEvent<HTMLFormElement>) => {
    e.preventDefault();
    const element = e.currentTarget;
    const form = new FormData(element);
    setBusy(true);
    setError(undefined);
    account
      .changePassword({ password: String(form.get("old")), newPassword: String(form.get("new")) })
      .then((answer) => {
        element.reset();
        note(t.account.changed(answer.ended));
      })
      .catch(setError)
      .finally(() => setBusy(false));
  };
  return (
    <Panel id="password" title={t.signIn.password}>
      <form onSubmit={submit} className="flex max-w-sm flex-col gap-3">
        <TextField label={t.account.present} name="old" type="password" autoComplete="current-password" required maxLength={1024} />
        <TextField label={t.account.next} name="new" type="password" autoComplete="new-password" minLength={12} required maxLength={1024} hint={t.setup.passwordHint} />
        <ProblemNote error={error} />
        <div>
          <Button type="submit" busy={busy}>
            {t.account.change}
          </Button>
        </div>
      </form>
    </Panel>
  );
}

/** Factors are what proves more than a password. */
export function Factors({ kept }: { kept?: (() => void) | undefined }) {
  const { t } = useText();
  const number = useNumber();
  const answer = useQuery(SecondFactorService.method.getFactors);
  const { refetch } = answer;
  const [totp, setTotp] = useState<BeginTotpResponse>();
  const [codes, setCodes] = useState<string[]>([]);
  const [error, setError] = useState<unknown>();
  const run = (work: () => Promise<void>) => {
    setError(undefined);
    work().catch((err: unknown) => {
      // Closing the browser's own question is an answer, not a fault.
      if (!(err instanceof DOMException && err.name === "NotAllowedError")) setError(err);
    });
  };
  const f = answer.data;
  const addPasskey = () =>
    run(async () => {
      const begun = await factors.beginPasskey({});
      const made = await factors.finishPasskey({ challenge: begun.challenge, passkeyResponseJson: await makePasskey(begun.passkeyOptionsJson), name: navigator.platform.slice(0, 60) || "passkey" });
      setCodes(made.recoveryCodes);
      void refetch();
    });
  return (
    <Panel id="factors" title={t.account.factors}>
      <ProblemNote error={error ?? answer.error} />
      {!f ? (
        !answer.error && <Waiting />
      ) : (
        <ul className="flex flex-col divide-y divide-line">
          <Row
            name={t.account.totp}
            state={f.totp ? <Badge tone="ok">{t.account.on}</Badge> : <Badge>{t.account.off}</Badge>}
            hint={t.account.totpHint}
            action={
              f.totp ? (
                <Button small onClick={() => run(async () => void (await factors.disableTotp({}).then(() => refetch())))}>
                  {t.account.disable}
                </Button>
              ) : (
                <Button small onClick={() => run(async () => setTotp(await factors.beginTotp({})))}>
                  {t.account.enable}
                </Button>
              )
            }
          />
          <Row
            name={t.account.passkeys}
            state={<Badge tone={f.passkeys.length > 0 ? "ok" : "none"}>{number(f.passkeys.length)}</Badge>}
            hint={f.passkeysPossible ? t.account.passkeysHint : t.account.passkeysImpossible}
            action={
              f.passkeysPossible &&
              passkeysWork() && (
                <Button small onClick={addPasskey}>
                  {t.account.add}
                </Button>
              )
            }
          >
            {f.passkeys.map((k) => (
              <div key={k.id} className="flex flex-wrap items-center justify-between gap-2 py-1">
                <span>
                  {visible(k.name, 80)} · {t.settings.used} <Time ms={k.usedUnixMs} />
                </span>
                <Button small onClick={() => run(async () => void (await factors.deletePasskey({ id: k.id }).then(() => refetch())))}>
                  {t.members.remove}
                </Button>
              </div>
            ))}
          </Row>
          <Row
            name={t.account.recovery}
            state={<Badge tone={f.recoveryCodesLeft > 2 ? "ok" : f.recoveryCodesLeft > 0 ? "warn" : "none"}>{t.account.left(number(f.recoveryCodesLeft))}</Badge>}
            hint={t.account.recoveryHint}
            action={
              (f.totp || f.passkeys.length > 0) && (
                <Button small onClick={() => run(async () => setCodes((await factors.makeRecoveryCodes({})).recoveryCodes))}>
                  {t.account.newCodes}
                </Button>
              )
            }
          />
        </ul>
      )}
      {kept && codes.length === 0 && (
        <div className="mt-4">
          <Button kind="primary" onClick={kept}>
            {t.account.go}
          </Button>
        </div>
      )}
      {totp && (
        <Enrol
          totp={totp}
          close={() => setTotp(undefined)}
          done={(made) => {
            setTotp(undefined);
            setCodes(made);
            void refetch();
          }}
        />
      )}
      <Dialog open={codes.length > 0} onOpenChange={(open) => !open && setCodes([])} title={t.account.recovery} lead={t.account.codesLead}>
        <CopyLine text={codes.join("\n")} label={t.account.recovery} />
        <DialogActions>
          <Button kind="primary" onClick={() => setCodes([])}>
            {t.account.kept}
          </Button>
        </DialogActions>
      </Dialog>
    </Panel>
  );
}

function Row({ name, state, hint, action, children }: { name: string; state: ReactNode; hint: string; action?: ReactNode; children?: ReactNode }) {
  return (
    <li className="py-3 first:pt-0 last:pb-0">
      <div className="flex flex-wrap items-center justify-between gap-3">
        <div>
          <p className="flex items-center gap-2 font-medium">
            {name} {state}
          </p>
          <p className="text-[13px] text-soft">{hint}</p>
        </div>
        {action}
      </div>
      {children}
    </li>
  );
}

function Enrol({ totp, close, done }: { totp: BeginTotpResponse; close: () => void; done: (codes: string[]) => void }) {
  const { t } = useText();
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>();
  const submit = (e: FormEvent<HTMLFormElement>) => {
    e.preventDefault();
    setBusy(true);
    setError(undefined);
    factors
      .confirmTotp({ enrolment: totp.enrolment, code: String(new FormData(e.currentTarget).get("code")) })
      .then((answer) => done(answer.recoveryCodes))
      .catch(setError)
      .finally(() => setBusy(false));
  };
  return (
    <Dialog open onOpenChange={(open) => !open && close()} title={t.account.totp} lead={t.account.totpLead}>
      <form onSubmit={submit} className="flex flex-col gap-3">
        <Qr text={totp.uri} label={t.account.qr} />
        <CopyLine text={totp.secret} label={t.account.secret} />
        <TextField label={t.signIn.code} name="code" inputMode="numeric" autoComplete="one-time-code" required minLength={6} maxLength={7} autoFocus />
        <ProblemNote error={error} />
        <DialogActions>
          <Button onClick={close}>{t.common.cancel}</Button>
          <Button type="submit" kind="primary" busy={busy}>
            {t.account.enable}
          </Button>
        </DialogActions>
      </form>
    </Dialog>
  );
}

/** Qr is dark on light in both themes, as readers of it want. */
function Qr({ text, label }: { text: string; label: string }) {
  const { data, size } = encode(text, { border: 2 });
  const path = data.flatMap((row, y) => row.flatMap((dark, x) => (dark ? [`M${x} ${y}h1v1h-1z`] : []))).join("");
  return (
    <svg viewBox={`0 0 ${size} ${size}`} role="img" aria-label={label} className="mx-auto size-48 rounded bg-white" shapeRendering="crispEdges">
      <path d={path} fill="#000" />
    </svg>
  );
}
