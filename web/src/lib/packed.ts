// Packed prefixes, as proto/wire/prefix packs them: 4 or 16 address bytes, then one of prefix length.

/** prefixOfBytes writes a packed prefix as people do: "203.0.113.9", "2001:db8::/64"; "?" where it is none. */
export function prefixOfBytes(packed: Uint8Array): string {
  const bits = packed.at(-1) ?? 0;
  const bytes = packed.subarray(0, -1);
  if (bytes.length === 4) return bits === 32 ? bytes.join(".") : `${bytes.join(".")}/${bits}`;
  if (bytes.length !== 16) return "?";
  const groups = Array.from({ length: 8 }, (_, i) => (((bytes[2 * i] ?? 0) << 8) | (bytes[2 * i + 1] ?? 0)).toString(16));
  const address = shorten(groups);
  return bits === 128 ? address : `${address}/${bits}`;
}

// The longest run of zero groups, of two at least, the first of equals (RFC 5952).
function shorten(groups: string[]): string {
  let best = { at: -1, length: 1 };
  for (let at = 0; at < 8; at++) {
    let length = 0;
    while (at + length < 8 && groups[at + length] === "0") length++;
    if (length > best.length) best = { at, length };
  }
  if (best.at < 0) return groups.join(":");
  return `${groups.slice(0, best.at).join(":")}::${groups.slice(best.at + best.length).join(":")}`;
}
