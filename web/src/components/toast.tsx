import { X } from "lucide-react";
import { type ReactNode, useSyncExternalStore } from "react";
import { useFirst } from "@/i18n";
import { Button, IconButton } from "./button";

// Short notes at the screen's edge: what was done, with a way back where there is one. Errors stay until they are closed.

interface Note {
  id: number;
  text: ReactNode;
  bad: boolean;
  undo?: () => void;
}

const shownFor = 8_000;
let notes: readonly Note[] = [];
let next = 1;
const listeners = new Set<() => void>();

function set(to: readonly Note[]): void {
  notes = to;
  for (const l of listeners) l();
}

function close(id: number): void {
  set(notes.filter((n) => n.id !== id));
}

/** note shows text; undo is offered while it stands. */
export function note(text: ReactNode, options: { bad?: boolean; undo?: () => void } = {}): void {
  const id = next++;
  set([...notes, { id, text, bad: options.bad ?? false, undo: options.undo }].slice(-4));
  if (!options.bad) setTimeout(() => close(id), shownFor);
}

export function Notes() {
  const { t } = useFirst();
  const shown = useSyncExternalStore(
    (l) => {
      listeners.add(l);
      return () => listeners.delete(l);
    },
    () => notes,
  );
  return (
    <div role="status" aria-live="polite" className="pointer-events-none fixed right-4 bottom-4 left-4 z-60 flex flex-col items-end gap-2">
      {shown.map((n) => (
        <div
          key={n.id}
          className={`pointer-events-auto flex max-w-md items-center gap-3 rounded-lg border bg-raised px-3 py-2 shadow-lg ${n.bad ? "border-bad" : "border-line-strong"}`}
        >
          <div className="min-w-0 break-words">{n.text}</div>
          {n.undo && (
            <Button
              small
              onClick={() => {
                n.undo?.();
                close(n.id);
              }}
            >
              {t.common.undo}
            </Button>
          )}
          <IconButton label={t.common.close} onClick={() => close(n.id)}>
            <X size={14} aria-hidden />
          </IconButton>
        </div>
      ))}
    </div>
  );
}
