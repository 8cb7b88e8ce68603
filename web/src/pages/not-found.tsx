import { Link } from "@tanstack/react-router";
import { useText } from "@/i18n";
import { Plain } from "@/components/plain";

export function NotFound() {
  const { t } = useText();
  return (
    <Plain title={t.notFound.title} lead={t.notFound.lead}>
      <Link to="/" className="text-accent underline">
        {t.notFound.back}
      </Link>
    </Plain>
  );
}
