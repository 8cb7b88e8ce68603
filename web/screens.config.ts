import { defineConfig } from "@playwright/test";
import tests from "./playwright.config";

// Pictures of every page in both themes and on a phone: `make web-screens`. They go to web/screens/out, and those of the
// README to docs/console.
export default defineConfig({ ...tests, projects: undefined, testDir: "screens" });
