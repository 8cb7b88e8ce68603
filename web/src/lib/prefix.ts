// Addresses and prefixes as people type them. The API decides; this only tells at once what can't be one.

/** looksLikePrefix reports whether text can be an IPv4 or IPv6 address or prefix. */
export function looksLikePrefix(text: string): boolean {
  const [address = "", bits, ...more] = text.trim().split("/");
  if (more.length > 0 || (bits !== undefined && !/^\d{1,3}$/.test(bits))) return false;
  const v4 = /^\d{1,3}(\.\d{1,3}){3}$/.test(address) && address.split(".").every((part) => Number(part) <= 255);
  if (v4) return bits === undefined || Number(bits) <= 32;
  if (bits !== undefined && Number(bits) > 128) return false;
  return isV6(address);
}

function isV6(address: string): boolean {
  if (!/^[0-9a-fA-F:.]{2,45}$/.test(address) || !address.includes(":")) return false;
  try {
    // The platform's own parser: of a URL's host.
    return new URL(`http://[${address}]/`).hostname.length > 0;
  } catch {
    return false;
  }
}

