import { useFirst } from "@/i18n";
import { exact, never, relative, useNow } from "@/lib/time";

/** Time is a relative time, with the exact one in the viewer's zone on hover and focus. */
export function Time({ ms }: { ms: bigint | number }) {
  const { t, locale } = useFirst();
  const now = useNow();
  const at = Number(ms);
  if (at === 0) return <span className="text-soft">–</span>;
  if (at >= never) return <span>{t.common.forEver}</span>;
  return (
    <time dateTime={new Date(at).toISOString()} title={exact(at, locale)} className="whitespace-nowrap">
      {relative(at, now, locale)}
    </time>
  );
}
