import type { ReactNode } from "react";

/** Plain is the frame of pages outside of the sign-in. */
export function Plain({ title, lead, children }: { title: string; lead?: ReactNode; children: ReactNode }) {
  return (
    <main className="flex min-h-dvh items-center justify-center p-4">
      <div className="w-full max-w-sm rounded-xl border border-line bg-surface p-6">
        <div className="mb-5 flex items-center gap-2.5">
          <img src="/icon.svg" alt="" width={28} height={28} />
          <span className="font-semibold">Fleetban</span>
        </div>
        <h1 className="text-lg font-semibold">{title}</h1>
        {lead && <div className="mt-1 text-soft">{lead}</div>}
        <div className="mt-4">{children}</div>
      </div>
    </main>
  );
}
