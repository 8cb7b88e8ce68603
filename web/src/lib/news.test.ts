import { expect, test } from "vitest";
import { FleetEventKind as Kind } from "@/gen/fleetban/operator/v1/operator_pb";
import { changedBy } from "./news";

test("one's own bans are no news, those of others and of hosts are", () => {
  const own = { kind: Kind.BANNED, actor: "me@example.com" };
  const others = { kind: Kind.UNBANNED, actor: "you@example.com" };
  const host = { kind: Kind.BANNED, actor: "" };
  expect(changedBy([own], "me@example.com")).toBe("self");
  expect(changedBy([own, others], "me@example.com")).toBe("others");
  expect(changedBy([host], "me@example.com")).toBe("others");
  expect(changedBy([host], "")).toBe("others");
  expect(changedBy([{ kind: Kind.PAUSED, actor: "you@example.com" }], "me@example.com")).toBeUndefined();
  expect(changedBy([], "me@example.com")).toBeUndefined();
});
