import { createClient } from "@connectrpc/connect";
import { useQuery } from "@connectrpc/connect-query";
import { useQueryClient } from "@tanstack/react-query";
import { Pencil } from "lucide-react";
import { type FormEvent, useMemo, useState } from "react";
import { useMay } from "@/api/may";
import { optimistic } from "@/api/optimistic";
import { transport, useSession } from "@/api/session";
import { Button, IconButton } from "@/components/button";
import { CopyLine } from "@/components/copy";
import { Dialog, DialogActions } from "@/components/dialog";
import { Waiting } from "@/components/empty";
import { SelectField, TextField } from "@/components/field";
import { Panel } from "@/components/panel";
import { ProblemNote } from "@/components/problem";
import { type Columns, Table } from "@/components/table";
import { Time } from "@/components/time";
import { note } from "@/components/toast";
import { type InviteResponse, type Member, MemberService, Role } from "@/gen/fleetban/operator/v1/people_pb";
import { useText } from "@/i18n";
import { visible } from "@/lib/visible";
import { words } from "@/lib/words";

const client = createClient(MemberService, transport);
const roles = [Role.OWNER, Role.ADMIN, Role.OPERATOR, Role.VIEWER] as const;

/** Members is who belongs to the organisation, and as what. */
export function Members() {
  const { t } = useText();
  const may = useMay();
  const session = useSession();
  const me = session.state === "in" ? session.person : undefined;
  const answer = useQuery(MemberService.method.listMembers, {}, { refetchInterval: 5_000 });
  const { refetch } = answer;
  const queries = useQueryClient();
  const [inviting, setInviting] = useState(false);
  const [restricting, setRestricting] = useState<Member>();
  const [removing, setRemoving] = useState<Member>();
  const writes = may("members");
  const columns = useMemo<Columns<Member>>(() => {
    const change = (member: Member, role: Role) =>
      optimistic(
        queries,
        MemberService.method.listMembers,
        {},
        (shown) => ({ ...shown, members: shown.members.map((m) => (m.personId === member.personId ? { ...m, role, tags: narrow(role) ? m.tags : [] } : m)) }),
        // Owners and admins have no restriction: who becomes one loses it.
        () => client.setRole({ member: member.personId, role, wholeFleet: member.tags.length > 0 && !narrow(role) }),
      )
        .then(() =>
          note(t.members.roleSet(visible(member.email, 80), t.roles[role]), {
            undo: () => {
              client
                .setRole({ member: member.personId, role: member.role, tags: member.tags })
                .catch((err: unknown) => note(<ProblemNote error={err} />, { bad: true }))
                .finally(() => void refetch());
            },
          }),
        )
        .catch((err: unknown) => note(<ProblemNote error={err} />, { bad: true }));
    return [
      { id: "email", header: t.signIn.email, cell: ({ row }) => visible(row.original.email, 120) },
      {
        id: "role",
        header: t.members.role,
        cell: ({ row: { original: m } }) =>
          writes && m.personId !== me?.id && (m.role !== Role.OWNER || me?.role === Role.OWNER) ? (
            <SelectField quiet label={t.members.roleOf(visible(m.email, 80))} value={m.role} onChange={(e) => void change(m, Number(e.target.value))}>
              {roles
                .filter((r) => r !== Role.OWNER || me?.role === Role.OWNER)
                .map((r) => (
                  <option key={r} value={r}>
                    {t.roles[r]}
                  </option>
                ))}
            </SelectField>
          ) : (
            t.roles[m.role]
          ),
      },
      { id: "tags", header: t.members.restricted, cell: ({ row: { original: m } }) => (
          <span className="flex items-center gap-2">
            <span className="text-soft">{m.tags.map((tag) => visible(tag, 121)).join(", ") || t.members.wholeFleet}</span>
            {writes && m.personId !== me?.id && narrow(m.role) && (
              <IconButton label={t.members.restrict(visible(m.email, 80))} onClick={() => setRestricting(m)}>
                <Pencil size={14} aria-hidden />
              </IconButton>
            )}
          </span>
        ) },
      { id: "since", header: t.bans.since, cell: ({ row }) => <Time ms={row.original.sinceUnixMs} /> },
      {
        id: "remove",
        header: () => <span className="sr-only">{t.members.remove}</span>,
        cell: ({ row }) =>
          writes && row.original.personId !== me?.id ? (
            <Button small onClick={() => setRemoving(row.original)}>
              {t.members.remove}
            </Button>
          ) : null,
      },
    ];
  }, [t, writes, me, refetch, queries]);
  return (
    <>
      <Panel id="members" title={t.settings.members} flush actions={writes && <Button small onClick={() => setInviting(true)}>{t.members.invite}…</Button>}>
        <ProblemNote error={answer.error} retry={() => void refetch()} />
        {answer.isPending ? <Waiting /> : <Table label={t.settings.members} columns={columns} rows={answer.data?.members ?? []} rowId={(m) => m.personId} />}
      </Panel>
      <Panel id="roles" title={t.members.rolesTitle}>
        <dl className="grid grid-cols-[auto_1fr] gap-x-4 gap-y-1.5">
          {roles.map((r) => (
            <div key={r} className="contents">
              <dt className="font-medium">{t.roles[r]}</dt>
              <dd className="text-soft">{t.members.roleMeans[r]}</dd>
            </div>
          ))}
        </dl>
      </Panel>
      {restricting && <RestrictDialog member={restricting} close={() => setRestricting(undefined)} done={() => void refetch()} />}
      <InviteDialog open={inviting} onOpenChange={setInviting} owner={me?.role === Role.OWNER} />
      <Dialog open={removing !== undefined} onOpenChange={(open) => !open && setRemoving(undefined)} title={t.members.removeTitle(visible(removing?.email ?? "", 120))} lead={t.members.removeLead}>
        <DialogActions>
          <Button onClick={() => setRemoving(undefined)}>{t.common.cancel}</Button>
          <Button
            kind="danger"
            onClick={() => {
              client
                .removeMember({ member: removing?.personId ?? "" })
                .then(() => setRemoving(undefined))
                .catch((err: unknown) => note(<ProblemNote error={err} />, { bad: true }))
                .finally(() => void refetch());
            }}
          >
            {t.members.remove}
          </Button>
        </DialogActions>
      </Dialog>
    </>
  );
}

