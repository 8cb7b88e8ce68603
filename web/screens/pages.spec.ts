import { attack, call, expect, owner, signIn, test } from "../e2e/fleet";

const pages: [string, string][] = [
  ["overview", "/"],
  ["hosts", "/hosts"],
  ["host", "/hosts/a"],
  ["add-host", "/hosts/add"],
  ["bans", "/bans"],
  ["address", "/address/198.51.100.66"],
  ["policy", "/policy"],
  ["audit", "/audit"],
  ["account", "/settings"],
  ["sessions", "/settings?tab=sessions"],
  ["tokens", "/settings?tab=tokens"],
  ["members", "/settings?tab=members"],
  ["join-tokens", "/settings?tab=join-tokens"],
  ["organisation", "/settings?tab=organisation"],
];

test("something happened", async ({ page }) => {
  await signIn(page);
  attack("a");
  for (let i = 1; i <= 40; i++) await call(page, "BanService/Ban", { prefixes: [`203.0.${i}.${(i * 37) % 250}`, `2001:db8:${i}::/64`], durationS: String(600 * i), reason: i % 3 ? "scanner" : "spam" });
  await call(page, "AllowlistService/Allow", { prefixes: ["192.0.2.0/24"], durationS: "0", reason: "office" });
});

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
    await page.getByLabel("E-mail address").fill(owner.email);
    await page.getByLabel("Password").fill(owner.password);
    await page.getByRole("button", { name: "Sign in", exact: true }).click();
    await expect(page.getByRole("heading", { name: "Lab", level: 1 })).toBeVisible();
    for (const [file, path] of pages) {
      await page.goto(path);
      await expect(page.getByRole("heading", { level: 1 })).toBeVisible();
      await expect(page.getByTestId("waiting")).toHaveCount(0);
      if (file === "overview") await expect(page.getByRole("img")).toBeVisible();
      await page.screenshot({ path: `screens/out/${file}-${name}.png` });
    }
  });
}
