import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { extname, join } from "node:path";
import { expect, test } from "@playwright/test";
import { build } from "vite";

// What components look like, against pictures that are in the tree. They are drawn from the component page, which knows
// no server, in a font that comes with these tests: neither hosts nor the machine's fonts are in the pictures.
// Anew, after a change that is meant: scripts/web-e2e snapshots --update-snapshots

const types: Record<string, string> = { ".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml" };
const now = Date.UTC(2026, 0, 15, 12, 0, 0);
let built = "";

test.beforeAll(async () => {
  built = mkdtempSync(join(tmpdir(), "fleetban-design-"));
  await build({ mode: "development", logLevel: "error", build: { outDir: built, emptyOutDir: true, minify: false, reportCompressedSize: false } });
});
test.afterAll(() => rmSync(built, { recursive: true, force: true }));

const faces = [400, 500, 600]
  .map((weight) => {
    const font = readFileSync(`node_modules/@fontsource/inter/files/inter-latin-${weight}-normal.woff2`).toString("base64");
    return `@font-face { font-family: Fixed; font-weight: ${weight}; src: url(data:font/woff2;base64,${font}); }`;
  })
  .join("\n");

for (const [part, theme, width] of [
  ["Buttons", "light", 900],
  ["Hosts", "dark", 900],
  ["Events", "light", 360],
  ["Fields", "dark", 360],
  ["Notes, problems, empty, waiting", "light", 900],
] as const) {
  test(`${part}, ${theme}, ${width} pixels wide`, async ({ page }) => {
    await page.setViewportSize({ width, height: 800 });
    await page.emulateMedia({ colorScheme: theme, reducedMotion: "reduce" });
    await page.clock.setFixedTime(now);
    await page.route("**/*", async (route) => {
      const { pathname } = new URL(route.request().url());
      // Nobody is signed in, and nobody asks again.
      if (pathname.startsWith("/fleetban.")) return route.fulfill({ status: 401, json: { code: "unauthenticated" } });
      const file = extname(pathname) ? pathname : "/index.html";
      return route.fulfill({ body: readFileSync(join(built, file)), contentType: types[extname(file)] ?? "application/octet-stream" });
    });
    await page.goto("/design");
    await page.addStyleTag({ content: `${faces}\n* { font-family: Fixed !important; }` });
    await page.evaluate(() => Promise.all([400, 500, 600].map((weight) => document.fonts.load(`${weight} 14px Fixed`))));
    const panel = page.locator("section").filter({ has: page.getByRole("heading", { name: part, exact: true }) });
    await expect(panel).toHaveScreenshot(`${part.split(",")[0]?.toLowerCase()}-${theme}.png`);
  });
}
