import { execFileSync } from "node:child_process";
import { createHmac } from "node:crypto";
import { test as base, type BrowserContext, type BrowserContextOptions, expect, type Page } from "@playwright/test";

// What the tests share: the owner, the lab's machines, and pages on which nothing may go wrong unseen.

export const owner = { email: "owner@example.com", password: "quiet-harbour-lantern-42" };

/** lab runs the lab's program: attack("a"), on("a", "nft", …). */
function lab(...args: string[]): string {
  const program = process.env.FLEETBAN_LAB;
  if (!program) throw new Error("run these tests with scripts/web-e2e: they need a lab");
  return execFileSync(program, args, { encoding: "utf8", stdio: ["ignore", "pipe", "pipe"], timeout: 50_000 });
}

const name = process.env.FLEETBAN_LAB_NAME ?? "console";

/** attack tries SSH passwords on a host, from the n-th of the attacker's addresses, until the host's fail2ban bans it. Each n is good for one ban. */
export function attack(host: string, n: number): string {
  const said = lab("attack", "-name", name, "-source", String(n), host);
  const address = / banned (\S+) after /.exec(said)?.[1];
  if (!address) throw new Error(`no address in: ${said}`);
  return address;
}

/** on runs a command on a machine of the lab. */
export function on(machine: string, ...command: string[]): string {
  return lab("exec", "-name", name, machine, "--", ...command);
}

/** startAgent starts what the installer brought to a host: the lab has no systemd. */
export function startAgent(host: string): void {
  lab("agent", "-name", name, host);
}

/** join has an invited person choose a password and sign in. */
export async function join(page: Page, link: string, who: { email: string; password: string }): Promise<void> {
  await page.goto(link);
  await page.getByLabel("Password").fill(who.password);
  await page.getByRole("button", { name: "Join" }).click();
  await page.getByRole("link", { name: "Sign in" }).click();
  await signIn(page, who);
}

/** signOut is done from the person's menu. */
export async function signOut(page: Page, who: { email: string }): Promise<void> {
  await page.getByRole("complementary").getByRole("button", { name: who.email }).click();
  await page.getByRole("menuitem", { name: "Sign out" }).click();
  await expect(page.getByRole("heading", { name: "Sign in" })).toBeVisible();
}

/** listen keeps what goes wrong on any page of a context where no person might see it: errors, and refusals of the policy. */
function listen(context: BrowserContext, heard: string[]): void {
  context.on("weberror", (err) => heard.push(`error: ${err.error().message}`));
  context.on("console", (message) => {
    if (message.type() === "error" || /Content Security Policy/i.test(message.text())) heard.push(`${message.type()}: ${message.text()} (${message.location().url})`);
  });
}

export const test = base.extend<{
  /** What a test expects to be complained of: a refused call is a console error of the browser's own. */
  allow: RegExp[];
  /** What was complained of, on pages of everybody; anything else fails the test. */
  complaints: string[];
  /** person is another browser: cookies, storage and all. */
  person: (options?: BrowserContextOptions) => Promise<Page>;
}>({
  allow: async ({}, use) => {
    await use([]);
  },
  complaints: [
    async ({ context, allow }, use) => {
      const heard: string[] = [];
      listen(context, heard);
      await use(heard);
      expect(heard.filter((text) => !allow.some((a) => a.test(text)))).toEqual([]);
    },
    { auto: true },
  ],
  person: async ({ browser, complaints }, use) => {
    const contexts: BrowserContext[] = [];
    await use(async (options) => {
      const context = await browser.newContext(options);
      listen(context, complaints);
      contexts.push(context);
      return context.newPage();
    });
    for (const context of contexts) await context.close();
  },
});

export { expect };

/** give fills in the sign-in and sends it. */
export async function give(page: Page, who: { email: string; password: string }): Promise<void> {
  await page.getByLabel("E-mail address").fill(who.email);
  await page.getByLabel("Password").fill(who.password);
  await page.getByRole("button", { name: "Sign in", exact: true }).click();
}

/** signIn signs a person in with a password and waits for the page they wanted. */
export async function signIn(page: Page, who: { email: string; password: string } = owner, path = "/"): Promise<void> {
  await page.goto(path);
  await give(page, who);
  await expect(page.getByRole("main").getByRole("heading", { level: 1 })).toBeVisible();
  await expect(page.getByRole("heading", { name: "Sign in" })).toHaveCount(0);
}

/** settled waits until a page shows what it was opened for. */
export async function settled(page: Page): Promise<void> {
  await expect(page.getByRole("main").getByRole("heading", { level: 1 })).toBeVisible();
  await expect(page.getByTestId("waiting")).toHaveCount(0);
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
