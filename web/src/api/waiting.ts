import { useSyncExternalStore } from "react";

// How many requests of others wait for a second person: the navigation asks, which comes after the first screen, and the
// overview shows it too.

let count = 0;
const listeners = new Set<() => void>();

/** setWaiting notes how many wait. */
export function setWaiting(n: number): void {
  if (n === count) return;
  count = n;
  for (const l of listeners) l();
}

export function useWaiting(): number {
  return useSyncExternalStore(
    (listener) => {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
    () => count,
  );
}
