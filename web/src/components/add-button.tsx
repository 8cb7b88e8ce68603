import { Link } from "@tanstack/react-router";
import { Plus } from "lucide-react";
import { useFirst } from "@/i18n";

/** AddButton leads to where hosts are added. */
export function AddButton() {
  const { t } = useFirst();
  return (
    <Link to="/hosts/add" className="inline-flex min-h-9 items-center gap-1.5 rounded-md bg-accent px-3 font-medium text-on-accent hover:opacity-90">
      <Plus size={16} aria-hidden />
      {t.common.addHost}
    </Link>
  );
}
