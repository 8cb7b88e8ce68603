/** newer compares the ids of events, "milliseconds-sequence", both whole numbers of up to 64 bits. */
export function newer(id: string, than: string): boolean {
  const [ms = "", seq = ""] = id.split("-");
  const [thanMs = "", thanSeq = ""] = than.split("-");
  return above(ms, thanMs) || (ms === thanMs && above(seq, thanSeq));
}

/** Of decimals without leading zeros the longer is the greater. */
function above(a: string, b: string): boolean {
  return a.length === b.length ? a > b : a.length > b.length;
}
