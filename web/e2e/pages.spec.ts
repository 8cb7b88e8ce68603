import AxeBuilder from "@axe-core/playwright";
import { expect, owner, settled, signIn, test } from "./fleet";
import { pages } from "./pages";


test("axe finds nothing on any page, light or dark", async ({ page }) => {
  test.setTimeout(300_000);
  const found: string[] = [];
  const look = async (where: string, again?: () => Promise<unknown>) => {
    for (const colorScheme of ["light", "dark"] as const) {
      await page.emulateMedia({ colorScheme, reducedMotion: "reduce" });
      await again?.();
      await expect(page.locator("html")).toHaveAttribute("data-theme", colorScheme);
      const axe = new AxeBuilder({ page }).options({ resultTypes: ["violations"] });
      // The themes differ in colours and in nothing else.
      if (colorScheme === "light") axe.withTags(["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]);
      else axe.withRules(["color-contrast", "link-in-text-block"]);
      const result = await axe.analyze();
      found.push(...result.violations.map((v) => `${where}, ${colorScheme}: ${v.id}: ${v.nodes.map((n) => n.target.join(" ")).slice(0, 3).join(" | ")}`));
    }
  };
  await look("sign-in", async () => {
    await page.goto("/");
    await expect(page.getByRole("heading", { name: "Sign in" })).toBeVisible();
  });
  await signIn(page);
  for (const [, path] of pages) {
    await page.goto(path);
    await settled(page);
    await look(path);
  }
  await page.goto("/bans");
  await page.getByRole("button", { name: "Ban…" }).click();
  await look("ban dialog");
  expect(found).toEqual([]);
});

test("every page works 360 pixels wide", async ({ page }) => {
  await page.setViewportSize({ width: 360, height: 720 });
  await signIn(page);
  for (const [, path] of pages) {
    await page.goto(path);
    await settled(page);
    // What is wider than the screen scrolls within itself.
    expect(await page.evaluate(() => document.documentElement.scrollWidth), path).toBeLessThanOrEqual(360);
  }
  await page.getByRole("button", { name: "Menu" }).click();
  await page.getByRole("link", { name: "Hosts" }).click();
  await expect(page.getByRole("heading", { name: "Hosts", level: 1 })).toBeVisible();
});

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
