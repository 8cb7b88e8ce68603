import { useEffect, useRef } from "react";

/** How long after the first key of two the second still counts, milliseconds. */
const chordWithin = 1_200;

/** searchKey is how this machine's keyboard names the key of the search. */
export const searchKey = /Mac|iPhone|iPad/.test(navigator.platform) ? "⌘K" : "Ctrl K";

function typing(target: EventTarget | null): boolean {
  return target instanceof HTMLElement && (target.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName));
}

/** useShortcuts calls what a key ("?"), two in a row ("g h") or one with ⌘ or Ctrl ("mod+k") stands for. */
export function useShortcuts(keys: Record<string, () => void>): void {
  const current = useRef(keys);
  current.current = keys;
  useEffect(() => {
    let first = "";
    let at = 0;
    const down = (e: KeyboardEvent) => {
      if (e.altKey || e.isComposing || e.key.length !== 1) return;
      const key = e.key.toLowerCase();
      if (e.metaKey || e.ctrlKey) {
        const act = current.current[`mod+${key}`];
        if (act) {
          e.preventDefault();
          act();
        }
        return;
      }
      // Where people type, keys are letters; in a dialog they are the dialog's.
      if (typing(e.target) || document.querySelector('[role="dialog"],[role="menu"]')) return;
      const chord = first && e.timeStamp - at < chordWithin ? `${first} ${key}` : key;
      first = key;
      at = e.timeStamp;
      const act = current.current[chord] ?? current.current[key];
      if (act) {
        e.preventDefault();
        first = "";
        act();
      }
    };
    window.addEventListener("keydown", down);
    return () => window.removeEventListener("keydown", down);
  }, []);
}
