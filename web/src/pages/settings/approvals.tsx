import { createClient } from "@connectrpc/connect";
import { useQuery } from "@connectrpc/connect-query";
import { type FormEvent, useState } from "react";
import { useMay } from "@/api/may";
import { transport } from "@/api/session";
import { Button } from "@/components/button";
import { Waiting } from "@/components/empty";
import { CheckField, TextField } from "@/components/field";
import { Panel } from "@/components/panel";
import { ProblemNote } from "@/components/problem";
import { note } from "@/components/toast";
import { type ApprovalPolicy as Policy, ApprovalService } from "@/gen/fleetban/operator/v1/approvals_pb";
import { useText } from "@/i18n";

const client = createClient(ApprovalService, transport);

/** ApprovalPolicy is what needs a second person. */
export function ApprovalPolicy() {
  const { t } = useText();
  const may = useMay();
  const answer = useQuery(ApprovalService.method.getApprovalPolicy);
  const policy = answer.data?.policy;
  return (
    <Panel id="approval-policy" title={t.settings.approvals}>
      <ProblemNote error={answer.error} retry={() => void answer.refetch()} />
      {!policy ? (
        !answer.error && <Waiting />
      ) : may("approvalPolicy") ? (
        // What another owner saved meanwhile is shown, not overwritten.
        <Form key={JSON.stringify([policy.required, policy.widestIpv4Bits, policy.widestIpv6Bits, policy.mostPrefixes])} policy={policy} done={() => void answer.refetch()} />
      ) : (
        <>
          <p>{policy.required ? t.approvals.what.policy(String(policy.widestIpv4Bits), String(policy.widestIpv6Bits), String(policy.mostPrefixes)) : t.approvals.off}</p>
          <p className="mt-1 text-soft">{t.approvals.ownersOnly}</p>
        </>
      )}
    </Panel>
  );
}

function Form({ policy, done }: { policy: Policy; done: () => void }) {
  const { t } = useText();
  const [required, setRequired] = useState(policy.required);
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>();
  const submit = (e: FormEvent<HTMLFormElement>) => {
    e.preventDefault();
    const form = new FormData(e.currentTarget);
    const number = (name: string, otherwise: number) => (form.has(name) ? Number(form.get(name)) : otherwise);
    setBusy(true);
    setError(undefined);
    client
      .setApprovalPolicy({
        required,
        widestIpv4Bits: number("four", policy.widestIpv4Bits),
        widestIpv6Bits: number("six", policy.widestIpv6Bits),
        mostPrefixes: number("most", policy.mostPrefixes),
      })
      .then(() => {
        note(t.approvals.saved);
        done();
      })
      .catch(setError)
      .finally(() => setBusy(false));
  };
  return (
    <form onSubmit={submit} className="flex max-w-lg flex-col gap-3">
      <CheckField label={t.approvals.required} hint={t.approvals.requiredHint} checked={required} onChange={(e) => setRequired(e.target.checked)} />
      {required && (
        <>
          <TextField label={t.approvals.widest4} name="four" type="number" min={1} max={32} required defaultValue={policy.widestIpv4Bits} />
          <TextField label={t.approvals.widest6} name="six" type="number" min={1} max={128} required defaultValue={policy.widestIpv6Bits} />
          <TextField label={t.approvals.most} name="most" type="number" min={1} max={1000} required defaultValue={policy.mostPrefixes} />
        </>
      )}
      <ProblemNote error={error} />
      <div>
        <Button type="submit" kind="primary" busy={busy}>
          {t.approvals.save}
        </Button>
      </div>
    </form>
  );
}
