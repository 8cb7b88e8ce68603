import { type ChildProcess, spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import AxeBuilder from "@axe-core/playwright";
import { expect, test } from "./fleet";

function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once("error", reject);
    server.listen(0, "127.0.0.1", () => {
      const address = server.address();
      server.close(() => resolve(typeof address === "object" && address ? address.port : 0));
    });
  });
}

/** link reads what the control plane prints until the set-up link stands there. */
function link(process: ChildProcess): Promise<string> {
  return new Promise((resolve, reject) => {
    let said = "";
    const read = (chunk: Buffer) => {
      said += chunk.toString();
      const found = /https:\/\/\S+\/setup#fbs_\S+/.exec(said)?.[0];
      if (found) resolve(found);
    };
    process.stdout?.on("data", read);
    process.stderr?.on("data", read);
    process.once("exit", () => reject(new Error(`the control plane ended:\n${said}`)));
  });
}

// A control plane of its own, as `serve` starts it the first time; its certificate is nobody's but its own.
test("the first start: the link that was printed leads to an owner, and on to the first host", async ({ person }) => {
  const dir = mkdtempSync(join(tmpdir(), "fleetban-first-"));
  const port = await freePort();
  const url = `https://localhost:${port}`;
  const program = join(dirname(process.env.FLEETBAN_LAB ?? ""), "fleetban-controlplane");
  const controlPlane = spawn(program, ["serve", "--data-dir", dir, "--listen", `127.0.0.1:${port}`, "--public-url", url]);
  const ended = new Promise((resolve) => controlPlane.once("exit", resolve));
  try {
    const page = await person({ ignoreHTTPSErrors: true, baseURL: url });
    await page.goto(await link(controlPlane));
    await expect(page.getByRole("heading", { name: "Set up Fleetban", level: 1 })).toBeVisible();
    const axe = await new AxeBuilder({ page }).analyze();
    expect(axe.violations.map((v) => v.id)).toEqual([]);
    await page.getByLabel("E-mail address").fill("first@example.com");
    await page.getByLabel(/^Password/).fill("green-teapots-in-orbit-7");
    await page.getByLabel("Once more").fill("green-teapots-in-orbit-8");
    await page.getByRole("button", { name: "Set up" }).click();
    await expect(page.getByRole("alert")).toContainText("differ");
    await page.getByLabel("Once more").fill("green-teapots-in-orbit-7");
    await page.getByLabel("Name of the organisation").fill("Lighthouse");
    await page.getByRole("button", { name: "Set up" }).click();
    await page.getByRole("link", { name: "Add your first host" }).click();
    // Signed in, and at the next step.
    await page.getByRole("button", { name: "Make the line" }).click();
    await expect(page.getByText("Waiting for the host.")).toBeVisible();
    await page.getByRole("link", { name: "Overview" }).click();
    await expect(page.getByRole("main").getByRole("link", { name: "Add a host" })).toBeVisible();
    // The link is used up.
    await page.goto("/setup");
    await expect(page.getByRole("button", { name: "Set up" })).toHaveCount(0);
  } finally {
    controlPlane.kill("SIGTERM");
    await ended;
    rmSync(dir, { recursive: true, force: true });
  }
});
