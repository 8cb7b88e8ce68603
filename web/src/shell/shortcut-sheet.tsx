import { Dialog } from "@/components/dialog";
import { useText } from "@/i18n";
import { searchKey } from "./shortcuts";

/** ShortcutSheet lists what keys do. */
export function ShortcutSheet({ open, onOpenChange }: { open: boolean; onOpenChange: (open: boolean) => void }) {
  const { t } = useText();
  const rows: [string, string][] = [
    [searchKey, t.keys.search],
    ["/", t.keys.search],
    ["?", t.keys.sheet],
    ["g o", t.pages.overview],
    ["g h", t.pages.hosts],
    ["g b", t.pages.bans],
    ["g p", t.pages.policy],
    ["g v", t.pages.approvals],
    ["g a", t.pages.audit],
    ["g s", t.pages.settings],
    ["a h", t.common.addHost],
    ["Esc", t.keys.close],
  ];
  return (
    <Dialog open={open} onOpenChange={onOpenChange} title={t.shell.shortcuts}>
      <dl className="grid grid-cols-[auto_1fr] gap-x-6 gap-y-2">
        {rows.map(([keys, what]) => (
          <div key={keys} className="contents">
            <dt>
              <kbd className="rounded border border-line-strong bg-sunken px-1.5 py-0.5 font-mono text-[13px]">{keys}</kbd>
            </dt>
            <dd>{what}</dd>
          </div>
        ))}
      </dl>
    </Dialog>
  );
}
