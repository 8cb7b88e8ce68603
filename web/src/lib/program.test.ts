import { expect, test } from "vitest";
import { program } from "./program";

test.each([
  ["Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) HeadlessChrome/156.0.0.0 Safari/537.36", "Chrome 156 · Linux"],
  ["Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 Safari/537.36 Edg/141.0.0.0", "Edge 141 · Windows"],
  ["Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0", "Firefox 140 · Linux"],
  ["Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.5 Safari/605.1.15", "Safari 18 · macOS"],
  ["Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.5 Mobile/15E148 Safari/604.1", "Safari 18 · iPhone"],
  ["Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 Mobile Safari/537.36", "Chrome 141 · Android"],
])("%s", (line, name) => {
  expect(program(line)).toBe(name);
});

test.each(["", "fleetban/1.2.3", "curl/8.0", "<script>alert(1)</script> Mozilla/5.0", "Mozilla/5.0 (<b>) Chrome/1", "Mozilla/5.0 (X11) Chrome/1\u202e", `Mozilla/5.0 (X11) Chrome/1${" ".repeat(600)}`])(
  "%j is shown as it is",
  (line) => {
    expect(program(line)).toBeUndefined();
  },
);
