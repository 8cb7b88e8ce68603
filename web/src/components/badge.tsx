import type { ReactNode } from "react";

export type Tone = "ok" | "warn" | "bad" | "info" | "none";

const tones: Record<Tone, string> = {
  ok: "bg-ok-soft text-ok",
  warn: "bg-warn-soft text-warn",
  bad: "bg-bad-soft text-bad",
  info: "bg-accent-soft text-accent",
  none: "bg-sunken text-soft",
};

const dots: Record<Tone, string> = { ok: "bg-ok", warn: "bg-warn", bad: "bg-bad", info: "bg-accent", none: "bg-line-strong" };

/** Badge is a state in one or two words. Its text says it; its colour only helps. */
export function Badge({ tone = "none", dot, children }: { tone?: Tone; dot?: boolean; children: ReactNode }) {
  return (
    <span className={`inline-flex items-center gap-1.5 rounded-full px-2 py-0.5 text-xs font-medium whitespace-nowrap ${tones[tone]}`}>
      {dot && <span className={`size-1.5 rounded-full ${dots[tone]}`} aria-hidden />}
      {children}
    </span>
  );
}
