import { createClient } from "@connectrpc/connect";
import { useQuery } from "@connectrpc/connect-query";
import { useQueryClient } from "@tanstack/react-query";
import { getRouteApi, Link } from "@tanstack/react-router";
import { CheckCheck } from "lucide-react";
import { type FormEvent, type ReactNode, useEffect, useMemo, useRef, useState } from "react";
import { transport, useSession } from "@/api/session";
import { AddressLink } from "@/components/address-link";
import { Badge, type Tone } from "@/components/badge";
import { Button } from "@/components/button";
import { Dialog, DialogActions } from "@/components/dialog";
import { Empty, Waiting } from "@/components/empty";
import { TextField } from "@/components/field";
import { Page, Panel } from "@/components/panel";
import { ProblemNote } from "@/components/problem";
import { type Columns, Table } from "@/components/table";
import { Time } from "@/components/time";
import { note } from "@/components/toast";
import { type Approval, ApprovalService, ApprovalState as State } from "@/gen/fleetban/operator/v1/approvals_pb";
import { Role } from "@/gen/fleetban/operator/v1/people_pb";
import { useText } from "@/i18n";
import { whatOf } from "@/lib/approval";
import { looksLikePrefix } from "@/lib/prefix";
import { visible } from "@/lib/visible";

const route = getRouteApi("/inside/approvals");
const client = createClient(ApprovalService, transport);

/** Approvals is what waits for a second person, and what became of it. */
export function Approvals() {
  const { t } = useText();
  const { id } = route.useSearch();
  const answer = useQuery(ApprovalService.method.listApprovals, {}, { refetchInterval: 5_000 });
  const policy = useQuery(ApprovalService.method.getApprovalPolicy);
  const all = answer.data?.approvals ?? [];
  const waiting = all.filter((a) => a.state === State.WAITING);
  const over = all.filter((a) => a.state !== State.WAITING);
  return (
    <Page title={t.pages.approvals} lead={t.approvals.lead}>
      <ProblemNote error={answer.error} retry={() => void answer.refetch()} />
      {answer.isPending ? (
        <Panel>
          <Waiting />
        </Panel>
      ) : waiting.length === 0 && answer.isSuccess ? (
        <Panel>
          <Empty icon={<CheckCheck size={24} aria-hidden />} title={t.approvals.none}>
            {policy.data?.policy?.required ? t.approvals.noneOn : t.approvals.noneOff}{" "}
            <Link to="/settings" search={{ tab: "approvals" }} className="text-accent underline">
              {t.approvals.settings}
            </Link>
          </Empty>
        </Panel>
      ) : (
        <ul className="flex flex-col gap-3" aria-label={t.approvals.waiting}>
          {waiting.map((a) => (
            <One key={a.id} of={a} marked={a.id === id} />
          ))}
        </ul>
      )}
      {over.length > 0 && (
        <Panel id="decided" title={t.approvals.decided} flush>
          <Decided of={over} marked={id} />
        </Panel>
      )}
    </Page>
  );
}

/** Where an approval's link leads: it is shown as the one that was meant. */
function Marked({ marked, children }: { marked: boolean; children: ReactNode }) {
  const place = useRef<HTMLLIElement>(null);
  useEffect(() => {
    if (marked) place.current?.scrollIntoView({ block: "nearest" });
  }, [marked]);
  return (
    <li ref={place} aria-current={marked || undefined} className={`rounded-lg border bg-surface p-4 ${marked ? "border-accent" : "border-line"}`}>
      {children}
    </li>
  );
}

function One({ of: a, marked }: { of: Approval; marked: boolean }) {
  const { t, locale } = useText();
  const session = useSession();
  const me = session.state === "in" ? session.person : undefined;
  const [deciding, setDeciding] = useState<"approve" | "reject">();
  const own = a.requesterId === me?.id;
  const may = a.roles.some((r) => roleOf(r) === me?.role);
  const what = whatOf(a, t.approvals.what, locale);
  return (
    <Marked marked={marked}>
      <div className="flex flex-wrap items-start justify-between gap-3">
        <div className="min-w-0">
          <h2 className="text-base font-semibold break-words">{what}</h2>
          <p className="text-soft">
            {t.approvals.askedBy(visible(a.requester, 120))}, <Time ms={a.createdUnixMs} /> · {t.approvals.expires} <Time ms={a.expiresUnixMs} />
          </p>
        </div>
        {may && (
          <div className="flex gap-2">
            <Button onClick={() => setDeciding("reject")}>{own ? t.approvals.withdraw : t.approvals.reject}</Button>
            {!own && (
              <Button kind="primary" onClick={() => setDeciding("approve")}>
                {t.approvals.approve}
              </Button>
            )}
          </div>
        )}
      </div>
      <Exactly of={a} />
      {(own || !may) && <p className="mt-2 text-soft">{own ? t.approvals.own(rolesText(a, t.roles)) : t.approvals.notYou(rolesText(a, t.roles))}</p>}
      {deciding && <Decide of={a} what={what} to={deciding} own={own} close={() => setDeciding(undefined)} />}
    </Marked>
  );
}

