import { UserRound } from "lucide-react";
import type { ComponentProps } from "react";
import { useSession } from "@/api/session";
import { useFirst } from "@/i18n";

/** PersonButton is who one is; it opens their menu, which comes after the first screen. */
export function PersonButton(props: ComponentProps<"button">) {
  const { t } = useFirst();
  const session = useSession();
  if (session.state !== "in") return null;
  return (
    <button type="button" aria-haspopup="menu" {...props} className="flex min-h-10 w-full items-center gap-2 rounded-md px-2.5 text-left hover:bg-sunken">
      <UserRound size={16} aria-hidden className="shrink-0 text-soft" />
      <span className="min-w-0">
        <span className="block truncate">{session.person.email}</span>
        <span className="block text-xs text-soft">{t.roles[session.person.role]}</span>
      </span>
    </button>
  );
}
