import type { ReactNode } from "react";

/** Empty is what a page shows where there is nothing yet: what would be here, and the next step. */
export function Empty({ icon, title, children, action }: { icon?: ReactNode; title: ReactNode; children?: ReactNode; action?: ReactNode }) {
  return (
    <div className="flex flex-col items-center gap-2 px-6 py-12 text-center">
      {icon && <div className="mb-1 rounded-full bg-accent-soft p-3 text-accent">{icon}</div>}
      <p className="text-base font-semibold">{title}</p>
      {children && <div className="max-w-prose text-soft">{children}</div>}
      {action && <div className="mt-3">{action}</div>}
    </div>
  );
}

/** Waiting holds the place of what is being read. */
export function Waiting({ rows = 4 }: { rows?: number }) {
  return (
    <div aria-busy className="flex flex-col gap-2 p-4" data-testid="waiting">
      {Array.from({ length: rows }, (_, i) => (
        <div key={i} className="h-5 animate-pulse rounded bg-sunken" />
      ))}
    </div>
  );
}
