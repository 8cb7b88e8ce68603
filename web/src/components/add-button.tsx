import { Link } from "@tanstack/react-router";
import { Plus } from "lucide-react";
import { useFirst } from "@/i18n";

/** AddButton leads to where hosts are added. */
export function AddButton({ small }: { small?: boolean }) {
  const { t } = useFirst();
  return (
    <Link to="/hosts/add" className={`inline-flex items-center justify-center gap-1.5 rounded-md bg-accent font-medium text-on-accent hover:opacity-90 ${small ? "min-h-7 px-2 text-[13px]" : "min-h-9 px-3"}`}>
      <Plus size={small ? 14 : 16} aria-hidden />
      {t.common.addHost}
    </Link>
  );
}
