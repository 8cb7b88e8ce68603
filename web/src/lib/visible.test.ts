import { expect, test } from "vitest";
import { visible } from "./visible";

test("what could fool a reader is spelled out", () => {
  expect(visible("a\u202eb")).toBe("a⟨U+202E⟩b");
  expect(visible("\u001b[31mred")).toBe("⟨U+001B⟩[31mred");
  expect(visible("zero\u200bwidth")).toBe("zero⟨U+200B⟩width");
  expect(visible("line\u2028sep\n")).toBe("line⟨U+2028⟩sep⟨U+000A⟩");
});

test("ordinary text of any script stays", () => {
  for (const text of ["sshd", "<script>alert(1)</script>", "Ünïcödé 漢字 عربى", "👩 ok"]) expect(visible(text)).toBe(text);
});

test("nothing is longer than was asked for", () => {
  expect(visible("x".repeat(10_000), 100)).toBe(`${"x".repeat(100)}…`);
});
