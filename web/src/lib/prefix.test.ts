import { expect, test } from "vitest";
import { looksLikePrefix } from "./prefix";
import { words } from "./words";

test("addresses and prefixes", () => {
  for (const good of ["203.0.113.9", "203.0.113.0/24", "2001:db8::1", "2001:db8::/64", "::ffff:192.0.2.1"]) expect(looksLikePrefix(good), good).toBe(true);
  for (const bad of ["", "203.0.113", "203.0.113.256", "203.0.113.9/33", "2001:db8::/129", "host.example", "1.2.3.4/8/9", "fe80::1%eth0", "<b>"])
    expect(looksLikePrefix(bad), bad).toBe(false);
});

test("what is pasted is taken apart, once each", () => {
  expect(words("203.0.113.9, 203.0.113.10\n203.0.113.9;2001:db8::1 ")).toEqual(["203.0.113.9", "203.0.113.10", "2001:db8::1"]);
});
