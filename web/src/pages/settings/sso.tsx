import { createClient } from "@connectrpc/connect";
import { useQuery } from "@connectrpc/connect-query";
import { Plus, Trash2 } from "lucide-react";
import { type FormEvent, useState } from "react";
import { transport, useSession } from "@/api/session";
import { Badge } from "@/components/badge";
import { Button, IconButton } from "@/components/button";
import { CopyLine } from "@/components/copy";
import { Dialog, DialogActions } from "@/components/dialog";
import { Waiting } from "@/components/empty";
import { CheckField, SelectField, TextField } from "@/components/field";
import { Panel } from "@/components/panel";
import { ProblemNote } from "@/components/problem";
import { note } from "@/components/toast";
import { MemberService, Role } from "@/gen/fleetban/operator/v1/people_pb";
import { type GetSsoResponse, SsoService, type TestSsoResponse } from "@/gen/fleetban/operator/v1/sso_pb";
import { useText } from "@/i18n";
import { words } from "@/lib/words";
import { visible } from "@/lib/visible";

const client = createClient(SsoService, transport);

/** Sso is the organisation's identity provider: who it vouches for, and as what. */
export function Sso() {
  const { t } = useText();
  const session = useSession();
  const owner = session.state === "in" && session.person.role === Role.OWNER;
  const answer = useQuery(SsoService.method.getSso, {}, { refetchOnWindowFocus: false });
  const s = answer.data;
  return (
    <>
      <Panel id="sso" title={t.settings.sso} actions={s && <Badge tone={s.configured ? "ok" : "none"}>{!s.configured ? t.account.off : s.required ? t.sso.requiredBadge : t.account.on}</Badge>}>
        <ProblemNote error={answer.error} retry={() => void answer.refetch()} />
        {!s ? (
          !answer.error && <Waiting />
        ) : (
          <>
            <p className="mb-4 max-w-prose text-soft">{t.sso.lead}</p>
            <Form key={answer.dataUpdatedAt} of={s} owner={owner} done={() => void answer.refetch()} />
          </>
        )}
      </Panel>
      {s && (
        <Panel id="sso-addresses" title={t.sso.addresses}>
          <p className="mb-1 font-medium">{t.sso.redirect}</p>
          <CopyLine text={s.redirectUrl} label={t.sso.redirect} />
          {s.configured && (
            <>
              <p className="mt-4 mb-1 font-medium">{t.sso.start}</p>
              <CopyLine text={s.startUrl} label={t.sso.start} />
            </>
          )}
        </Panel>
      )}
      {s?.configured && owner && <Remove done={() => void answer.refetch()} />}
    </>
  );
}

interface Mapping {
  /** For the list's rows; of no meaning elsewhere. */
  key: number;
  group: string;
  role: Role;
  tags: string;
}

