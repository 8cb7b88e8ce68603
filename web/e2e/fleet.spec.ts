import { call, expect, on, signIn, test } from "./fleet";

test("a host's page tells how it is", async ({ page }) => {
  await signIn(page, undefined, "/hosts");
  const table = page.getByRole("table", { name: "Hosts" });
  for (const host of ["a", "b", "c"]) await expect(table.getByRole("link", { name: host, exact: true })).toBeVisible();
  await table.getByRole("link", { name: "b", exact: true }).click();
  await expect(page.getByRole("heading", { name: "b", level: 1 })).toBeVisible();
  await expect(page.getByText("current").first()).toBeVisible();
  await expect(page.getByRole("table", { name: "Jails" }).getByRole("row").filter({ hasText: "sshd" })).toBeVisible();
  // Somebody on the host switches it off: the page says so, and says when it is on again.
  on("b", "fleetban-agent", "off", "--for", "10m");
  await expect(page.getByRole("main").getByText("Switched off")).toBeVisible({ timeout: 20_000 });
  on("b", "fleetban-agent", "on");
  await expect(page.getByRole("main").getByText("Online")).toBeVisible({ timeout: 20_000 });
});

test("mode and pause are set and told on every page", async ({ page }) => {
  await signIn(page, undefined, "/policy");
  await page.getByRole("button", { name: "Only watch" }).click();
  await expect(page.getByText("Watching: bans that would spread")).toBeVisible();
  await page.getByRole("button", { name: "Enforce", exact: true }).click();
  await expect(page.getByText("Enforcing: what one host bans")).toBeVisible();
  await page.getByRole("button", { name: "Pause every host…" }).click();
  await page.getByRole("dialog").getByRole("button", { name: "Pause every host" }).click();
  await expect(page.getByRole("status").filter({ hasText: "Enforcement is paused on every host" })).toBeVisible();
  await page.getByRole("button", { name: "Resume now" }).click();
  await expect(page.getByText("Nothing is paused.")).toBeVisible();
});

test("a join token is made and shown once", async ({ page }) => {
  await signIn(page, undefined, "/hosts/add");
  await page.getByLabel("Tags").fill("not a tag");
  await page.getByRole("button", { name: "Make the line" }).click();
  await expect(page.getByRole("alert")).toContainText("name=value");
  await page.getByLabel("Tags").fill("team=web");
  await page.getByRole("button", { name: "Make the line" }).click();
  await expect(page.getByLabel("Paste this on the host, as root").first()).toContainText("/install.sh");
  await expect(page.getByText("Waiting for the host.")).toBeVisible();
  await page.goto("/settings?tab=join-tokens");
  const row = page.getByRole("row").filter({ hasText: "team=web" });
  await expect(row).toContainText("1 / 1");
  await row.getByRole("button", { name: "Revoke" }).click();
  await expect(row).toHaveCount(0);
});

test.describe("when a replica is killed", () => {
  test.use({ allow: [/ERR_|Failed to load resource|502|503/] });
  test("the page goes on at the other, and misses nothing", async ({ page }) => {
    await signIn(page);
    await expect(page.getByText("Live", { exact: true }).first()).toBeVisible();
    for (const [i, replica] of ["replica1-", "replica2-"].entries()) {
      on("cp", "pkill", "-9", "-f", replica);
      const prefix = `198.51.100.${240 + i}`;
      await expect.poll(async () => (await call(page, "BanService/Ban", { prefixes: [prefix], durationS: "120", reason: "after the kill" }).catch(() => ({ status: 0 }))).status, { timeout: 20_000 }).toBe(200);
      await expect(page.getByRole("list", { name: "Live" }).getByText(prefix)).toBeVisible({ timeout: 20_000 });
    }
    await expect(page.getByText("Live", { exact: true }).first()).toBeVisible();
  });
});
