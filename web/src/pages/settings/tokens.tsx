import { createClient } from "@connectrpc/connect";
import { useQuery } from "@connectrpc/connect-query";
import { KeyRound } from "lucide-react";
import { type FormEvent, useMemo, useState } from "react";
import { useMay } from "@/api/may";
import { transport, useSession } from "@/api/session";
import { Button } from "@/components/button";
import { CopyLine } from "@/components/copy";
import { Dialog, DialogActions } from "@/components/dialog";
import { Empty, Waiting } from "@/components/empty";
import { CheckField, SelectField, TextField } from "@/components/field";
import { Panel } from "@/components/panel";
import { ProblemNote } from "@/components/problem";
import { type Columns, Table } from "@/components/table";
import { Time } from "@/components/time";
import { note } from "@/components/toast";
import { Role } from "@/gen/fleetban/operator/v1/people_pb";
import { type ApiToken, OrganisationTokenService, TokenService } from "@/gen/fleetban/operator/v1/tokens_pb";
import { Permission } from "@/gen/fleetban/options/v1/options_pb";
import { useText } from "@/i18n";
import { words } from "@/lib/words";
import { visible } from "@/lib/visible";

const own = createClient(TokenService, transport);
const theirs = createClient(OrganisationTokenService, transport);

/** Tokens are what programs sign in with: one's own, and the organisation's. */
export function Tokens() {
  const may = useMay();
  return (
    <>
      <Own />
      {may("tokens") && <Organisations />}
    </>
  );
}

function Own() {
  const { t } = useText();
  const answer = useQuery(TokenService.method.listTokens);
  return (
    <List
      title={t.tokens.own}
      hint={t.tokens.ownHint}
      tokens={answer.data?.tokens}
      error={answer.error}
      refetch={() => void answer.refetch()}
      create={(wish) => own.createToken(wish).then((a) => a.secret)}
      revoke={(id) => own.revokeToken({ id })}
    />
  );
}

function Organisations() {
  const { t } = useText();
  const answer = useQuery(OrganisationTokenService.method.listOrganisationTokens, {});
  return (
    <List
      title={t.tokens.organisation}
      shared
      hint={t.tokens.organisationHint}
      tokens={answer.data?.tokens}
      error={answer.error}
      refetch={() => void answer.refetch()}
      create={(wish) => theirs.createOrganisationToken(wish).then((a) => a.secret)}
      revoke={(id) => theirs.revokeOrganisationToken({ id })}
    />
  );
}

interface Wish {
  name: string;
  /** As one of this role, or else what permissions name. */
  role: Role;
  permissions: Permission[];
  tags: string[];
  durationS: bigint;
}

/** People's own alone: no token holds them. */
const neverHeld = [Permission.SELF, Permission.TOKENS_WRITE, Permission.APPROVE, Permission.APPROVAL_POLICY_WRITE];

function List({ title, hint, shared, tokens, error, refetch, create, revoke }: {
  title: string;
  /** It has everybody's. */
  shared?: boolean;
  hint: string;
  tokens: ApiToken[] | undefined;
  error: unknown;
  refetch: () => void;
  create: (wish: Wish) => Promise<string>;
  revoke: (id: string) => Promise<unknown>;
}) {
  const { t } = useText();
  const [making, setMaking] = useState(false);
  const columns = useMemo<Columns<ApiToken>>(
    () => [
      { id: "name", header: t.tokens.name, cell: ({ row }) => visible(row.original.name, 100) },
      {
        id: "may",
        header: t.tokens.may,
        cell: ({ row: { original: k } }) => (
          <span className="block max-w-72 min-w-40 text-soft">
            {k.permissions.map((p) => t.permissions[p] ?? String(p)).join(", ")}
            {k.tags.length > 0 && <span> · {t.tokens.only(k.tags.map((tag) => visible(tag, 121)).join(", "))}</span>}
          </span>
        ),
      },
      ...(shared ? [{ id: "whose", header: t.tokens.whose, cell: ({ row }: { row: { original: ApiToken } }) => visible(row.original.personEmail, 120) || t.tokens.nobodys(visible(row.original.createdBy, 120)) }] : []),
      { id: "id", header: "ID", cell: ({ row }) => <code className="font-mono text-[13px]">{visible(row.original.id, 32)}</code> },
      { id: "created", header: t.tokens.created, cell: ({ row }) => <Time ms={row.original.createdUnixMs} /> },
      {
        id: "used",
        header: t.settings.used,
        cell: ({ row: { original: k } }) => (
          <span>
            <Time ms={k.usedUnixMs} /> <span className="text-soft">{visible(k.usedAddress, 64)}</span>
          </span>
        ),
      },
      { id: "expires", header: t.bans.ends, cell: ({ row: { original: k } }) => (k.expiresUnixMs === 0n ? t.common.forEver : <Time ms={k.expiresUnixMs} />) },
      {
        id: "revoke",
        header: () => <span className="sr-only">{t.tokens.revoke}</span>,
        cell: ({ row }) => (
          <Button small onClick={() => void revoke(row.original.id).catch((err: unknown) => note(<ProblemNote error={err} />, { bad: true })).finally(refetch)}>
            {t.tokens.revoke}
          </Button>
        ),
      },
    ],
    [t, shared, revoke, refetch],
  );
  return (
    <Panel title={title} flush actions={<Button small onClick={() => setMaking(true)}>{t.tokens.make}…</Button>}>
      <ProblemNote error={error} retry={refetch} />
      {tokens === undefined ? (
        !error && <Waiting />
      ) : tokens.length === 0 ? (
        <Empty icon={<KeyRound size={24} aria-hidden />} title={t.tokens.none}>
          {hint}
        </Empty>
      ) : (
        <Table label={title} columns={columns} rows={tokens} rowId={(k) => k.id} />
      )}
      <Make open={making} onOpenChange={setMaking} hint={hint} create={create} done={refetch} />
    </Panel>
  );
}

