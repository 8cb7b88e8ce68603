import { call, expect, give, owner, signIn, signOut, test } from "./fleet";

test.describe("with a wrong password", () => {
  test.use({ allow: [/401|403/] });
  test("says so and lets one try again", async ({ page }) => {
    await page.goto("/bans");
    await give(page, { ...owner, password: "not the password" });
    await expect(page.getByRole("alert")).toContainText("e-mail address or the password is wrong");
    await page.getByLabel("Password").fill(owner.password);
    await page.getByRole("button", { name: "Sign in", exact: true }).click();
    // Where one wanted to go.
    await expect(page.getByRole("heading", { name: "Bans", level: 1 })).toBeVisible();
  });
});

test("no script can read the session", async ({ page, context }) => {
  await signIn(page);
  const cookies = (await context.cookies()).filter((c) => c.name.startsWith("__Host-fleetban"));
  expect(cookies.map((c) => c.name).sort()).toEqual(expect.arrayContaining(["__Host-fleetban-access", "__Host-fleetban-refresh"]));
  expect(cookies.every((c) => c.httpOnly && c.secure && c.sameSite === "Strict")).toBe(true);
  const reach = await page.evaluate(() => JSON.stringify({ ...localStorage, ...sessionStorage }) + document.cookie);
  for (const c of cookies) expect(reach).not.toContain(c.value);
});

test.describe("signing out", () => {
  // The other tab's stream is refused once before it knows.
  test.use({ allow: [/401/] });
  test("is noticed by another tab, and holds at each replica", async ({ page, context }) => {
    await signIn(page);
    const other = await context.newPage();
    await other.goto("/hosts");
    await expect(other.getByRole("heading", { name: "Hosts", level: 1 })).toBeVisible();
    const stolen = await context.cookies();
    await signOut(page, owner);
    await expect(other.getByText("You signed out in another tab.")).toBeVisible();
    // A copy of the cookies is worth nothing, whichever replica is asked.
    await context.addCookies(stolen);
    for (let i = 0; i < 6; i++) expect((await call(page, "SessionService/GetMe", {})).status).toBe(401);
  });
});

test("a session that is renewed goes on", async ({ page, context }) => {
  await signIn(page);
  const before = (await context.cookies()).find((c) => c.name === "__Host-fleetban-refresh")?.value;
  // As if it were about to end.
  await page.evaluate(() => localStorage.setItem("fleetban-session", "0"));
  await page.reload();
  await expect(page.getByRole("navigation", { name: "Pages" })).toBeVisible();
  const after = (await context.cookies()).find((c) => c.name === "__Host-fleetban-refresh")?.value;
  expect(after).not.toBe(before);
});
