import { createClient } from "@connectrpc/connect";
import { useQuery } from "@connectrpc/connect-query";
import { useQueryClient } from "@tanstack/react-query";
import { Ticket } from "lucide-react";
import { useMemo } from "react";
import { optimistic } from "@/api/optimistic";
import { transport } from "@/api/session";
import { AddButton } from "@/components/add-button";
import { Button } from "@/components/button";
import { Empty, Waiting } from "@/components/empty";
import { Panel } from "@/components/panel";
import { ProblemNote } from "@/components/problem";
import { type Columns, Table } from "@/components/table";
import { Time } from "@/components/time";
import { note } from "@/components/toast";
import { type JoinToken, JoinTokenService } from "@/gen/fleetban/operator/v1/operator_pb";
import { useNumber, useText } from "@/i18n";
import { visible } from "@/lib/visible";

/** JoinTokens are what new hosts come in with. */
export function JoinTokens() {
  const { t } = useText();
  const number = useNumber();
  const answer = useQuery(JoinTokenService.method.listJoinTokens);
  const { refetch } = answer;
  const queries = useQueryClient();
  const columns = useMemo<Columns<JoinToken>>(
    () => [
      { id: "id", header: "ID", cell: ({ row }) => <code className="font-mono text-[13px]">{visible(row.original.id, 32)}</code> },
      { id: "uses", header: t.joinTokens.left, cell: ({ row }) => `${number(row.original.usesLeft)} / ${number(row.original.uses)}` },
      { id: "tags", header: t.hosts.tags, cell: ({ row }) => Object.entries(row.original.tags).map(([k, v]) => `${visible(k, 60)}=${visible(v, 60)}`).join(", ") || "–" },
      { id: "actor", header: t.host.actor, cell: ({ row }) => visible(row.original.actor, 80) },
      { id: "expires", header: t.bans.ends, cell: ({ row }) => <Time ms={row.original.expiresUnixMs} /> },
      {
        id: "revoke",
        header: () => <span className="sr-only">{t.tokens.revoke}</span>,
        cell: ({ row }) => (
          <Button
            small
            onClick={() => {
              optimistic(
                queries,
                JoinTokenService.method.listJoinTokens,
                {},
                (shown) => ({ ...shown, joinTokens: shown.joinTokens.filter((k) => k.id !== row.original.id) }),
                () => createClient(JoinTokenService, transport).revokeJoinToken({ id: row.original.id }),
              ).catch((err: unknown) => note(<ProblemNote error={err} />, { bad: true }));
            }}
          >
            {t.tokens.revoke}
          </Button>
        ),
      },
    ],
    [t, number, queries],
  );
  const rows = answer.data?.joinTokens ?? [];
  return (
    <Panel id="join-tokens" title={t.settings.joinTokens} flush actions={rows.length > 0 && <AddButton small />}>
      <ProblemNote error={answer.error} retry={() => void refetch()} />
      {answer.isPending ? (
        <Waiting />
      ) : rows.length === 0 ? (
        <Empty icon={<Ticket size={24} aria-hidden />} title={t.joinTokens.none} action={<AddButton />}>
          {t.joinTokens.noneHint}
        </Empty>
      ) : (
        <Table label={t.settings.joinTokens} columns={columns} rows={rows} rowId={(k) => k.id} />
      )}
    </Panel>
  );
}
