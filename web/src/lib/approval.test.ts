import { expect, test } from "vitest";
import { rest as de } from "@/i18n/de/rest";
import { rest as en } from "@/i18n/en/rest";
import { whatOf } from "./approval";

const asked = (action: string, details: Record<string, string>, targetsTotal = 0) => ({ action, procedure: "X/Y", targets: [], targetsTotal, details });

test("each action that may wait has a sentence with what it is about", () => {
  expect(whatOf(asked("ban", { duration_s: "86400", tag: "team=web" }, 2), en.approvals.what, "en")).toBe("Ban 2 prefixes on the hosts with team=web for 1 day");
  expect(whatOf(asked("ban", { duration_s: "5400" }, 1), en.approvals.what, "en")).toBe("Ban one prefix on every host for 90 minutes");
  expect(whatOf(asked("allow", {}, 1), en.approvals.what, "en")).toBe("Never ban one prefix, for ever");
  expect(whatOf(asked("mode", { mode: "watch" }), de.approvals.what, "de")).toBe("Nur beobachten: nichts mehr auf allen Hosts sperren");
  expect(whatOf(asked("approval.policy", {}), en.approvals.what, "en")).toBe("No longer ask for a second person");
});

test("what a later release asks for, and hostile text, are shown as what they are", () => {
  expect(whatOf(asked("host.\u202edelete", {}), en.approvals.what, "en")).toBe("host.⟨U+202E⟩delete");
  expect(whatOf(asked("pause", { duration_s: "nonsense" }), en.approvals.what, "en")).toBe("Stop enforcing on every host");
});
