import type { Approval } from "@/gen/fleetban/operator/v1/approvals_pb";
import type { Rest } from "@/i18n/en/rest";
import { duration } from "./time";
import { visible } from "./visible";

type Asked = Pick<Approval, "action" | "procedure" | "targets" | "targetsTotal" | "details">;

/** What an approval would do, in one sentence; each action that may wait has its own, and one of a later release its name. */
export function whatOf(a: Asked, t: Rest["approvals"]["what"], locale: string): string {
  const seconds = Number(a.details.duration_s ?? 0);
  const time = Number.isSafeInteger(seconds) && seconds > 0 ? duration(seconds, locale) : "";
  const n = a.targetsTotal;
  switch (a.action) {
    case "ban":
      return t.ban(n, time, visible(a.details.tag ?? "", 121));
    case "allow":
      return t.allow(n, time);
    case "disallow":
      return t.disallow(n);
    case "pause":
      return t.pause(time);
    case "mode":
      return a.details.mode === "watch" ? t.watch : a.details.mode === "enforce" ? t.enforce : t.other("mode");
    case "approval.policy":
      return a.details.required === "true" ? t.policy(a.details.widest_ipv4_bits ?? "24", a.details.widest_ipv6_bits ?? "64", a.details.most_prefixes ?? "100") : t.noPolicy;
    default:
      return t.other(visible(a.action || a.procedure, 80));
  }
}
