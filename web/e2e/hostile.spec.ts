import { call, expect, on, settled, signIn, test } from "./fleet";

// What attackers choose must be text, wherever it's shown. The title is what a script would change.
const script = "<script>document.title='owned'</script><img src=x onerror=document.title='owned'>";
const tricks = `${script}\u202eevil\u2066\u200b\u001b[31mred`;
const shownTricks = `${script}⟨U+202E⟩evil⟨U+2066⟩⟨U+200B⟩⟨U+001B⟩[31mred`;

test.describe("hostile text", () => {
  // What is refused at the door, and a host that there isn't.
  test.use({ allow: [/400|404/] });
  test("is shown as the text it is", async ({ page, person }) => {
    const attacker = await person({ userAgent: `${script} Mozilla/5.0` });
    await signIn(attacker);
    await signIn(page);
    const address = "198.51.100.230";

    // A jail's name, and what stands in the log that it reads.
    const jail = "<script>document.title=1</script><b>x";
    on("a", "sh", "-c", `printf '%b' "$1" >>/var/log/auth.log`, "sh", `Failed password for invalid user ${tricks.replaceAll("'", "")}${"A".repeat(10_000)} from ${address} port 22 ssh2\\n`);
    on("a", "fail2ban-client", "add", jail, "polling");
    on("a", "fail2ban-client", "start", jail);
    on("a", "fail2ban-client", "set", jail, "banip", address);
    // Reasons and names, as long as the API takes them; longer ones are refused.
    const long = "Ω".repeat(240);
    expect((await call(page, "BanService/Ban", { prefixes: ["198.51.100.231"], durationS: "600", reason: "A".repeat(10_000) })).status).toBe(400);
    expect((await call(page, "BanService/Ban", { prefixes: ["198.51.100.231"], durationS: "600", reason: tricks })).status).toBe(200);
    expect((await call(page, "BanService/Ban", { prefixes: ["198.51.100.232"], durationS: "600", reason: long })).status).toBe(200);
    expect((await call(page, "AllowlistService/Allow", { prefixes: ["198.51.100.233"], durationS: "600", reason: tricks })).status).toBe(200);
    expect((await call(page, "MemberService/Invite", { email: `${script}@example.com`, role: "ROLE_VIEWER" })).status).toBe(400);

    const shows = async (path: string, text: string) => {
      await page.goto(path);
      await settled(page);
      await expect(page.getByRole("main").getByText(text).first(), path).toBeVisible();
      await expect(page, path).toHaveTitle("Fleetban");
      expect(await page.locator("main script, main img").count(), path).toBe(0);
      expect(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), path).toBe(true);
    };
    await expect(async () => {
      await shows(`/address/${address}`, jail);
    }).toPass({ timeout: 20_000 });
    await shows("/hosts/a", jail);
    // What no fleet bans is listed within half a minute, by a replica that made its list a moment before.
    await expect(async () => {
      await page.goto("/bans?all=true&q=198.51.100.230");
      await settled(page);
      await expect(page.getByRole("main").getByText(jail).first()).toBeVisible({ timeout: 2_000 });
    }).toPass({ timeout: 50_000 });
    await shows("/bans?all=true&q=198.51.100.230", jail);
    await shows("/bans?q=198.51.100.231", shownTricks);
    await shows("/bans?q=198.51.100.232", "ΩΩΩΩ");
    await shows("/address/198.51.100.231", shownTricks);
    await shows("/address/198.51.100.232", "ΩΩΩΩ");
    await shows("/policy", shownTricks);
    await shows("/settings?tab=sessions", script.slice(0, 30));
    await shows("/audit?action=sign-in", "owner@example.com");
    await shows(`/bans?q=${encodeURIComponent("<script>document.title=1</script>")}`, "No ban matches.");
    await page.goto(`/hosts/${encodeURIComponent("<script>")}`);
    await settled(page);
    on("a", "fail2ban-client", "stop", jail);
    await call(page, "BanService/Unban", { prefixes: ["198.51.100.230", "198.51.100.231", "198.51.100.232"] });
    await call(page, "AllowlistService/Disallow", { prefixes: ["198.51.100.233"] });
  });

  test("in what a machine says of itself is refused at the door, or shown as text", async ({ page }) => {
    await signIn(page);
    const made = (await call(page, "JoinTokenService/CreateJoinToken", { uses: 1, durationS: "600", tags: {} })).body;
    const key = Buffer.alloc(32);
    crypto.getRandomValues(key);
    // As an agent enrols: the real API, past the agent, which sends no such thing.
    const enrol = (name: string, hostname: string) =>
      page.evaluate(
        async (body) => {
          const answer = await fetch("/fleetban.v1.AgentService/Enroll", { method: "POST", headers: { "content-type": "application/json" }, body });
          return { status: answer.status, text: await answer.text() };
        },
        JSON.stringify({ joinToken: made.secret, publicKey: key.toString("base64"), name, facts: { hostname, os: tricks, kernel: "\u001b[31m", arch: "\u202e", agentVersion: "<b>1</b>" } }),
      );
    for (const name of ["<script>x</script>", "web\u202e1", "a\u001b[31m", "A".repeat(10_000), ""]) {
      const answer = await enrol(name, "web");
      expect(answer.status, JSON.stringify(name.slice(0, 20))).toBe(400);
      expect(answer.text).toContain("name");
    }
    expect((await enrol("web-odd", "w".repeat(10_000))).status).toBe(400);
    // What a host is called by is plain; what it says of itself is its own.
    expect((await enrol("web-odd", `\u202e${script}.example`)).status).toBe(200);
    await page.goto("/hosts/web-odd");
    await settled(page);
    await expect(page.getByRole("main").getByText(`⟨U+202E⟩${script.slice(0, 50)}`)).toBeVisible();
    await expect(page).toHaveTitle("Fleetban");
    expect(await page.locator("main script, main img").count()).toBe(0);
    expect(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth)).toBe(true);
    await page.goto("/hosts");
    await expect(page.getByRole("row").filter({ hasText: "web-odd" })).toContainText("<b>1</b>");
    await call(page, "HostService/DeleteHost", { host: "web-odd" });
  });

  test("in what somebody types is refused in words", async ({ page }) => {
    await signIn(page, undefined, "/hosts/add");
    // A tag of markup, and one of signs that nobody sees.
    for (const tag of ["team=<script>", "team=a\u202eb"]) {
      await page.getByLabel("Tags").fill(tag);
      await page.getByRole("button", { name: "Make the line" }).click();
      await expect(page.getByRole("alert")).toContainText(/tag|name=value/i);
      await expect(page.getByLabel("Tags")).toHaveValue(tag);
    }
    await page.goto("/settings?tab=members");
    await page.getByRole("button", { name: "Invite…" }).click();
    const invite = page.getByRole("dialog");
    await invite.getByLabel("E-mail address").fill("a\u202eb@example.com");
    await invite.getByRole("button", { name: "Invite" }).click();
    await expect(invite.getByRole("button", { name: "Invite" })).toBeVisible();
    await expect(invite.getByLabel("The link")).toHaveCount(0);
    // A token's name is shown to everybody who may make one.
    await page.goto("/settings?tab=tokens");
    await page.getByRole("button", { name: "Make a token…" }).first().click();
    const make = page.getByRole("dialog");
    await make.getByLabel("Name").fill(`<img src=x onerror=alert(1)>\u202e`);
    await make.getByRole("button", { name: "Make a token" }).click();
    const told = make.getByRole("alert");
    await expect(told.or(make.getByLabel("The token"))).toBeVisible();
    if (await told.isVisible()) await expect(told).toContainText(/name/i);
    else {
      await page.keyboard.press("Escape");
      const row = page.getByRole("row").filter({ hasText: "<img src=x onerror=alert(1)>⟨U+202E⟩" });
      await expect(row).toBeVisible();
      await row.getByRole("button", { name: "Revoke" }).click();
    }
    expect(await page.locator("main img").count()).toBe(0);
  });
});
