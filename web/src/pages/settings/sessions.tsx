import { createClient } from "@connectrpc/connect";
import { useQuery } from "@connectrpc/connect-query";
import { useQueryClient } from "@tanstack/react-query";
import { useMemo } from "react";
import { optimistic } from "@/api/optimistic";
import { transport } from "@/api/session";
import { Badge } from "@/components/badge";
import { Button } from "@/components/button";
import { Waiting } from "@/components/empty";
import { Panel } from "@/components/panel";
import { ProblemNote } from "@/components/problem";
import { type Columns, Table } from "@/components/table";
import { Time } from "@/components/time";
import { note } from "@/components/toast";
import { type Session, SessionService } from "@/gen/fleetban/operator/v1/people_pb";
import { useText } from "@/i18n";
import { program } from "@/lib/program";
import { visible } from "@/lib/visible";

/** Sessions is where one is signed in, and how to end that. */
export function Sessions() {
  const { t } = useText();
  const answer = useQuery(SessionService.method.listSessions, {}, { refetchInterval: 10_000 });
  const { refetch } = answer;
  const queries = useQueryClient();
  const columns = useMemo<Columns<Session>>(() => {
    const end = (id: string) =>
      optimistic(
        queries,
        SessionService.method.listSessions,
        {},
        (shown) => ({ ...shown, sessions: shown.sessions.filter((s) => s.id !== id) }),
        () => createClient(SessionService, transport).revokeSession({ id }),
      ).catch((err: unknown) => note(<ProblemNote error={err} />, { bad: true }));
    return [
      { id: "agent", header: t.settings.program, cell: ({ row: { original: s } }) => <span className="block min-w-40 break-words" title={visible(s.userAgent, 300)}>{program(s.userAgent) ?? (visible(s.userAgent, 120) || "–")}</span> },
      { id: "address", header: t.audit.from, cell: ({ row }) => <span className="font-mono text-[13px]">{visible(row.original.address, 64)}</span> },
      { id: "began", header: t.settings.began, cell: ({ row }) => <Time ms={row.original.beganUnixMs} /> },
      { id: "used", header: t.settings.used, cell: ({ row }) => <Time ms={row.original.usedUnixMs} /> },
      {
        id: "end",
        header: () => <span className="sr-only">{t.settings.end}</span>,
        cell: ({ row }) =>
          row.original.current ? (
            <Badge tone="info">{t.settings.thisOne}</Badge>
          ) : (
            <Button small onClick={() => void end(row.original.id)}>
              {t.settings.end}
            </Button>
          ),
      },
    ];
  }, [t, queries]);
  const rows = answer.data?.sessions ?? [];
  return (
    <Panel
      id="sessions"
      title={t.settings.sessions}
      flush
      actions={
        rows.length > 1 && (
          <Button
            small
            onClick={() =>
              void createClient(SessionService, transport)
                .revokeSession({})
                .then(() => refetch())
                .catch((err: unknown) => note(<ProblemNote error={err} />, { bad: true }))
            }
          >
            {t.settings.endOthers}
          </Button>
        )
      }
    >
      <ProblemNote error={answer.error} retry={() => void refetch()} />
      {answer.isPending ? <Waiting /> : <Table label={t.settings.sessions} columns={columns} rows={rows} rowId={(s) => s.id} />}
    </Panel>
  );
}
