import { createClient } from "@connectrpc/connect";
import { useQuery } from "@connectrpc/connect-query";
import { Link } from "@tanstack/react-router";
import { type FormEvent, useState } from "react";
import { began, leaving, transport } from "@/api/session";
import { Button } from "@/components/button";
import { TextField } from "@/components/field";
import { Plain } from "@/components/plain";
import { ProblemNote } from "@/components/problem";
import { type SecondFactor, type SignInResponse, SessionService } from "@/gen/fleetban/operator/v1/people_pb";
import { SsoService } from "@/gen/fleetban/operator/v1/sso_pb";
import { useText } from "@/i18n";
import { answerPasskey, passkeysWork } from "@/lib/passkey";
import { visible } from "@/lib/visible";

const client = createClient(SessionService, transport);

/** FactorAnswer is what answers a second factor. */
export type FactorAnswer = { case: "totpCode" | "recoveryCode"; value: string } | { case: "passkeyResponseJson"; value: Uint8Array<ArrayBuffer> };

/** SignIn takes a password, a second factor where the account has one, or a passkey alone. */
export function SignIn({ why }: { why: "none" | "ended" | "elsewhere" }) {
  const { t } = useText();
  const [factor, setFactor] = useState<SecondFactor>();
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>();

  const take = (answer: SignInResponse) => {
    if (answer.secondFactor) setFactor(answer.secondFactor);
    else if (answer.person) began(answer.person, answer.tokens);
  };
  const attempt = async (work: () => Promise<SignInResponse>): Promise<void> => {
    setBusy(true);
    setError(undefined);
    try {
      take(await work());
    } catch (err) {
      // Closing the browser's own question is an answer, not a fault.
      if (!(err instanceof DOMException && err.name === "NotAllowedError")) setError(err);
    } finally {
      setBusy(false);
    }
  };
  const password = (e: FormEvent<HTMLFormElement>) => {
    e.preventDefault();
    const form = new FormData(e.currentTarget);
    void attempt(() => client.signIn({ email: String(form.get("email")), password: String(form.get("password")) }));
  };
  const passkey = () =>
    void attempt(async () => {
      const begun = await client.beginPasskeySignIn({});
      return client.completeSignIn({ challenge: begun.challenge, answer: { case: "passkeyResponseJson", value: await answerPasskey(begun.passkeyOptionsJson) } });
    });

  const sso = useQuery(SsoService.method.getSsoSignIn, {}, { retry: false, staleTime: Number.POSITIVE_INFINITY }).data;
  const [otherwise, setOtherwise] = useState(false);
  const provider = sso?.provider ? sso : undefined;

  if (factor) return <Second factor={factor} busy={busy} error={error} answer={(work) => void attempt(async () => client.completeSignIn({ challenge: factor.challenge, answer: await work() }))} back={() => setFactor(undefined)} />;
  return (
    <Plain title={t.signIn.title}>
      {why !== "none" && (
        <p role="status" className="mb-3 rounded-md bg-accent-soft px-3 py-2 text-accent">
          {why === "elsewhere" ? t.signIn.elsewhere : t.signIn.ended}
        </p>
      )}
      {provider && (
        <div className="mb-4 flex flex-col gap-3">
          <a
            href={provider.startPath}
            onClick={leaving}
            className="inline-flex min-h-9 items-center justify-center rounded-md bg-accent px-3 font-medium break-all text-on-accent hover:opacity-90"
          >
            {t.signIn.provider(visible(provider.provider, 100))}
          </a>
          {provider.required && !otherwise && (
            <button type="button" onClick={() => setOtherwise(true)} className="self-center text-soft hover:text-text hover:underline">
              {t.signIn.breakGlass}
            </button>
          )}
        </div>
      )}
      {(!provider?.required || otherwise) && (
        <form onSubmit={password} className="flex flex-col gap-3">
          <TextField label={t.signIn.email} name="email" type="email" autoComplete="username" required maxLength={254} />
          <TextField label={t.signIn.password} name="password" type="password" autoComplete="current-password" required maxLength={1024} />
          <ProblemNote error={error} />
          <Button type="submit" kind={provider ? "plain" : "primary"} busy={busy}>
            {t.signIn.go}
          </Button>
          {passkeysWork() && (
            <Button onClick={passkey} disabled={busy}>
              {t.signIn.passkey}
            </Button>
          )}
          <Link to="/reset" className="self-center text-soft hover:text-text hover:underline">
            {t.reset.forgot}
          </Link>
        </form>
      )}
    </Plain>
  );
}

/** Second asks for a second factor. */
export function Second({ factor, busy, error, answer, back }: {
  factor: SecondFactor;
  busy: boolean;
  error: unknown;
  answer: (work: () => Promise<FactorAnswer>) => void;
  back: () => void;
}) {
  const { t } = useText();
  const [recovery, setRecovery] = useState(!factor.totp && factor.recoveryCode && factor.passkeyOptionsJson.length === 0);
  const submit = (e: FormEvent<HTMLFormElement>) => {
    e.preventDefault();
    const value = String(new FormData(e.currentTarget).get("code"));
    answer(() => Promise.resolve({ case: recovery ? "recoveryCode" : "totpCode", value }));
  };
  const passkey = () => answer(async () => ({ case: "passkeyResponseJson", value: await answerPasskey(factor.passkeyOptionsJson) }));
  return (
    <Plain title={t.signIn.second} lead={recovery ? t.signIn.recoveryLead : factor.totp ? t.signIn.codeLead : t.signIn.passkeyLead}>
      <form onSubmit={submit} className="flex flex-col gap-3">
        {(factor.totp || recovery) && (
          <>
            <TextField
              key={String(recovery)}
              label={recovery ? t.signIn.recoveryCode : t.signIn.code}
              name="code"
              autoComplete="one-time-code"
              inputMode={recovery ? "text" : "numeric"}
              autoFocus
              required
              maxLength={64}
            />
            <ProblemNote error={error} />
            <Button type="submit" kind="primary" busy={busy}>
              {t.signIn.go}
            </Button>
          </>
        )}
        {!factor.totp && !recovery && <ProblemNote error={error} />}
        {factor.passkeyOptionsJson.length > 0 && passkeysWork() && (
          <Button onClick={passkey} disabled={busy}>
            {t.signIn.passkey}
          </Button>
        )}
        {factor.recoveryCode && !recovery && (
          <Button kind="ghost" onClick={() => setRecovery(true)}>
            {t.signIn.useRecovery}
          </Button>
        )}
        <Button kind="ghost" onClick={back}>
          {t.signIn.back}
        </Button>
      </form>
    </Plain>
  );
}

