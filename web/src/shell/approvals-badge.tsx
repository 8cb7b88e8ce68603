import { useQuery } from "@connectrpc/connect-query";
import { useEffect } from "react";
import { useSession } from "@/api/session";
import { setWaiting } from "@/api/waiting";
import { ApprovalService } from "@/gen/fleetban/operator/v1/approvals_pb";
import { useText } from "@/i18n";

/** ApprovalsBadge is how many requests of others wait for a second person. */
export function ApprovalsBadge() {
  const { t } = useText();
  const session = useSession();
  const me = session.state === "in" ? session.person.id : "";
  const answer = useQuery(ApprovalService.method.listApprovals, { waiting: true }, { refetchInterval: 10_000 });
  const n = answer.data?.approvals.filter((a) => a.requesterId !== me).length ?? 0;
  useEffect(() => setWaiting(n), [n]);
  // Somebody else may sign in.
  useEffect(() => () => setWaiting(0), []);
  if (n === 0) return null;
  return (
    <span className="ml-auto rounded-full bg-warn-soft px-2 text-xs font-semibold text-warn tabular-nums">
      {n}
      <span className="sr-only"> {t.approvals.waitingBadge}</span>
    </span>
  );
}
