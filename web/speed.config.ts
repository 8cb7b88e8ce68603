import { defineConfig } from "@playwright/test";
import tests from "./playwright.config";

// What the console's speed is, beside what it should be: a part of `make bench`.
export default defineConfig({ ...tests, projects: undefined, testDir: "speed", timeout: 300_000, reporter: [["./speed/figures.ts"]] });
