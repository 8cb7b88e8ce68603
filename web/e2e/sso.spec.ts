import { spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Page } from "@playwright/test";
import { alone, built, says, stop } from "./alone";
import { call, expect, give, signOut, test } from "./fleet";

const owner = { email: "first@example.com", password: "green-teapots-in-orbit-7" };

/** through signs in at the provider's own page, which stands on another host than the console. */
async function through(page: Page, issuer: string, name: string): Promise<void> {
  await page.getByRole("link", { name: `Continue with ${new URL(issuer).host}` }).click();
  await expect(page).toHaveURL((url) => url.origin === issuer);
  await page.getByLabel("Username").fill(name);
  await page.getByLabel("Password").fill(`idp ${name}`);
  await page.getByRole("button", { name: "Login" }).click();
}

test.describe("an identity provider", () => {
  // Who isn't signed in asks who they are, who has no group is refused, and this provider's pages have no icon.
  test.use({ allow: [/40[13] |404 .*favicon/] });

  test("is set by an owner, lets people of its groups in and nobody else, and may be the only way in but for one", async ({ person }) => {
    const dir = mkdtempSync(join(tmpdir(), "fleetban-idp-"));
    const certificate = join(dir, "idp.pem");
    const provider = spawn(built("idp"), [certificate, "ada=crew,fleet", "zoe="]);
    try {
      const issuer = await says(provider, /https:\S+/);
      await alone(
        async (url, link) => {
          const browser = { ignoreHTTPSErrors: true, baseURL: url };
          const page = await person(browser);
          await page.goto(link);
          await page.getByLabel("E-mail address").fill(owner.email);
          await page.getByLabel(/^Password/).fill(owner.password);
          await page.getByLabel("Once more").fill(owner.password);
          await page.getByLabel("Name of the organisation").fill("Lighthouse");
          await page.getByRole("button", { name: "Set up" }).click();
          await page.getByRole("link", { name: "Add your first host" }).click();
          await expect(page.getByRole("button", { name: "Make the line" })).toBeVisible();

          await page.goto("/settings?tab=sso");
          provider.stdin.write(`${await page.getByLabel("What your provider is to be told, as redirect URL").textContent()}\n`);
          await page.getByLabel("Issuer").fill(issuer);
          await page.getByLabel("Domains of e-mail addresses").fill("example.com");
          await page.getByLabel("Client ID").fill("fleetban");
          await page.getByLabel("Client secret").fill("the client's secret");
          await page.getByLabel("Group 1", { exact: true }).fill("fleet");
          await page.getByLabel("Role of group 1").selectOption("Admin");
          await page.getByRole("button", { name: "Save" }).click();
          await page.getByRole("button", { name: "Test" }).click();
          await expect(page.getByText("It answers. People are sent to")).toBeVisible();

          const ada = await person(browser);
          await ada.goto("/bans");
          await through(ada, issuer, "ada");
          await expect(ada.getByRole("complementary").getByRole("button", { name: "ada@example.com" })).toBeVisible();
          expect((await call(ada, "SessionService/GetMe", {})).body.person).toMatchObject({ email: "ada@example.com", role: "ROLE_ADMIN" });
          await signOut(ada, { email: "ada@example.com" });

          // Who is in no group that may do anything reads why, and finds back.
          const zoe = await person(browser);
          await zoe.goto("/");
          await through(zoe, issuer, "zoe");
          await expect(zoe.getByRole("heading", { name: "You are not signed in" })).toBeVisible();
          await expect(zoe.getByText(/groups/)).toBeVisible();
          await zoe.getByRole("link", { name: "Back to the sign-in page" }).click();
          await expect(zoe.getByRole("heading", { name: "Sign in" })).toBeVisible();

          // From now on there is no password but the owner's.
          await page.getByLabel("Nobody signs in otherwise").check();
          await page.getByLabel("Who may still use a password").selectOption(owner.email);
          await page.getByRole("button", { name: "Save" }).click();
          await expect(page.getByText("required", { exact: true })).toBeVisible();
          await signOut(page, owner);
          await expect(page.getByLabel("Password")).toHaveCount(0);
          await page.getByRole("button", { name: "Sign in with a password" }).click();
          await give(page, owner);
          await expect(page.getByRole("complementary").getByRole("button", { name: owner.email })).toBeVisible();
        },
        { FLEETBAN_SSO_ALLOW_PRIVATE: "true", FLEETBAN_SSO_CA_FILE: certificate },
      );
    } finally {
      await stop(provider);
      rmSync(dir, { recursive: true, force: true });
    }
  });
});