function Form({ of: s, owner, done }: { of: GetSsoResponse; owner: boolean; done: () => void }) {
  const { t } = useText();
  const session = useSession();
  const members = useQuery(MemberService.method.listMembers);
  const owners = (members.data?.members ?? []).filter((m) => m.role === Role.OWNER);
  const me = session.state === "in" ? session.person.email : "";
  const [rows, setRows] = useState<Mapping[]>(() =>
    s.roles.length > 0 ? s.roles.map((r, key) => ({ key, group: r.group, role: r.role, tags: r.tags.join(", ") })) : [{ key: 0, group: "", role: Role.VIEWER, tags: "" }],
  );
  const [required, setRequired] = useState(s.required);
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>();
  const change = (key: number, to: Partial<Mapping>) => setRows((old) => old.map((r) => (r.key === key ? { ...r, ...to } : r)));

  const submit = (e: FormEvent<HTMLFormElement>) => {
    e.preventDefault();
    const form = new FormData(e.currentTarget);
    const text = (name: string) => String(form.get(name) ?? "").trim();
    setBusy(true);
    setError(undefined);
    client
      .setSso({
        issuer: text("issuer"),
        clientId: text("client"),
        clientSecret: text("secret"),
        domains: words(text("domains")).map((d) => d.toLowerCase()),
        groupClaim: text("claim"),
        roles: rows.map((r) => ({ group: r.group.trim(), role: r.role, tags: narrow(r.role) ? words(r.tags) : [] })),
        required,
        breakGlass: required ? text("exit") : "",
      })
      .then(() => {
        note(t.approvals.saved);
        done();
      })
      .catch(setError)
      .finally(() => setBusy(false));
  };
  return (
    <form onSubmit={submit}>
      <fieldset disabled={!owner} className="flex flex-col gap-3">
        {!owner && <p className="text-soft">{t.approvals.ownersOnly}</p>}
        <div className="grid gap-3 sm:grid-cols-2">
          <TextField label={t.sso.issuer} name="issuer" type="url" pattern="https://.*" placeholder="https://login.example.com" required maxLength={500} defaultValue={s.issuer} hint={t.sso.issuerHint} />
          <TextField label={t.sso.domains} name="domains" required placeholder="example.com" defaultValue={s.domains.join(", ")} hint={t.sso.domainsHint} />
          <TextField label={t.sso.client} name="client" required maxLength={200} defaultValue={s.clientId} />
          <TextField label={t.sso.secret} name="secret" type="password" autoComplete="off" required={!s.configured} maxLength={500} hint={s.configured ? t.sso.secretHint : undefined} />
          <TextField label={t.sso.claim} name="claim" maxLength={200} placeholder="groups" defaultValue={s.groupClaim} hint={t.sso.claimHint} />
        </div>
        <div role="group" aria-labelledby="sso-groups" className="flex flex-col gap-2">
          <p id="sso-groups" className="font-medium">
            {t.sso.groups}
          </p>
          <p className="text-[13px] text-soft">{t.sso.groupsHint}</p>
          <ul className="flex flex-col gap-2">
            {rows.map((r, i) => (
              <li key={r.key} className="grid grid-cols-[1fr_auto] gap-2 rounded-md border border-line p-2 sm:grid-cols-[2fr_10rem_2fr_auto] sm:border-0 sm:p-0">
                <TextField quiet label={t.sso.group(i + 1)} placeholder={t.sso.everyone} maxLength={200} value={r.group} onChange={(e) => change(r.key, { group: e.target.value })} />
                <SelectField quiet label={t.sso.roleOf(i + 1)} value={r.role} onChange={(e) => change(r.key, { role: Number(e.target.value) })}>
                  {[Role.OWNER, Role.ADMIN, Role.OPERATOR, Role.VIEWER].map((role) => (
                    <option key={role} value={role}>
                      {t.roles[role]}
                    </option>
                  ))}
                </SelectField>
                <TextField
                  quiet
                  label={t.sso.tagsOf(i + 1)}
                  placeholder={narrow(r.role) ? t.members.wholeFleet : "–"}
                  disabled={!narrow(r.role)}
                  value={narrow(r.role) ? r.tags : ""}
                  onChange={(e) => change(r.key, { tags: e.target.value })}
                />
                <IconButton label={t.sso.dropGroup(i + 1)} disabled={rows.length === 1} onClick={() => setRows((old) => old.filter((o) => o.key !== r.key))}>
                  <Trash2 size={15} aria-hidden />
                </IconButton>
              </li>
            ))}
          </ul>
          <div>
            <Button
              small
              icon={<Plus size={14} aria-hidden />}
              onClick={() => setRows((old) => [...old, { key: Math.max(...old.map((o) => o.key)) + 1, group: "", role: Role.VIEWER, tags: "" }])}
            >
              {t.sso.addGroup}
            </Button>
          </div>
        </div>
        <CheckField label={t.sso.required} hint={t.sso.requiredHint} checked={required} onChange={(e) => setRequired(e.target.checked)} />
        {required && (
          <div className="max-w-md">
            <SelectField key={owners.length} label={t.sso.breakGlass} name="exit" required defaultValue={s.breakGlass || me} hint={t.sso.breakGlassHint}>
              {owners.map((m) => (
                <option key={m.personId} value={m.email}>
                  {visible(m.email, 254)}
                </option>
              ))}
            </SelectField>
          </div>
        )}
        <ProblemNote error={error} />
        <div className="flex flex-wrap gap-2">
          <Button type="submit" kind="primary" busy={busy}>
            {t.approvals.save}
          </Button>
        </div>
      </fieldset>
      {s.configured && <Test />}
    </form>
  );
}

/** narrow says whether a role can be restricted to tags. */
function narrow(role: Role): boolean {
  return role === Role.OPERATOR || role === Role.VIEWER;
}

function Test() {
  const { t } = useText();
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>();
  const [said, setSaid] = useState<TestSsoResponse>();
  const test = () => {
    setBusy(true);
    setError(undefined);
    setSaid(undefined);
    client
      .testSso({})
      .then(setSaid)
      .catch(setError)
      .finally(() => setBusy(false));
  };
  return (
    <div className="mt-3 flex flex-col items-start gap-2">
      <Button busy={busy} onClick={test}>
        {t.sso.test}
      </Button>
      <div role="status" aria-live="polite" className="break-words">
        {said &&
          (said.problem ? (
            <p className="text-bad">{visible(said.problem, 500)}</p>
          ) : (
            <p className="text-ok">
              {t.sso.answers} <span className="font-mono text-[13px]">{visible(said.authorizationEndpoint, 300)}</span>
            </p>
          ))}
      </div>
      <ProblemNote error={error} />
    </div>
  );
}

function Remove({ done }: { done: () => void }) {
  const { t } = useText();
  const [open, setOpen] = useState(false);
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>();
  const go = () => {
    setBusy(true);
    setError(undefined);
    client
      .deleteSso({})
      .then(() => {
        note(t.sso.removed);
        setOpen(false);
        done();
      })
      .catch(setError)
      .finally(() => setBusy(false));
  };
  return (
    <div>
      <Button kind="danger" onClick={() => setOpen(true)}>
        {t.sso.remove}…
      </Button>
      <Dialog open={open} onOpenChange={setOpen} title={t.sso.removeTitle} lead={t.sso.removeLead}>
        <ProblemNote error={error} />
        <DialogActions>
          <Button onClick={() => setOpen(false)}>{t.common.cancel}</Button>
          <Button kind="danger" busy={busy} onClick={go}>
            {t.sso.remove}
          </Button>
        </DialogActions>
      </Dialog>
    </div>
  );
}
