import { createClient } from "@connectrpc/connect";
import { Link } from "@tanstack/react-router";
import { type FormEvent, useState } from "react";
import { transport } from "@/api/session";
import { Button } from "@/components/button";
import { TextField } from "@/components/field";
import { ProblemNote } from "@/components/problem";
import { MemberService } from "@/gen/fleetban/operator/v1/people_pb";
import { useText } from "@/i18n";
import { linkSecret } from "@/lib/link-secret";
import { Plain } from "@/components/plain";

/** Invitation is where an invitation's link leads: a password, and one is a member. */
export function Invitation() {
  const { t } = useText();
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>();
  const [joined, setJoined] = useState<string>();
  const submit = (e: FormEvent<HTMLFormElement>) => {
    e.preventDefault();
    setBusy(true);
    setError(undefined);
    createClient(MemberService, transport)
      .acceptInvitation({ invitation: linkSecret(), password: String(new FormData(e.currentTarget).get("password")) })
      .then((answer) => setJoined(answer.email))
      .catch(setError)
      .finally(() => setBusy(false));
  };
  if (joined)
    return (
      <Plain title={t.invitation.done} lead={t.invitation.doneLead(joined)}>
        <Link to="/" className="text-accent underline">
          {t.setup.toSignIn}
        </Link>
      </Plain>
    );
  return (
    <Plain title={t.invitation.title} lead={t.invitation.lead}>
      <form onSubmit={submit} className="flex flex-col gap-3">
        <TextField label={t.signIn.password} name="password" type="password" autoComplete="new-password" required maxLength={1024} hint={t.setup.passwordHint} autoFocus />
        <ProblemNote error={error} />
        <Button type="submit" kind="primary" busy={busy}>
          {t.invitation.go}
        </Button>
      </form>
    </Plain>
  );
}
