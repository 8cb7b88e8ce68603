import { call, expect, listen, owner, person, signIn, test, totp } from "./fleet";

test("a member is invited, may look and not touch, and is gone at once when removed", async ({ page, browser }) => {
  const viewer = { email: "viewer@example.com", password: "seven-brass-kettles-71" };
  await signIn(page, undefined, "/settings?tab=members");
  await page.getByRole("button", { name: "Invite…" }).click();
  const dialog = page.getByRole("dialog");
  await dialog.getByLabel("E-mail address").fill(viewer.email);
  await dialog.getByLabel("Role").selectOption("Viewer");
  await dialog.getByRole("button", { name: "Invite" }).click();
  const link = (await dialog.getByLabel("The link").textContent()) ?? "";
  await page.keyboard.press("Escape");

  const other = await person(browser);
  const heard = listen(other);
  await other.goto(new URL(link).pathname + new URL(link).hash);
  await other.getByLabel("Password").fill(viewer.password);
  await other.getByRole("button", { name: "Join" }).click();
  await other.getByRole("link", { name: "Sign in" }).click();
  await signIn(other, viewer);
  await other.goto("/bans");
  await expect(other.getByRole("heading", { name: "Bans", level: 1 })).toBeVisible();
  await expect(other.getByRole("button", { name: "Ban…" })).toHaveCount(0);
  await other.goto("/audit");
  await expect(other.getByText("Your role doesn't include this.")).toBeVisible();
  expect(heard).toEqual([]);
  // The API says the same.
  expect((await call(other, "BanService/Ban", { prefixes: ["198.51.100.1"], durationS: "60" })).status).toBe(403);
  expect((await call(other, "AuditService/ListAudit", {})).status).toBe(403);

  // Two people at once: what one does, the other sees.
  await other.goto("/policy");
  await call(page, "AllowlistService/Allow", { prefixes: ["198.51.100.200"], durationS: "600", reason: "seen by the other" });
  await expect(other.getByText("seen by the other")).toBeVisible({ timeout: 15_000 });
  await call(page, "AllowlistService/Disallow", { prefixes: ["198.51.100.200"] });

  await page.getByRole("row").filter({ hasText: viewer.email }).getByRole("button", { name: "Remove" }).click();
  await page.getByRole("dialog").getByRole("button", { name: "Remove" }).click();
  await expect(page.getByRole("row").filter({ hasText: viewer.email })).toHaveCount(0);
  await expect(other.getByRole("heading", { name: "Sign in" })).toBeVisible({ timeout: 20_000 });
  await other.context().close();
});

test("an authenticator is enrolled and asked for, and recovery codes are good once", async ({ page, browser }) => {
  const guest = { email: "second@example.com", password: "nine-copper-lanterns-58" };
  await signIn(page);
  const invitation = await call(page, "MemberService/Invite", { email: guest.email, role: "ROLE_VIEWER" });
  const link = new URL(String(invitation.body.link));
  const other = await person(browser);
  await other.goto(link.pathname + link.hash);
  await other.getByLabel("Password").fill(guest.password);
  await other.getByRole("button", { name: "Join" }).click();
  await other.getByRole("link", { name: "Sign in" }).click();
  await signIn(other, guest, "/settings");
  await other.getByRole("button", { name: "Enable" }).click();
  const dialog = other.getByRole("dialog", { name: "Authenticator" });
  await expect(dialog.getByRole("img", { name: "QR code for your authenticator" })).toBeVisible();
  const secret = (await dialog.getByLabel("The same as text").textContent()) ?? "";
  await dialog.getByLabel("Code", { exact: true }).fill(totp(secret));
  await dialog.getByRole("button", { name: "Enable" }).click();
  const codes = other.getByRole("dialog", { name: "Recovery codes" });
  const [recovery = ""] = ((await codes.getByLabel("Recovery codes").textContent()) ?? "").split("\n");
  await codes.getByRole("button", { name: "I kept them" }).click();
  await other.getByRole("button", { name: guest.email }).click();
  await other.getByRole("menuitem", { name: "Sign out" }).click();

  const begin = async () => {
    await other.goto("/");
    await other.getByLabel("E-mail address").fill(guest.email);
    await other.getByLabel("Password").fill(guest.password);
    await other.getByRole("button", { name: "Sign in", exact: true }).click();
    await other.getByRole("button", { name: "Use a recovery code" }).click();
    await other.getByLabel("Recovery code").fill(recovery);
    await other.getByRole("button", { name: "Sign in", exact: true }).click();
  };
  await begin();
  await expect(other.getByRole("navigation", { name: "Pages" })).toBeVisible();
  await other.getByRole("button", { name: guest.email }).click();
  await other.getByRole("menuitem", { name: "Sign out" }).click();
  await begin();
  await expect(other.getByRole("alert")).toBeVisible();
  await other.context().close();
  await call(page, "MemberService/RemoveMember", { member: guest.email });
});

test("a session is ended from another browser", async ({ page, browser }) => {
  await signIn(page);
  const other = await person(browser);
  await signIn(other);
  await page.goto("/settings?tab=sessions");
  await page.getByRole("button", { name: "End all others" }).click();
  await expect(page.getByRole("table", { name: "Sessions" }).getByRole("row")).toHaveCount(2);
  await expect(other.getByRole("heading", { name: "Sign in" })).toBeVisible({ timeout: 20_000 });
  await other.context().close();
});

test("who did what is written down, and nobody touched it", async ({ page }) => {
  await signIn(page, undefined, "/audit?action=sign-in");
  await expect(page.getByRole("table", { name: "Audit" }).getByRole("row").nth(1)).toContainText(owner.email);
  await page.getByRole("button", { name: "Verify" }).click();
  await expect(page.getByText("Nothing was changed, removed or moved")).toBeVisible();
});
