import { expect, test } from "vitest";
import { newer } from "./event-id";

test("ids are compared as numbers", () => {
  expect(newer("1700000000000-10", "1700000000000-9")).toBe(true);
  expect(newer("1700000000000-9", "1700000000000-10")).toBe(false);
  expect(newer("1700000000000-9", "1700000000000-9")).toBe(false);
  expect(newer("10000000000000-0", "9999999999999-7")).toBe(true);
  expect(newer("5-0", "0-0")).toBe(true);
  expect(newer("1700000000000-0", "1700000000001-18446744073709551615")).toBe(false);
});
