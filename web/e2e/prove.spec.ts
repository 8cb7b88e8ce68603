import type { Page } from "@playwright/test";
import { call, expect, join, on, settled, signIn, test, totp } from "./fleet";

/** longAgo makes it an hour since a page's person proved who they are: their session is older, and so is the next token of it. */
async function longAgo(page: Page): Promise<void> {
  const me = (await call(page, "SessionService/GetMe", {})).body.person as { id: string };
  const sessions = (await call(page, "SessionService/ListSessions", {})).body.sessions as { id: string; current?: boolean }[];
  const key = `fb:{${me.id}}:session:${sessions.find((s) => s.current)?.id}`;
  expect(on("cp", "redis-cli", "exists", key).trim()).toBe("1");
  on("cp", "redis-cli", "hset", key, "proved", String(Date.now() - 3_600_000));
  on("cp", "redis-cli", "hdel", key, "proof");
  await page.evaluate(() => localStorage.setItem("fleetban-session", "0"));
  const renewed = page.waitForResponse((r) => r.url().endsWith("/Refresh") && r.ok());
  await page.reload();
  await renewed;
  await settled(page);
}

test.describe("a new proof", () => {
  // Refusals: for want of a proof, and of one that is wrong.
  test.use({ allow: [/400|401|403/] });

  test("is asked for before members change, by password; refused or not given, nothing is done and nothing is lost", async ({ page }) => {
    const guest = `proved-${Date.now()}@example.com`;
    await signIn(page, undefined, "/settings?tab=members");
    await longAgo(page);
    await page.getByRole("button", { name: "Invite…" }).click();
    const invite = page.getByRole("dialog", { name: /^Invite/ });
    await invite.getByLabel("E-mail address").fill(guest);
    await invite.getByRole("button", { name: "Invite" }).click();
    const proof = page.getByRole("dialog", { name: "Is it you?" });
    await proof.getByLabel("Password").fill("not the password");
    await proof.getByRole("button", { name: "Continue" }).click();
    await expect(proof.getByRole("alert")).toBeVisible();
    await proof.getByRole("button", { name: "Cancel" }).click();
    await expect(proof).toHaveCount(0);
    await expect(invite.getByRole("alert")).toBeVisible();
    await expect(invite.getByLabel("E-mail address")).toHaveValue(guest);

    await invite.getByRole("button", { name: "Invite" }).click();
    await proof.getByLabel("Password").fill("quiet-harbour-lantern-42");
    await proof.getByRole("button", { name: "Continue" }).click();
    // What was asked for goes on by itself.
    await expect(invite.getByLabel("The link")).toContainText("/invitation#");
    await page.keyboard.press("Escape");
    // Ten minutes long nobody asks again.
    expect((await call(page, "MemberService/Invite", { email: guest, role: "ROLE_VIEWER" })).status).toBe(200);
  });

  test("is a code where the account has an authenticator, and a token is made with it", async ({ page, person }) => {
    const guest = { email: `token-maker-${Date.now()}@example.com`, password: "three-marble-otters-27" };
    await signIn(page);
    const invitation = await call(page, "MemberService/Invite", { email: guest.email, role: "ROLE_OPERATOR" });
    const other = await person();
    await join(other, String(invitation.body.link), guest);
    await other.goto("/settings");
    await other.getByRole("button", { name: "Enable" }).click();
    const enrol = other.getByRole("dialog", { name: "Authenticator" });
    const secret = (await enrol.getByLabel("The same as text").textContent()) ?? "";
    await enrol.getByLabel("Code", { exact: true }).fill(totp(secret));
    await enrol.getByRole("button", { name: "Enable" }).click();
    await other.getByRole("dialog", { name: "Recovery codes" }).getByRole("button", { name: "I kept them" }).click();

    await other.goto("/settings?tab=tokens");
    await settled(other);
    await longAgo(other);
    await other.getByRole("button", { name: "Make a token…" }).first().click();
    const make = other.getByRole("dialog", { name: "Make a token" });
    await make.getByLabel("Name").fill("backup");
    await make.getByRole("button", { name: "Make a token" }).click();
    const proof = other.getByRole("dialog", { name: "Is it you?" });
    // A password is not enough where there is more.
    await expect(proof.getByLabel("Password")).toHaveCount(0);
    await proof.getByLabel("Code", { exact: true }).fill("000000");
    await proof.getByRole("button", { name: "Continue" }).click();
    await expect(proof.getByRole("alert")).toBeVisible();
    // Each code is good once, and one that is a little ahead is taken.
    await proof.getByLabel("Code", { exact: true }).fill(totp(secret, Date.now() + 30_000));
    await proof.getByRole("button", { name: "Continue" }).click();
    await expect(make.getByLabel("The token")).toContainText(/^fb/);
    await other.keyboard.press("Escape");
    await expect(other.getByRole("row").filter({ hasText: "backup" })).toBeVisible();
    await call(page, "MemberService/RemoveMember", { member: guest.email });
  });
});
