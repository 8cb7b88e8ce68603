import { call, expect, settled, signIn, test } from "./fleet";

test("100,000 bans are scrolled, sorted and searched", async ({ page }) => {
  test.setTimeout(300_000);
  await signIn(page, undefined, "/settings");
  const blocks = Array.from({ length: 100 }, (_, block) => Array.from({ length: 1000 }, (_, i) => `45.${block}.${i >> 8}.${i & 255}`));
  for (const prefixes of blocks) {
    const answer = await call(page, "BanService/Ban", { prefixes, durationS: "3600", reason: "many" });
    expect(answer.status).toBe(200);
  }
  await page.goto("/bans");
  await settled(page);
  const table = page.getByRole("table", { name: "Bans" });
  await expect(table).toHaveAttribute("aria-rowcount", /^100\d{3}$/);
  await expect(page.getByText(/100,\d{3} in force/)).toBeVisible();
  // However many there are, the page holds those in sight.
  expect(await table.getByRole("row").count()).toBeLessThan(80);
  // On and on, as a wheel does it.
  await table.hover();
  await expect(async () => {
    await page.mouse.wheel(0, 20_000);
    expect(Number(await table.getByRole("row").last().getAttribute("aria-rowindex", { timeout: 1_000 }))).toBeGreaterThan(1_500);
  }).toPass({ timeout: 40_000, intervals: [100] });
  expect(await table.getByRole("row").count()).toBeLessThan(80);

  await table.getByRole("button", { name: "Address" }).click();
  await expect(page).toHaveURL(/sort=prefix/);
  await table.getByRole("button", { name: "Address" }).click();
  await expect(page).toHaveURL(/up=true/);
  await expect(async () => {
    await page.mouse.wheel(0, -200_000);
    await expect(table.getByRole("link", { name: "45.0.0.0", exact: true })).toBeVisible({ timeout: 1_000 });
  }).toPass({ timeout: 20_000, intervals: [100] });
  await page.getByRole("searchbox").fill("45.99.3.231");
  await expect(table.getByRole("row")).toHaveCount(2);
  await expect(table.getByRole("link", { name: "45.99.3.231", exact: true })).toBeVisible();
});
