import { createHash } from "node:crypto";
import type { Page } from "@playwright/test";
import AxeBuilder from "@axe-core/playwright";
import { expect, owner, signIn, test } from "./fleet";

const verifier = "a verifier that nobody but the terminal has seen";
const challenge = createHash("sha256").update(verifier).digest("base64url");

/** terminal calls as `fleetban login --browser` does: without the browser's cookies. */
async function terminal(page: Page, rpc: string, body: unknown): Promise<{ status: number; body: Record<string, unknown> }> {
  return page.evaluate(
    async ([path, json]) => {
      const answer = await fetch(`/fleetban.operator.v1.TerminalService/${path}`, {
        method: "POST",
        credentials: "omit",
        headers: { "content-type": "application/json" },
        body: json,
      });
      return { status: answer.status, body: (await answer.json()) as Record<string, unknown> };
    },
    [rpc, JSON.stringify(body)] as const,
  );
}

test.describe("a terminal", () => {
  test.use({ allow: [/401|403|404/] });
  test("is signed in by a code that is typed, or told that it isn't", async ({ page }) => {
    // Who isn't signed in is asked to be, and goes on where they wanted to.
    await signIn(page, owner, "/terminal");
    const begin = async () => String((await terminal(page, "BeginTerminalSignIn", { challenge, name: "build-7" })).body.code);
    const type = async (code: string) => {
      await page.getByLabel("Code").fill(code);
      await page.getByRole("button", { name: "Next" }).click();
    };
    await type("BBBB-BBBB");
    await expect(page.getByRole("alert")).toContainText("unknown, used or too old");
    const code = await begin();
    await type(code.toLowerCase().replace("-", " "));
    await expect(page.getByText(code)).toBeVisible();
    await expect(page.getByText("build-7")).toBeVisible();
    await expect(page.getByText("where this browser is, too")).toBeVisible();
    await expect(page.getByText(`will be signed in as ${owner.email}`)).toBeVisible();
    expect((await new AxeBuilder({ page }).analyze()).violations).toEqual([]);
    expect((await terminal(page, "CompleteTerminalSignIn", { code, verifier })).body.pending).toBe(true);
    await page.getByRole("button", { name: "Approve" }).click();
    await expect(page.getByRole("status").filter({ hasText: "Approved" })).toBeVisible();
    expect((await terminal(page, "CompleteTerminalSignIn", { code, verifier })).body.person).toMatchObject({ email: owner.email });
    await page.getByRole("button", { name: "Another code" }).click();
    const denied = await begin();
    await type(denied);
    await page.getByRole("button", { name: "That wasn’t me" }).click();
    await expect(page.getByRole("status").filter({ hasText: "Denied" })).toBeVisible();
    expect((await terminal(page, "CompleteTerminalSignIn", { code: denied, verifier })).status).toBe(403);
  });
});
