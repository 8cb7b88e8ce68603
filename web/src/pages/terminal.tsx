import { createClient } from "@connectrpc/connect";
import { type FormEvent, useState } from "react";
import { transport, useSession } from "@/api/session";
import { Button } from "@/components/button";
import { TextField } from "@/components/field";
import { Facts, Page, Panel } from "@/components/panel";
import { ProblemNote } from "@/components/problem";
import { Time } from "@/components/time";
import { type GetTerminalSignInResponse, TerminalService } from "@/gen/fleetban/operator/v1/terminal_pb";
import { useText } from "@/i18n";
import { visible } from "@/lib/visible";

const client = createClient(TerminalService, transport);

type Step = { at: "code" } | { at: "decide"; asked: GetTerminalSignInResponse } | { at: "approved" } | { at: "denied" };

/**
 * Terminal is where a person types the code that `fleetban login --browser` shows, and decides. No link brings the code: one
 * that somebody else sent would have them approve what they didn't begin.
 */
export function Terminal() {
  const { t } = useText();
  const session = useSession();
  const [step, setStep] = useState<Step>({ at: "code" });
  const [code, setCode] = useState("");
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>();
  const go = (work: () => Promise<Step>) => {
    setBusy(true);
    setError(undefined);
    work()
      .then(setStep)
      .catch(setError)
      .finally(() => setBusy(false));
  };
  const look = (e: FormEvent) => {
    e.preventDefault();
    go(async () => ({ at: "decide", asked: await client.getTerminalSignIn({ code }) }));
  };
  const again = () => {
    setCode("");
    setError(undefined);
    setStep({ at: "code" });
  };
  return (
    <Page title={t.terminal.title} lead={t.terminal.lead}>
      <Panel>
        <div className="flex max-w-prose flex-col gap-4" aria-live="polite">
          <ProblemNote error={error} />
          {step.at === "code" && (
            <form onSubmit={look} className="flex flex-col gap-3">
              <TextField
                label={t.terminal.code}
                hint={t.terminal.codeHint}
                value={code}
                onChange={(e) => setCode(e.target.value)}
                required
                minLength={8}
                maxLength={32}
                autoFocus
                autoComplete="off"
                autoCapitalize="characters"
                spellCheck={false}
                className="max-w-48 font-mono uppercase"
              />
              <div>
                <Button kind="primary" type="submit" busy={busy}>
                  {t.terminal.next}
                </Button>
              </div>
            </form>
          )}
          {step.at === "decide" && (
            <>
              <Facts
                of={[
                  [t.terminal.code, <span className="font-mono">{visible(step.asked.code, 16)}</span>],
                  [t.terminal.machine, step.asked.name ? visible(step.asked.name, 253) : "–"],
                  [t.terminal.program, step.asked.userAgent ? visible(step.asked.userAgent, 120) : "–"],
                  [t.terminal.address, <Where asked={step.asked} />],
                  [t.terminal.began, <Time ms={step.asked.beganUnixMs} />],
                ]}
              />
              <p>{t.terminal.warning(session.state === "in" ? session.person.email : "")}</p>
              <div className="flex flex-wrap gap-2">
                <Button
                  kind="primary"
                  busy={busy}
                  onClick={() => go(async () => (await client.approveTerminalSignIn({ code: step.asked.code }), { at: "approved" }))}
                >
                  {t.terminal.approve}
                </Button>
                <Button kind="danger" busy={busy} onClick={() => go(async () => (await client.denyTerminalSignIn({ code: step.asked.code }), { at: "denied" }))}>
                  {t.terminal.deny}
                </Button>
              </div>
            </>
          )}
          {(step.at === "approved" || step.at === "denied") && (
            <>
              <p role="status">{step.at === "approved" ? t.terminal.approved : t.terminal.denied}</p>
              <div>
                <Button onClick={again}>{t.terminal.another}</Button>
              </div>
            </>
          )}
        </div>
      </Panel>
    </Page>
  );
}

/** Where it asks from, and whether that is where this browser is. */
function Where({ asked }: { asked: GetTerminalSignInResponse }) {
  const { t } = useText();
  return (
    <>
      <span className="font-mono text-[13px]">{asked.address ? visible(asked.address, 64) : "–"}</span>{" "}
      <span className={asked.samePlace ? "text-soft" : "font-medium"}>({asked.samePlace ? t.terminal.samePlace : t.terminal.otherPlace})</span>
    </>
  );
}
