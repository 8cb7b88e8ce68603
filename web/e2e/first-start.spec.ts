import AxeBuilder from "@axe-core/playwright";
import { alone } from "./alone";
import { expect, test } from "./fleet";

test("the first start: the link that was printed leads to an owner, and on to the first host", async ({ person }) => {
  await alone(async (url, link) => {
    const page = await person({ ignoreHTTPSErrors: true, baseURL: url });
    await page.goto(link);
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
  });
});
