import { call, expect, give, join, owner, settled, signIn, signOut, test, totp } from "./fleet";

test.describe("a viewer", () => {
  test.use({ allow: [/401|403/] });
  test("is invited, may look and not touch, and is gone at once when removed", async ({ page, person, complaints }) => {
    const viewer = { email: "viewer@example.com", password: "seven-brass-kettles-71" };
    await signIn(page, undefined, "/settings?tab=members");
    await page.getByRole("button", { name: "Invite…" }).click();
    const dialog = page.getByRole("dialog");
    await dialog.getByLabel("E-mail address").fill(viewer.email);
    await dialog.getByLabel("Role").selectOption("Viewer");
    await dialog.getByRole("button", { name: "Invite" }).click();
    const link = (await dialog.getByLabel("The link").textContent()) ?? "";
    await page.keyboard.press("Escape");

    const other = await person();
    await join(other, link, viewer);
    for (const path of ["/bans", "/hosts/a", "/address/198.51.100.1", "/policy"]) {
      await other.goto(path);
      await settled(other);
      await expect(other.getByRole("main").getByRole("button", { name: /^(Ban|Unban|Allow|Pause|Enforce|Only watch|Remove|Rename)/ }).and(other.locator(":enabled"))).toHaveCount(0);
    }
    await other.goto("/audit");
    await expect(other.getByText("Your role doesn't include this.")).toBeVisible();
    // The pages asked for nothing that they may not have.
    expect(complaints).toEqual([]);
    // The API says the same.
    expect((await call(other, "BanService/Ban", { prefixes: ["198.51.100.1"], durationS: "60" })).status).toBe(403);
    expect((await call(other, "AuditService/ListAudit", {})).status).toBe(403);

    await page.getByRole("row").filter({ hasText: viewer.email }).getByRole("button", { name: "Remove" }).click();
    await page.getByRole("dialog").getByRole("button", { name: "Remove" }).click();
    await expect(page.getByRole("row").filter({ hasText: viewer.email })).toHaveCount(0);
    await expect(other.getByRole("heading", { name: "Sign in" })).toBeVisible({ timeout: 30_000 });
  });
});

test("two people work at once, and each sees what the other does", async ({ page, person }) => {
  const colleague = { email: "colleague@example.com", password: "six-amber-windmills-36" };
  await signIn(page, undefined, "/policy");
  const invitation = await call(page, "MemberService/Invite", { email: colleague.email, role: "ROLE_OPERATOR" });
  const other = await person();
  await join(other, String(invitation.body.link), colleague);
  await other.goto("/policy");
  await settled(other);

  await page.getByRole("button", { name: "Pause every host…" }).click();
  await page.getByRole("dialog").getByRole("button", { name: "Pause every host" }).click();
  await expect(other.getByRole("status").filter({ hasText: "Enforcement is paused on every host" })).toBeVisible({ timeout: 30_000 });
  await other.getByRole("button", { name: "Resume now" }).click();
  await expect(page.getByText("Nothing is paused.")).toBeVisible({ timeout: 30_000 });

  // Both lift the same ban: the second finds it lifted, and nothing breaks.
  const address = "198.51.100.210";
  await call(page, "BanService/Ban", { prefixes: [address], durationS: "600", reason: "two at once" });
  for (const who of [page, other]) {
    await who.goto(`/address/${address}`);
    await who.getByRole("button", { name: "Unban everywhere…" }).click();
  }
  for (const who of [page, other]) {
    await who.getByRole("dialog").getByRole("button", { name: "Unban", exact: true }).click();
    await expect(who.getByText("Not banned")).toBeVisible();
  }
  await other.close();
  await call(page, "MemberService/RemoveMember", { member: colleague.email });
});

