import { defineConfig } from "@playwright/test";

// Run by scripts/web-e2e, which brings a lab up (real hosts, two replicas, Redis) and says where it is: FLEETBAN_URL as
// people know it, FLEETBAN_AT where this machine reaches it, FLEETBAN_KEY the hash of the key that it may show.
const { CHROMIUM = "/usr/bin/chromium", FLEETBAN_URL = "https://localhost:8443", FLEETBAN_AT = "", FLEETBAN_KEY = "" } = process.env;

const args = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--disable-dev-shm-usage",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--no-first-run",
  `--ignore-certificate-errors-spki-list=${FLEETBAN_KEY}`,
  ...(FLEETBAN_AT && [`--host-resolver-rules=MAP ${new URL(FLEETBAN_URL).hostname}:443 ${FLEETBAN_AT}`]),
];

export default defineConfig({
  testDir: "e2e",
  projects: [
    { name: "console", testIgnore: /many|snapshots/ },
    // Last, what leaves 100,000 bans behind.
    { name: "many", testMatch: /many/ },
    // Letters as they are drawn on no machine in particular.
    { name: "snapshots", testMatch: /snapshots/, use: { launchOptions: { executablePath: CHROMIUM, args: [...args, "--font-render-hinting=none", "--disable-lcd-text", "--disable-font-subpixel-positioning", "--force-color-profile=srgb"] } } },
  ],
  snapshotPathTemplate: "{testDir}/snapshots/{arg}{ext}",
  // One fleet for all: tests that change it would meet.
  workers: 1,
  fullyParallel: false,
  retries: 0,
  forbidOnly: true,
  timeout: 120_000,
  expect: {
    timeout: 20_000,
    // Browsers of other versions draw edges a little otherwise; what moves is more than that.
    toHaveScreenshot: { animations: "disabled", caret: "hide", scale: "css", threshold: 0.3, maxDiffPixelRatio: 0.01 },
  },
  reporter: [["list"]],
  outputDir: "test-results",
  use: {
    baseURL: FLEETBAN_URL,
    locale: "en-GB",
    timezoneId: "Europe/Berlin",
    viewport: { width: 1280, height: 860 },
    actionTimeout: 20_000,
    navigationTimeout: 20_000,
    launchOptions: {
      executablePath: CHROMIUM,
      args,
    },
    screenshot: "only-on-failure",
  },
});