/** Exactly is what an approval is about, each thing by its name. */
function Exactly({ of: a }: { of: Approval }) {
  const { t } = useText();
  const reason = a.details.reason;
  // What a sentence says isn't said twice; of an action without one, everything is told.
  const told = new Set(["duration_s", "reason", "tag", "mode", "required", "widest_ipv4_bits", "widest_ipv6_bits", "most_prefixes"]);
  const more = Object.entries(a.details).filter(([name]) => !told.has(name));
  return (
    <>
      {a.targets.length > 0 && (
        <ul className="mt-3 flex max-h-40 flex-wrap gap-x-4 gap-y-1 overflow-y-auto rounded-md border border-line bg-sunken px-3 py-2" tabIndex={0} aria-label={t.audit.target}>
          {a.targets.map((target) => (
            <li key={target}>{looksLikePrefix(target) ? <AddressLink of={target} /> : visible(target, 200)}</li>
          ))}
          {a.targetsTotal > a.targets.length && <li className="text-soft">{t.approvals.more(a.targetsTotal - a.targets.length)}</li>}
        </ul>
      )}
      {reason && (
        <p className="mt-2 break-words">
          <span className="text-soft">{t.ban.reason}:</span> {visible(reason, 500)}
        </p>
      )}
      {more.map(([name, value]) => (
        <p key={name} className="mt-1 break-words">
          <span className="text-soft">{visible(name, 64)}:</span> {visible(value, 300)}
        </p>
      ))}
    </>
  );
}

function Decide({ of: a, what, to, own, close }: { of: Approval; what: string; to: "approve" | "reject"; own: boolean; close: () => void }) {
  const { t } = useText();
  const queries = useQueryClient();
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>();
  const submit = (e: FormEvent<HTMLFormElement>) => {
    e.preventDefault();
    const reason = String(new FormData(e.currentTarget).get("reason") ?? "");
    setBusy(true);
    setError(undefined);
    (to === "approve" ? client.approve({ id: a.id }) : client.reject({ id: a.id, reason }))
      .then(({ approval }) => {
        if (approval?.state === State.FAILED) note(t.approvals.failed(visible(approval.reason, 300)), { bad: true });
        else note(to === "approve" ? t.approvals.done : own ? t.approvals.withdrawn : t.approvals.rejected);
        close();
      })
      .catch(setError)
      .finally(() => {
        setBusy(false);
        void queries.invalidateQueries();
      });
  };
  const title = to === "approve" ? t.approvals.approveTitle : own ? t.approvals.withdrawTitle : t.approvals.rejectTitle;
  return (
    <Dialog open onOpenChange={(open) => !open && close()} title={title} lead={to === "approve" ? t.approvals.approveLead(visible(a.requester, 120)) : t.approvals.rejectLead}>
      <form onSubmit={submit}>
        <p className="font-medium break-words">{what}</p>
        <Exactly of={a} />
        {to === "reject" && (
          <div className="mt-3">
            <TextField label={t.ban.reason} name="reason" maxLength={200} />
          </div>
        )}
        <div className="mt-3">
          <ProblemNote error={error} />
        </div>
        <DialogActions>
          <Button onClick={close}>{t.common.cancel}</Button>
          <Button type="submit" kind={to === "approve" ? "primary" : "danger"} busy={busy}>
            {to === "approve" ? t.approvals.approveGo : own ? t.approvals.withdrawGo : t.approvals.rejectGo}
          </Button>
        </DialogActions>
      </form>
    </Dialog>
  );
}

const tones: Partial<Record<State, Tone>> = { [State.DONE]: "ok", [State.APPROVED]: "info", [State.FAILED]: "bad", [State.REJECTED]: "warn" };

function Decided({ of, marked }: { of: Approval[]; marked: string | undefined }) {
  const { t, locale } = useText();
  const columns = useMemo<Columns<Approval>>(
    () => [
      { id: "at", header: t.audit.at, cell: ({ row: { original: a } }) => <Time ms={a.decidedUnixMs || a.expiresUnixMs} /> },
      {
        id: "what",
        header: t.audit.target,
        cell: ({ row: { original: a } }) => (
          <span className={a.id === marked ? "font-semibold" : ""}>
            {whatOf(a, t.approvals.what, locale)}
            {a.targets[0] && <span className="text-soft"> · {visible(a.targets.slice(0, 3).join(", "), 120)}</span>}
          </span>
        ),
      },
      { id: "requester", header: t.approvals.requester, cell: ({ row }) => visible(row.original.requester, 120) },
      { id: "state", header: t.audit.outcome, cell: ({ row }) => <Badge tone={tones[row.original.state] ?? "none"}>{t.approvals.states[row.original.state]}</Badge> },
      { id: "decider", header: t.approvals.decider, cell: ({ row }) => visible(row.original.decider, 120) || "–" },
      { id: "reason", header: t.ban.reason, cell: ({ row }) => <span className="text-soft">{visible(row.original.reason, 200)}</span> },
    ],
    [t, locale, marked],
  );
  return <Table label={t.approvals.decided} columns={columns} rows={of} rowId={(a) => a.id} />;
}

function roleOf(name: string): Role {
  return { owner: Role.OWNER, admin: Role.ADMIN, operator: Role.OPERATOR, viewer: Role.VIEWER }[name] ?? Role.UNSPECIFIED;
}

function rolesText(a: Approval, names: Record<Role, string>): string {
  return a.roles.map((r) => names[roleOf(r)]).join(", ");
}