/** narrow says whether a role can be restricted to tags. */
function narrow(role: Role): boolean {
  return role === Role.OPERATOR || role === Role.VIEWER;
}

function RestrictDialog({ member, close, done }: { member: Member; close: () => void; done: () => void }) {
  const { t } = useText();
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>();
  const submit = (e: FormEvent<HTMLFormElement>) => {
    e.preventDefault();
    const tags = words(String(new FormData(e.currentTarget).get("tags")));
    setBusy(true);
    setError(undefined);
    client
      .setRole({ member: member.personId, role: member.role, tags, wholeFleet: tags.length === 0 })
      .then(() => {
        note(t.members.restrictDone(visible(member.email, 80), tags.join(", ")));
        done();
        close();
      })
      .catch(setError)
      .finally(() => setBusy(false));
  };
  return (
    <Dialog open onOpenChange={(open) => !open && close()} title={t.members.restrict(visible(member.email, 120))} lead={t.members.restrictLead}>
      <form onSubmit={submit} className="flex flex-col gap-3">
        <TextField label={t.members.restricted} name="tags" placeholder="team=web, site=fra" defaultValue={member.tags.join(", ")} hint={t.members.restrictedHint} autoFocus />
        <ProblemNote error={error} />
        <DialogActions>
          <Button onClick={close}>{t.common.cancel}</Button>
          <Button type="submit" kind="primary" busy={busy}>
            {t.approvals.save}
          </Button>
        </DialogActions>
      </form>
    </Dialog>
  );
}

function InviteDialog({ open, onOpenChange, owner }: { open: boolean; onOpenChange: (open: boolean) => void; owner: boolean }) {
  const { t } = useText();
  const [made, setMade] = useState<InviteResponse>();
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>();
  const submit = (e: FormEvent<HTMLFormElement>) => {
    e.preventDefault();
    const form = new FormData(e.currentTarget);
    setBusy(true);
    setError(undefined);
    client
      .invite({
        email: String(form.get("email")),
        role: Number(form.get("role")),
        tags: words(String(form.get("tags"))),
      })
      .then(setMade)
      .catch(setError)
      .finally(() => setBusy(false));
  };
  return (
    <Dialog
      open={open}
      onOpenChange={(next) => {
        setMade(undefined);
        setError(undefined);
        onOpenChange(next);
      }}
      title={t.members.inviteTitle}
      lead={t.members.inviteLead}
    >
      {made ? (
        <>
          <CopyLine text={made.link} label={t.members.link} />
          <p className="mt-2 text-soft">
            {t.members.linkHint} {t.addHost.until} <Time ms={made.expiresUnixMs} />.
          </p>
        </>
      ) : (
        <form onSubmit={submit} className="flex flex-col gap-3">
          <TextField label={t.signIn.email} name="email" type="email" required maxLength={254} autoFocus />
          <SelectField label={t.members.role} name="role" defaultValue={Role.OPERATOR}>
            {roles
              .filter((r) => r !== Role.OWNER || owner)
              .map((r) => (
                <option key={r} value={r}>
                  {t.roles[r]}
                </option>
              ))}
          </SelectField>
          <TextField label={t.members.restricted} name="tags" placeholder="team=web" hint={t.members.restrictedHint} />
          <ProblemNote error={error} />
          <DialogActions>
            <Button onClick={() => onOpenChange(false)}>{t.common.cancel}</Button>
            <Button type="submit" kind="primary" busy={busy}>
              {t.members.invite}
            </Button>
          </DialogActions>
        </form>
      )}
    </Dialog>
  );
}
