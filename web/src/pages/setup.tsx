import { createClient } from "@connectrpc/connect";
import { useQuery } from "@connectrpc/connect-query";
import { Link, useNavigate } from "@tanstack/react-router";
import { type FormEvent, useState } from "react";
import { began, transport } from "@/api/session";
import { Button } from "@/components/button";
import { SelectField, TextField } from "@/components/field";
import { ProblemNote } from "@/components/problem";
import { SetupService } from "@/gen/fleetban/operator/v1/setup_pb";
import { Mode } from "@/gen/fleetban/v1/agent_pb";
import { useText } from "@/i18n";
import { Plain } from "@/components/plain";

// Behind the #, so that no server's log and no other page ever sees it; taken out of the address bar at once.
const secret = window.location.hash.slice(1);

/** SetUp is the first start: the organisation and its owner. */
export function SetUp() {
  const { t } = useText();
  const navigate = useNavigate();
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>();
  const state = useQuery(SetupService.method.getSetup);
  const submit = (e: FormEvent<HTMLFormElement>) => {
    e.preventDefault();
    const form = new FormData(e.currentTarget);
    setBusy(true);
    setError(undefined);
    createClient(SetupService, transport)
      .setup({
        token: secret,
        organisationName: String(form.get("organisation")),
        email: String(form.get("email")),
        password: String(form.get("password")),
        mode: Number(form.get("mode")),
      })
      .then((answer) => {
        if (answer.person) began(answer.person, answer.tokens);
        return navigate({ to: "/hosts/add", replace: true });
      })
      .catch(setError)
      .finally(() => setBusy(false));
  };
  if (state.data?.done)
    return (
      <Plain title={t.setup.doneTitle} lead={t.setup.doneLead}>
        <Link to="/" className="text-accent underline">
          {t.setup.toSignIn}
        </Link>
      </Plain>
    );
  if (secret === "") return <Plain title={t.setup.title} lead={t.setup.noSecret}>{null}</Plain>;
  return (
    <Plain title={t.setup.title} lead={t.setup.lead}>
      <form onSubmit={submit} className="flex flex-col gap-3">
        <TextField label={t.setup.organisation} name="organisation" required maxLength={60} autoFocus />
        <TextField label={t.signIn.email} name="email" type="email" autoComplete="username" required maxLength={254} />
        <TextField label={t.signIn.password} name="password" type="password" autoComplete="new-password" minLength={12} required maxLength={1024} hint={t.setup.passwordHint} />
        <SelectField label={t.setup.mode} name="mode" defaultValue={Mode.ENFORCE} hint={t.setup.modeHint}>
          <option value={Mode.ENFORCE}>{t.modes.enforce}</option>
          <option value={Mode.WATCH}>{t.modes.watch}</option>
        </SelectField>
        <ProblemNote error={error} />
        <Button type="submit" kind="primary" busy={busy}>
          {t.setup.go}
        </Button>
      </form>
    </Plain>
  );
}
