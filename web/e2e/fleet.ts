import { execFileSync } from "node:child_process";
import { createHmac } from "node:crypto";
import { test as base, type Browser, expect, type Page } from "@playwright/test";

// What the tests share: the owner, the lab's machines, and pages on which nothing may go wrong unseen.

export const owner = { email: "owner@example.com", password: "quiet-harbour-lantern-42" };

/** lab runs the lab's program: attack("a"), on("a", "nft", …). */
function lab(...args: string[]): string {
  const program = process.env.FLEETBAN_LAB;
  if (!program) throw new Error("run these tests with scripts/web-e2e: they need a lab");
  return execFileSync(program, args, { encoding: "utf8", stdio: ["ignore", "pipe", "pipe"], timeout: 50_000 });
}

const name = process.env.FLEETBAN_LAB_NAME ?? "console";

/** attack has the attacker try SSH passwords on a host until its fail2ban bans it. */
export function attack(host: string): void {
  lab("attack", "-name", name, host);
}

/** on runs a command on a machine of the lab. */
export function on(machine: string, ...command: string[]): string {
  return lab("exec", "-name", name, machine, "--", ...command);
}

/** complaints of a page that a person might never see: they fail the test. */
export function listen(page: Page): string[] {
  const heard: string[] = [];
  page.on("pageerror", (err) => heard.push(`error: ${err.message}`));
  page.on("console", (message) => {
    if (message.type() === "error" || /Content Security Policy/i.test(message.text())) heard.push(`${message.type()}: ${message.text()}`);
  });
  return heard;
}

/** A test may expect some: a refused call is a console error of the browser's own. */
export const test = base.extend<{ complaints: string[]; allow: RegExp[] }>({
  allow: async ({}, use) => {
    await use([]);
  },
  complaints: [
    async ({ page, allow }, use) => {
      const heard = listen(page);
      await use(heard);
      expect(heard.filter((text) => !allow.some((a) => a.test(text)))).toEqual([]);
    },
    { auto: true },
  ],
});

export { expect };

/** signIn signs a person in with a password, from wherever the page is. */
export async function signIn(page: Page, who: { email: string; password: string } = owner, path = "/"): Promise<void> {
  await page.goto(path);
  await page.getByLabel("E-mail address").fill(who.email);
  await page.getByLabel("Password").fill(who.password);
  await page.getByRole("button", { name: "Sign in", exact: true }).click();
  await expect(page.getByRole("navigation", { name: "Pages" })).toBeVisible();
}

/** person is another browser: cookies, storage and all. */
export async function person(browser: Browser, options: Parameters<Browser["newContext"]>[0] = {}): Promise<Page> {
  const context = await browser.newContext({ ignoreHTTPSErrors: true, baseURL: process.env.FLEETBAN_URL, locale: "en-GB", ...options });
  return context.newPage();
}

/** call asks the API as the page's person would, past what the page offers. */
export async function call(page: Page, procedure: string, body: unknown): Promise<{ status: number; body: Record<string, unknown> }> {
  return page.evaluate(
    async ([path, json]) => {
      const answer = await fetch(`/fleetban.operator.v1.${path}`, { method: "POST", headers: { "content-type": "application/json", "fleetban-session": "cookie" }, body: json });
      return { status: answer.status, body: (await answer.json()) as Record<string, unknown> };
    },
    [procedure, JSON.stringify(body)] as const,
  );
}

/** totp is the code of a secret in base32 at a time (RFC 6238, SHA-1, 30 s, six digits). */
export function totp(secret: string, at = Date.now()): string {
  const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
  const bits = [...secret.replace(/[^A-Z2-7]/g, "")].map((c) => alphabet.indexOf(c).toString(2).padStart(5, "0")).join("");
  const key = Buffer.from(bits.match(/.{8}/g)?.map((b) => Number.parseInt(b, 2)) ?? []);
  const counter = Buffer.alloc(8);
  counter.writeBigUInt64BE(BigInt(Math.floor(at / 30_000)));
  const mac = createHmac("sha1", key).update(counter).digest();
  const offset = (mac.at(-1) ?? 0) & 15;
  return String((mac.readUInt32BE(offset) & 0x7fffffff) % 1_000_000).padStart(6, "0");
}
