import { expect, test } from "vitest";
import { relative, seconds } from "./time";

test("durations are read as the CLI reads them", () => {
  expect(seconds("90m")).toBe(5400);
  expect(seconds("1h30m")).toBe(5400);
  expect(seconds(" 2d ")).toBe(172_800);
  expect(seconds("1w")).toBe(604_800);
  for (const bad of ["", "h", "1", "1x", "1h x", "-1h", "1.5h", "h1"]) expect(seconds(bad), bad).toBeUndefined();
});

test("relative times take the largest unit that fits", () => {
  expect(relative(0, 80_000, "en")).toBe("1 min. ago");
  expect(relative(0, 20_000, "en")).toBe("20 sec. ago");
  expect(relative(6_900_000, 0, "en")).toBe("in 2 hr.");
  expect(relative(7_200_000, 0, "en")).toBe("in 2 hr.");
  expect(relative(0, 400, "en")).toBe("now");
  expect(relative(86_400_000, 0, "en")).toBe("in 24 hr.");
  expect(relative(0, 47 * 3_600_000, "en")).toBe("47 hr. ago");
  expect(relative(2 * 86_400_000, 0, "en")).toBe("in 2 days");
});
