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
});
