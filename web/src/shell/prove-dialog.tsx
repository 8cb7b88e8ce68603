import { createClient } from "@connectrpc/connect";
import { useQuery } from "@connectrpc/connect-query";
import { type FormEvent, useState } from "react";
import { transport } from "@/api/session";
import { Button } from "@/components/button";
import { Dialog, DialogActions } from "@/components/dialog";
import { TextField } from "@/components/field";
import { ProblemNote } from "@/components/problem";
import { type Proof, SessionService } from "@/gen/fleetban/operator/v1/people_pb";
import { useText } from "@/i18n";
import { answerPasskey, passkeysWork } from "@/lib/passkey";

const client = createClient(SessionService, transport);

/** ProveDialog has the person prove that it is them, with what their account has. */
export function ProveDialog({ done }: { done: (proved: boolean) => void }) {
  const { t } = useText();
  const options = useQuery(SessionService.method.getProofOptions, {}, { gcTime: 0, staleTime: Number.POSITIVE_INFINITY, refetchOnWindowFocus: false });
  const has = options.data;
  const [busy, setBusy] = useState(false);
  const [recovery, setRecovery] = useState(false);
  const [error, setError] = useState<unknown>();
  const attempt = async (by: () => Promise<Proof["by"]>) => {
    setBusy(true);
    setError(undefined);
    try {
      await client.prove({ proof: { by: await by() } });
      done(true);
    } catch (err) {
      // Closing the browser's own question is an answer, not a fault. A challenge is good once.
      if (!(err instanceof DOMException && err.name === "NotAllowedError")) setError(err);
      void options.refetch();
    } finally {
      setBusy(false);
    }
  };
  const passkey = (has?.passkeyOptionsJson.length ?? 0) > 0;
  const second = has?.totp || has?.recoveryCode || passkey;
  const kind = recovery || (has?.recoveryCode && !has.totp && !passkey) ? "recoveryCode" : has?.totp ? "totpCode" : has?.password && !second ? "password" : undefined;
  const submit = (e: FormEvent<HTMLFormElement>) => {
    e.preventDefault();
    // A dialog may stand in another one's form.
    e.stopPropagation();
    const value = String(new FormData(e.currentTarget).get("proof"));
    if (kind) void attempt(() => Promise.resolve({ case: kind, value }));
  };
  return (
    <Dialog open over onOpenChange={(open) => !open && done(false)} title={t.prove.title} lead={t.prove.lead}>
      <form onSubmit={submit} className="flex flex-col gap-3" aria-busy={options.isPending}>
        {kind && (
          <TextField
            key={kind}
            label={kind === "password" ? t.signIn.password : kind === "totpCode" ? t.signIn.code : t.signIn.recoveryCode}
            name="proof"
            type={kind === "password" ? "password" : "text"}
            autoComplete={kind === "password" ? "current-password" : "one-time-code"}
            inputMode={kind === "totpCode" ? "numeric" : "text"}
            autoFocus
            required
            maxLength={kind === "password" ? 1024 : 64}
          />
        )}
        {has && passkey && passkeysWork() && (
          <Button
            disabled={busy}
            onClick={() => void attempt(async () => ({ case: "passkey", value: { $typeName: "fleetban.operator.v1.PasskeyProof", challenge: has.challenge, responseJson: await answerPasskey(has.passkeyOptionsJson) } }))}
          >
            {t.signIn.passkey}
          </Button>
        )}
        {has?.recoveryCode && kind !== "recoveryCode" && (
          <Button kind="ghost" onClick={() => setRecovery(true)}>
            {t.signIn.useRecovery}
          </Button>
        )}
        {has?.providerUrl && (
          <p>
            {t.prove.provider}{" "}
            <a href={has.providerUrl} className="text-accent underline">
              {t.prove.toProvider}
            </a>
          </p>
        )}
        <ProblemNote error={error ?? options.error} />
        <DialogActions>
          <Button onClick={() => done(false)}>{t.common.cancel}</Button>
          {kind && (
            <Button type="submit" kind="primary" busy={busy}>
              {t.prove.go}
            </Button>
          )}
        </DialogActions>
      </form>
    </Dialog>
  );
}
