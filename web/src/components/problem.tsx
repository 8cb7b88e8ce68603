import { Link } from "@tanstack/react-router";
import { Hourglass, TriangleAlert } from "lucide-react";
import { type Problem, problemOf } from "@/api/problem";
import { useFirst } from "@/i18n";
import { visible } from "@/lib/visible";
import { Button } from "./button";

/** ProblemNote says what went wrong and what to do about it; or that somebody else is asked first. */
export function ProblemNote({ error, retry }: { error: unknown; retry?: () => void }) {
  const { t } = useFirst();
  if (!error) return null;
  const p = problemOf(error);
  if (p.approval) return <Waits problem={p} />;
  return (
    <div role="alert" className="flex items-start gap-2.5 rounded-md border border-bad bg-bad-soft px-3 py-2.5">
      <TriangleAlert size={16} className="mt-0.5 shrink-0 text-bad" aria-hidden />
      <div className="min-w-0 flex-1">
        <p className="font-medium break-words text-bad">{visible(p.message, 500)}</p>
        {p.fix && <p className="break-words">{visible(p.fix, 500)}</p>}
        {p.request && <p className="text-[13px] text-soft">{t.common.requestId(p.request)}</p>}
      </div>
      {retry && (
        <Button small onClick={retry}>
          {t.common.tryAgain}
        </Button>
      )}
    </div>
  );
}

function Waits({ problem }: { problem: Problem }) {
  const { t } = useFirst();
  return (
    <div role="alert" className="flex items-start gap-2.5 rounded-md border border-warn bg-warn-soft px-3 py-2.5">
      <Hourglass size={16} className="mt-0.5 shrink-0 text-warn" aria-hidden />
      <div className="min-w-0 flex-1">
        <p className="font-medium break-words text-warn">{t.approval.needed}</p>
        <p>
          {t.approval.asked}{" "}
          <Link to="/approvals" search={{ id: problem.approval }} className="text-accent underline">
            {t.approval.see}
          </Link>
        </p>
      </div>
    </div>
  );
}