function Make({ open, onOpenChange, hint, create, done }: {
  open: boolean;
  onOpenChange: (open: boolean) => void;
  hint: string;
  create: (wish: Wish) => Promise<string>;
  done: () => void;
}) {
  const { t } = useText();
  const session = useSession();
  const [secret, setSecret] = useState("");
  const [role, setRole] = useState(Role.VIEWER);
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>();
  const held = session.state === "in" ? session.person.permissions.filter((p) => !neverHeld.includes(p)) : [];
  // No token may more than who makes it; the higher the role, the lower its number.
  const within = (r: Role) => session.state === "in" && r >= session.person.role;
  const submit = (e: FormEvent<HTMLFormElement>) => {
    e.preventDefault();
    const form = new FormData(e.currentTarget);
    setBusy(true);
    setError(undefined);
    create({
      name: String(form.get("name")),
      role,
      permissions: role === Role.UNSPECIFIED ? form.getAll("permission").map(Number) : [],
      tags: words(String(form.get("tags"))),
      durationS: BigInt(String(form.get("for"))),
    })
      .then((made) => {
        setSecret(made);
        done();
      })
      .catch(setError)
      .finally(() => setBusy(false));
  };
  return (
    <Dialog
      open={open}
      onOpenChange={(next) => {
        setSecret("");
        setError(undefined);
        onOpenChange(next);
      }}
      title={t.tokens.make}
      lead={hint}
    >
      {secret ? (
        <>
          <CopyLine text={secret} label={t.tokens.secret} />
          <p className="mt-2 text-soft">{t.tokens.once}</p>
        </>
      ) : (
        <form onSubmit={submit} className="flex flex-col gap-3">
          <TextField label={t.tokens.name} name="name" required maxLength={60} autoFocus />
          <SelectField label={t.members.role} name="role" value={role} onChange={(e) => setRole(Number(e.target.value))}>
            {[Role.VIEWER, Role.OPERATOR, Role.ADMIN].filter(within).map((r) => (
              <option key={r} value={r}>
                {t.roles[r]}
              </option>
            ))}
            <option value={Role.UNSPECIFIED}>{t.tokens.choose}</option>
          </SelectField>
          {role === Role.UNSPECIFIED && (
            <fieldset className="flex flex-col gap-1">
              <legend className="text-sm font-medium">{t.tokens.may}</legend>
              {held.map((p) => (
                <CheckField key={p} name="permission" value={p} label={t.permissions[p] ?? String(p)} defaultChecked={p === Permission.FLEET_READ} />
              ))}
            </fieldset>
          )}
          <TextField label={t.members.restricted} name="tags" placeholder="team=web" hint={t.members.restrictedHint} />
          <SelectField label={t.ban.duration} name="for" defaultValue="7776000">
            <option value="2592000">{t.tokens.days(30)}</option>
            <option value="7776000">{t.tokens.days(90)}</option>
            <option value="31536000">{t.tokens.days(365)}</option>
          </SelectField>
          <ProblemNote error={error} />
          <DialogActions>
            <Button onClick={() => onOpenChange(false)}>{t.common.cancel}</Button>
            <Button type="submit" kind="primary" busy={busy}>
              {t.tokens.make}
            </Button>
          </DialogActions>
        </form>
      )}
    </Dialog>
  );
}
