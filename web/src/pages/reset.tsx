import { createClient } from "@connectrpc/connect";
import { Link } from "@tanstack/react-router";
import { type FormEvent, useState } from "react";
import { transport } from "@/api/session";
import { Button } from "@/components/button";
import { TextField } from "@/components/field";
import { Plain } from "@/components/plain";
import { ProblemNote } from "@/components/problem";
import { AccountService } from "@/gen/fleetban/operator/v1/people_pb";
import { useText } from "@/i18n";
import { linkSecret } from "@/lib/link-secret";

const client = createClient(AccountService, transport);

/** Reset asks for a link where it was opened without one, and for a new password where it was opened by one. */
export function Reset() {
  const { t } = useText();
  const secret = linkSecret();
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>();
  const [done, setDone] = useState(false);
  const submit = (e: FormEvent<HTMLFormElement>) => {
    e.preventDefault();
    const form = new FormData(e.currentTarget);
    setBusy(true);
    setError(undefined);
    const work: Promise<unknown> = secret
      ? client.resetPassword({ reset: secret, newPassword: String(form.get("password")) })
      : client.requestPasswordReset({ email: String(form.get("email")) });
    work
      .then(() => setDone(true))
      .catch(setError)
      .finally(() => setBusy(false));
  };
  if (done)
    return (
      <Plain title={secret ? t.reset.done : t.reset.sent} lead={secret ? t.reset.doneLead : t.reset.sentLead}>
        <Link to="/" className="text-accent underline">
          {t.setup.toSignIn}
        </Link>
      </Plain>
    );
  return (
    <Plain title={t.reset.title} lead={secret ? t.reset.newLead : t.reset.lead}>
      <form onSubmit={submit} className="flex flex-col gap-3">
        {secret ? (
          <TextField label={t.account.next} name="password" type="password" autoComplete="new-password" minLength={12} required maxLength={1024} hint={t.setup.passwordHint} autoFocus />
        ) : (
          <TextField label={t.signIn.email} name="email" type="email" autoComplete="username" required maxLength={254} autoFocus />
        )}
        <ProblemNote error={error} />
        <Button type="submit" kind="primary" busy={busy}>
          {secret ? t.account.change : t.reset.send}
        </Button>
      </form>
    </Plain>
  );
}
