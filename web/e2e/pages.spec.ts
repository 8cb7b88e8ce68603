import AxeBuilder from "@axe-core/playwright";
import { expect, owner, signIn, test } from "./fleet";

const pages = ["/", "/hosts", "/hosts/a", "/hosts/add", "/bans", "/address/198.51.100.1", "/policy", "/audit", "/settings", "/settings?tab=sessions", "/settings?tab=tokens", "/settings?tab=members", "/settings?tab=join-tokens", "/settings?tab=organisation"];

for (const theme of ["light", "dark"] as const) {
  test(`axe finds nothing on any page, ${theme}`, async ({ page }) => {
    test.setTimeout(180_000);
    await page.emulateMedia({ colorScheme: theme, reducedMotion: "reduce" });
    await page.goto("/");
    await expect(page.getByRole("heading", { name: "Sign in" })).toBeVisible();
    const found: string[] = [];
    const look = async (where: string) => {
      const result = await new AxeBuilder({ page }).withTags(["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]).analyze();
      found.push(...result.violations.map((v) => `${where}: ${v.id}: ${v.nodes.map((n) => n.target.join(" ")).slice(0, 3).join(" | ")}`));
    };
    await look("sign-in");
    await signIn(page);
    for (const path of pages) {
      await page.goto(path);
      await expect(page.getByRole("heading", { level: 1 })).toBeVisible();
      await expect(page.getByTestId("waiting")).toHaveCount(0);
      await look(path);
    }
    await page.goto("/bans");
    await page.getByRole("button", { name: "Ban…" }).click();
    await look("ban dialog");
    expect(found).toEqual([]);
  });
}

test("every page works 360 pixels wide", async ({ page }) => {
  await page.setViewportSize({ width: 360, height: 720 });
  await signIn360(page);
  for (const path of pages) {
    await page.goto(path);
    await expect(page.getByRole("heading", { level: 1 })).toBeVisible();
    await expect(page.getByTestId("waiting")).toHaveCount(0);
    // What is wider than the screen scrolls within itself.
    expect(await page.evaluate(() => document.documentElement.scrollWidth), path).toBeLessThanOrEqual(360);
  }
  await page.getByRole("button", { name: "Menu" }).click();
  await page.getByRole("link", { name: "Hosts" }).click();
  await expect(page.getByRole("heading", { name: "Hosts", level: 1 })).toBeVisible();
});

async function signIn360(page: Parameters<typeof signIn>[0]) {
  await page.goto("/");
  await page.getByLabel("E-mail address").fill(owner.email);
  await page.getByLabel("Password").fill(owner.password);
  await page.getByRole("button", { name: "Sign in", exact: true }).click();
  await expect(page.getByRole("button", { name: "Menu" })).toBeVisible();
}

test("everything is reached by keyboard", async ({ page }) => {
  await signIn(page);
  await page.keyboard.press("Control+k");
  await expect(page.getByRole("combobox")).toBeFocused();
  await page.keyboard.type("198.51.100.9");
  await expect(page.getByRole("option").first()).toHaveText(/198\.51\.100\.9/);
  await page.keyboard.press("Enter");
  await expect(page.getByRole("heading", { name: "198.51.100.9" })).toBeVisible();
  await page.keyboard.press("g");
  await page.keyboard.press("h");
  await expect(page.getByRole("heading", { name: "Hosts", level: 1 })).toBeVisible();
  await page.keyboard.press("?");
  await expect(page.getByRole("dialog", { name: "Keyboard shortcuts" })).toBeVisible();
  await page.keyboard.press("Escape");
  await expect(page.getByRole("dialog")).toHaveCount(0);
  await page.keyboard.press("Control+k");
  await page.keyboard.type("b");
  await page.keyboard.press("Escape");
  await page.getByRole("link", { name: "Skip to the page" }).focus();
  await expect(page.getByRole("link", { name: "Skip to the page" })).toBeVisible();
});

test("speaks German, and remembers", async ({ page }) => {
  await signIn(page);
  await page.getByRole("button", { name: owner.email }).click();
  await page.getByRole("menuitem", { name: "Deutsch" }).click();
  await expect(page.getByRole("link", { name: "Sperren", exact: true })).toBeVisible();
  await page.reload();
  await expect(page.getByRole("link", { name: "Einstellungen" })).toBeVisible();
  await expect(page.locator("html")).toHaveAttribute("lang", "de");
});