test.describe("an authenticator", () => {
  // The recovery code that was used before.
  test.use({ allow: [/401/] });
  test("is enrolled and asked for, and recovery codes are good once", async ({ page, person }) => {
    const guest = { email: "second@example.com", password: "nine-copper-lanterns-58" };
    await signIn(page);
    const invitation = await call(page, "MemberService/Invite", { email: guest.email, role: "ROLE_VIEWER" });
    const other = await person();
    await join(other, String(invitation.body.link), guest);
    await other.goto("/settings");
    await other.getByRole("button", { name: "Enable" }).click();
    const dialog = other.getByRole("dialog", { name: "Authenticator" });
    await expect(dialog.getByRole("img", { name: "QR code for your authenticator" })).toBeVisible();
    const secret = (await dialog.getByLabel("The same as text").textContent()) ?? "";
    await dialog.getByLabel("Code", { exact: true }).fill(totp(secret));
    await dialog.getByRole("button", { name: "Enable" }).click();
    const codes = other.getByRole("dialog", { name: "Recovery codes" });
    const [recovery = ""] = ((await codes.getByLabel("Recovery codes").textContent()) ?? "").split("\n");
    await codes.getByRole("button", { name: "I kept them" }).click();
    await signOut(other, guest);

    const recover = async () => {
      await give(other, guest);
      await other.getByRole("button", { name: "Use a recovery code" }).click();
      await other.getByLabel("Recovery code").fill(recovery);
      await other.getByRole("button", { name: "Sign in", exact: true }).click();
    };
    await recover();
    await expect(other.getByRole("navigation", { name: "Pages" })).toBeVisible();
    await signOut(other, guest);
    await recover();
    await expect(other.getByRole("alert")).toBeVisible();
    await call(page, "MemberService/RemoveMember", { member: guest.email });
  });
});

test.describe("a passkey", () => {
  // Signed out, a stream that begins again is refused.
  test.use({ allow: [/401/] });
  test("is made, and signs in alone", async ({ page, person }) => {
    const guest = { email: "passkey@example.com", password: "four-silver-anchors-19" };
    await signIn(page);
    const invitation = await call(page, "MemberService/Invite", { email: guest.email, role: "ROLE_VIEWER" });
    const other = await person();
    const devtools = await other.context().newCDPSession(other);
    await devtools.send("WebAuthn.enable");
    await devtools.send("WebAuthn.addVirtualAuthenticator", {
      options: { protocol: "ctap2", transport: "internal", hasResidentKey: true, hasUserVerification: true, isUserVerified: true, automaticPresenceSimulation: true },
    });
    await join(other, String(invitation.body.link), guest);
    await other.goto("/settings");
    const row = other.getByRole("listitem").filter({ hasText: "Passkeys" });
    await row.getByRole("button", { name: "Add" }).click();
    await other.getByRole("dialog", { name: "Recovery codes" }).getByRole("button", { name: "I kept them" }).click();
    await expect(row.getByRole("button", { name: "Remove" })).toBeVisible();
    await signOut(other, guest);
    await other.getByRole("button", { name: "passkey" }).click();
    await expect(other.getByRole("navigation", { name: "Pages" })).toBeVisible();
    await signOut(other, guest);
    await call(page, "MemberService/RemoveMember", { member: guest.email });
  });
});

test.describe("a session", () => {
  // What was ended is refused once, and then known to be.
  test.use({ allow: [/401/] });
  test("is ended from another browser", async ({ page, person }) => {
    await signIn(page);
    const other = await person();
    await signIn(other);
    await page.goto("/settings?tab=sessions");
    await page.getByRole("button", { name: "End all others" }).click();
    await expect(page.getByRole("table", { name: "Sessions" }).getByRole("row")).toHaveCount(2);
    await expect(other.getByRole("heading", { name: "Sign in" })).toBeVisible({ timeout: 30_000 });
  });
});

test("who did what is written down, and nobody touched it", async ({ page }) => {
  await signIn(page, undefined, "/audit?action=sign-in");
  await expect(page.getByRole("table", { name: "Audit" }).getByRole("row").nth(1)).toContainText(owner.email);
  await page.getByRole("button", { name: "Verify" }).click();
  await expect(page.getByText("Nothing was changed, removed or moved")).toBeVisible();
});
