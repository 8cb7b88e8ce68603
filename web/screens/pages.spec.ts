import type { Page } from "@playwright/test";
import { attack, call, expect, owner, settled, signIn, test } from "../e2e/fleet";
import { pages } from "../e2e/pages";

test("something happened", async ({ page }) => {
  await signIn(page);
  attack("a", 0);
  for (let i = 1; i <= 40; i++) await call(page, "BanService/Ban", { prefixes: [`203.0.${i}.${(i * 37) % 250}`, `2001:db8:${i}::/64`], durationS: String(600 * i), reason: i % 3 ? "scanner" : "spam" });
  await call(page, "AllowlistService/Allow", { prefixes: ["192.0.2.0/24"], durationS: "0", reason: "office" });
});

/** happen has the overview's feed show something: an attack, and what people do. */
async function happen(page: Page, n: number): Promise<void> {
  await expect(page.getByRole("region", { name: "Live" })).toBeVisible();
  const address = attack("b", n);
  await call(page, "BanService/Ban", { prefixes: [`198.51.100.${50 + n}`, `2001:db8:feed:${n}::/64`], durationS: "86400", reason: "credential stuffing" });
  await call(page, "BanService/Unban", { prefixes: [address] });
  await expect(page.getByRole("list", { name: "Live" }).getByText("unbanned").first()).toBeVisible();
}
let attacks = 1;

/** What the README shows. */
const readme = ["overview-light", "address-dark"];

for (const [name, width, height, theme] of [
  ["light", 1280, 860, "light"],
  ["dark", 1280, 860, "dark"],
  ["phone", 360, 760, "light"],
] as const) {
  test(`pages, ${name}`, async ({ page }) => {
    test.setTimeout(180_000);
    await page.setViewportSize({ width, height });
    await page.emulateMedia({ colorScheme: theme, reducedMotion: "reduce" });
    await page.goto("/");
    await expect(page.getByRole("heading", { name: "Sign in" })).toBeVisible();
    await page.screenshot({ path: `screens/out/sign-in-${name}.png` });
    await signIn(page);
    for (const [file, path] of pages) {
      await page.goto(path);
      await settled(page);
      if (width > 800) await expect(page.getByRole("complementary").getByRole("button", { name: owner.email })).toBeVisible();
      if (file === "overview") await happen(page, attacks++);
      await page.screenshot({ path: `screens/out/${file}-${name}.png`, fullPage: name === "phone" });
      if (readme.includes(`${file}-${name}`)) await page.screenshot({ path: `../docs/console/${file}-${name}.png` });
    }
  });
}
