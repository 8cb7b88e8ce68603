import { useSyncExternalStore } from "react";

const query = "(max-width: 639px)";

function subscribe(listener: () => void): () => void {
  const media = window.matchMedia(query);
  media.addEventListener("change", listener);
  return () => media.removeEventListener("change", listener);
}

/** useNarrow says whether the screen is as narrow as a phone's: below the width from which `sm:` counts. */
export function useNarrow(): boolean {
  return useSyncExternalStore(subscribe, () => window.matchMedia(query).matches);
}
