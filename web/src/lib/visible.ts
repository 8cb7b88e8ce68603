// What attackers write (log lines, names, user agents) is shown as the text it is: characters that move, hide or turn
// text are replaced by their code points, and nothing is longer than a page can hold.

const longest = 2000;

// Control characters, format characters (bidirectional marks, zero widths), line separators, lone surrogates, tags.
const hidden = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}\p{Co}\p{Cn}]/gu;

/** visible makes hostile text harmless to read: `a\u202eb` becomes `a⟨U+202E⟩b`. Longer than `max` UTF-16 units, it is cut with `…`. */
export function visible(text: string, max: number = longest): string {
  const cut = text.length > max ? `${text.slice(0, max)}…` : text;
  return cut.replace(hidden, (c) => `⟨U+${(c.codePointAt(0) ?? 0).toString(16).toUpperCase().padStart(4, "0")}⟩`);
}
