import { attack, call, expect, on, signIn, test } from "./fleet";

test("an attack on one host is seen, explained, and lifted everywhere", async ({ page }) => {
  await signIn(page);
  await expect(page.getByText("3 / 3")).toBeVisible();
  await expect(page.getByText("Live", { exact: true }).first()).toBeVisible();
  const address = attack("a", 0);
  const line = page.getByRole("list", { name: "Live" }).getByRole("listitem").filter({ hasText: address }).filter({ hasText: "sshd" }).first();
  // What was before the page is opened is on it too.
  await page.reload();
  await line.getByRole("link", { name: address }).click();
  await expect(page.getByRole("heading", { name: address, level: 1 })).toBeVisible();
  await expect(page.getByText("Banned on the fleet")).toBeVisible();
  await expect(page.getByText("enforced by 3 of 3")).toBeVisible();
  await expect(page.getByRole("table", { name: "Why it is banned" }).getByText("sshd")).toBeVisible();
  // In the kernel of a host that never saw it.
  expect(on("b", "nft", "list", "ruleset")).toContain(address);

  await page.getByRole("button", { name: "Unban everywhere…" }).click();
  const dialog = page.getByRole("dialog");
  await expect(dialog.getByText("Orders these hosts to unban it: a.")).toBeVisible();
  await dialog.getByRole("button", { name: "Unban", exact: true }).click();
  await expect(page.getByText("Unbanned on every host.")).toBeVisible();
  await expect(page.getByText("Not banned")).toBeVisible();
  await expect(page.getByText("It isn't banned any more.")).toBeVisible();
  await expect.poll(() => on("b", "nft", "list", "ruleset").includes(address)).toBe(false);
});

test("a ban shows where it stands, can be found, and its unban be taken back", async ({ page }) => {
  await signIn(page, undefined, "/bans");
  await page.getByRole("button", { name: "Ban…" }).click();
  const dialog = page.getByRole("dialog", { name: "Ban on every host" });
  await dialog.getByLabel("Addresses").fill("nonsense");
  await expect(dialog.getByRole("alert")).toContainText("nonsense is neither an address nor a prefix.");
  await dialog.getByLabel("Addresses").fill("198.51.100.77, 2001:db8:bad::/64");
  await dialog.getByLabel("For how long").fill("2h");
  await dialog.getByLabel("Reason").fill("<script>document.title='x'</script>\u202e tsurt");
  await dialog.getByRole("button", { name: "Ban 2" }).click();
  await expect(dialog.getByText(/Enforced by 3 of 3 hosts, after [\d,]+ ms\./)).toBeVisible();
  await dialog.getByRole("button", { name: "Done" }).click();

  const table = page.getByRole("table", { name: "Bans" });
  await expect(table.getByRole("row").filter({ hasText: "198.51.100.77" })).toContainText("<script>document.title='x'</script>⟨U+202E⟩ tsurt");
  await expect(page).toHaveTitle("Fleetban");
  // One of several is neither none nor all.
  const one = table.getByRole("checkbox", { name: "Choose 198.51.100.77" });
  await one.check();
  await expect(table.getByRole("checkbox", { name: /^Choose all/ })).toBeChecked({ indeterminate: true });
  await one.uncheck();
  // The beginning of an address narrows as it is typed, and a prefix is what lies within it.
  for (const text of ["198.51.", "198.51.100.7", "198.51.100.0/24"]) {
    await page.getByRole("searchbox").fill(text);
    await expect(table.getByRole("link", { name: "198.51.100.77", exact: true })).toBeVisible();
    await expect(table.getByRole("link", { name: "2001:db8:bad::/64", exact: true })).toHaveCount(0);
  }
  await page.getByRole("searchbox").fill("2001:db8:bad::5");
  await expect(page).toHaveURL(/q=2001/);
  await expect(table.getByRole("row")).toHaveCount(2);
  await table.getByRole("checkbox", { name: "Choose 2001:db8:bad::/64" }).check();
  await page.getByRole("button", { name: "Unban 1…" }).click();
  await page.getByRole("dialog").getByRole("button", { name: "Unban", exact: true }).click();
  await expect(page.getByText("No ban matches.")).toBeVisible();
  await page.getByRole("button", { name: "Undo" }).click();
  await expect.poll(async () => (await call(page, "BanService/Explain", { address: "2001:db8:bad::/64" })).body.banned).toBe(true);
  await call(page, "BanService/Unban", { prefixes: ["2001:db8:bad::/64", "198.51.100.77"] });
});

test.describe("what may not be banned", () => {
  test.use({ allow: [/400/] });
  test("is refused with its reason, and nothing that was typed is lost", async ({ page }) => {
    await signIn(page, undefined, "/bans");
    await page.getByRole("button", { name: "Ban…" }).click();
    const dialog = page.getByRole("dialog");
    await dialog.getByLabel("Addresses").fill("10.0.0.0/8");
    await dialog.getByRole("button", { name: "Ban it" }).click();
    await expect(dialog.getByRole("alert")).toBeVisible();
    await expect(dialog.getByLabel("Addresses")).toHaveValue("10.0.0.0/8");
  });
});
