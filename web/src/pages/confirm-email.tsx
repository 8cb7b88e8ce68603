import { createClient } from "@connectrpc/connect";
import { Link } from "@tanstack/react-router";
import { useState } from "react";
import { transport } from "@/api/session";
import { Button } from "@/components/button";
import { Plain } from "@/components/plain";
import { ProblemNote } from "@/components/problem";
import { AccountService } from "@/gen/fleetban/operator/v1/people_pb";
import { useText } from "@/i18n";
import { linkSecret } from "@/lib/link-secret";

/** ConfirmEmail is where the letter to a new address leads. Opening it changes nothing: mail programs open links too. */
export function ConfirmEmail() {
  const { t } = useText();
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>();
  const [done, setDone] = useState(false);
  const go = () => {
    setBusy(true);
    setError(undefined);
    createClient(AccountService, transport)
      .confirmEmail({ confirmation: linkSecret() })
      .then(() => setDone(true))
      .catch(setError)
      .finally(() => setBusy(false));
  };
  return (
    <Plain title={t.confirmEmail.title} lead={done ? t.confirmEmail.done : t.confirmEmail.lead}>
      {done ? (
        <Link to="/" className="text-accent underline">
          {t.setup.toSignIn}
        </Link>
      ) : (
        <div className="flex flex-col gap-3">
          <ProblemNote error={error} />
          <Button kind="primary" busy={busy} onClick={go}>
            {t.confirmEmail.go}
          </Button>
        </div>
      )}
    </Plain>
  );
}
