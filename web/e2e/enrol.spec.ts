import { attack, expect, on, owner, settled, signIn, startAgent, test } from "./fleet";

// A newcomer's evening, by what the console says and nothing else.
test("a host is enrolled with the displayed line; an address is found, explained, lifted everywhere, and who did it is read", async ({ page }) => {
  await signIn(page);
  await page.getByRole("link", { name: "Hosts", exact: true }).first().click();
  await page.getByRole("link", { name: "Add a host" }).click();
  await page.getByRole("button", { name: "Make the line" }).click();
  const region = page.getByRole("region", { name: "Paste this on the host, as root" });
  const line = (await region.getByLabel("Paste this on the host, as root").textContent()) ?? "";
  const token = (await region.getByLabel("It asks for this token").textContent()) ?? "";
  expect(line).not.toContain(token);
  await expect(page.getByText("Waiting for the host.")).toBeVisible();

  // Pasted on the host as it stands there. The installer asks for the token at a terminal, or takes it from here.
  const said = on("d", "env", `FLEETBAN_JOIN_TOKEN=${token}`, "sh", "-c", line.replaceAll("sudo ", ""));
  // There is no systemd in the lab: what the installer says must be done is done.
  for (const [, command = ""] of said.matchAll(/^\s*(install -d .*)$/gm)) on("d", "sh", "-c", command);
  startAgent("d");
  const arrivals = page.getByRole("region", { name: /^Arrived:/ });
  await expect(arrivals.getByRole("link", { name: "d", exact: true })).toBeVisible({ timeout: 30_000 });
  await expect(arrivals.getByText("Online")).toBeVisible({ timeout: 30_000 });
  await arrivals.getByRole("link", { name: "d", exact: true }).click();
  await expect(page.getByRole("heading", { name: "d", level: 1 })).toBeVisible();
  await expect(page.getByRole("table", { name: "Jails" }).getByRole("row").filter({ hasText: "sshd" })).toBeVisible();

  const address = attack("d", 1);
  // Somebody calls: "I am …, and I can't log in."
  await page.keyboard.press("Control+k");
  await page.getByRole("combobox").fill(address);
  await page.getByRole("option").filter({ hasText: address }).first().click();
  await expect(page.getByText("Banned on the fleet")).toBeVisible({ timeout: 30_000 });
  const why = page.getByRole("table", { name: "Why it is banned" });
  await expect(why.getByRole("link", { name: "d", exact: true })).toBeVisible();
  await expect(why.getByRole("link", { name: "sshd" })).toBeVisible();
  await expect(page.getByText("enforced by 4 of 4")).toBeVisible({ timeout: 30_000 });
  expect(on("d", "fail2ban-client", "status", "sshd")).toContain(address);

  await page.getByRole("button", { name: "Unban everywhere…" }).click();
  await page.getByRole("dialog").getByRole("button", { name: "Unban", exact: true }).click();
  await expect(page.getByText("Not banned")).toBeVisible();
  await expect.poll(() => on("b", "nft", "list", "ruleset").includes(address)).toBe(false);
  await expect.poll(() => on("d", "fail2ban-client", "status", "sshd").includes(address)).toBe(false);

  await page.getByRole("link", { name: "Audit" }).click();
  await settled(page);
  const entry = page.getByRole("table", { name: "Audit" }).getByRole("row").filter({ hasText: address }).first();
  await expect(entry).toContainText(owner.email);
  await expect(entry).toContainText(/unban/i);
});
