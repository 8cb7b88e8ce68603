// What the first screen doesn't need is loaded once it stands: the build's budget counts the rest (scripts/finish.mjs,
// which knows the two functions by their names).

let stand: () => void = () => {};
const standing = new Promise<void>((resolve) => {
  stand = resolve;
});

/** stands says that a page shows its heading. What waits is loaded once that was painted. */
export function stands(): void {
  requestAnimationFrame(() => setTimeout(stand));
}

/** later has something loaded only once the first screen stands. */
export function later<T>(load: () => Promise<T>): () => Promise<T> {
  return () => standing.then(load);
}

/** asked marks what is loaded only when somebody asks for it. */
export function asked<T>(load: () => Promise<T>): () => Promise<T> {
  return load;
}
