import { createClient } from "@connectrpc/connect";
import { Link } from "@tanstack/react-router";
import { type FormEvent, useState } from "react";
import { transport } from "@/api/session";
import { Button } from "@/components/button";
import { TextField } from "@/components/field";
import { ProblemNote } from "@/components/problem";
import { MemberService, type SecondFactor } from "@/gen/fleetban/operator/v1/people_pb";
import { useText } from "@/i18n";
import { linkSecret } from "@/lib/link-secret";
import { Plain } from "@/components/plain";
import { type FactorAnswer, Second } from "./sign-in";

/** Invitation is where an invitation's link leads: a password, and one is a member. */
export function Invitation() {
  const { t } = useText();
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>();
  const [joined, setJoined] = useState<string>();
  // An account that stands is asked for its second factor too.
  const [second, setSecond] = useState<{ factor: SecondFactor; password: string }>();
  const accept = async (password: string, work?: () => Promise<FactorAnswer>) => {
    setBusy(true);
    setError(undefined);
    try {
      const secondFactor = work && second ? { challenge: second.factor.challenge, answer: await work() } : undefined;
      const answer = await createClient(MemberService, transport).acceptInvitation({ invitation: linkSecret(), password, secondFactor });
      if (answer.secondFactor) setSecond({ factor: answer.secondFactor, password });
      else setJoined(answer.email);
    } catch (err) {
      // Closing the browser's own question is an answer, not a fault.
      if (!(err instanceof DOMException && err.name === "NotAllowedError")) setError(err);
    } finally {
      setBusy(false);
    }
  };
  const submit = (e: FormEvent<HTMLFormElement>) => {
    e.preventDefault();
    void accept(String(new FormData(e.currentTarget).get("password")));
  };
  if (joined)
    return (
      <Plain title={t.invitation.done} lead={t.invitation.doneLead(joined)}>
        <Link to="/" className="text-accent underline">
          {t.setup.toSignIn}
        </Link>
      </Plain>
    );
  if (second)
    return (
      <Second
        factor={second.factor}
        busy={busy}
        error={error}
        answer={(work) => void accept(second.password, work)}
        back={() => {
          setSecond(undefined);
          setError(undefined);
        }}
      />
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
