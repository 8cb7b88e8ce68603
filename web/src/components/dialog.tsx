import { X } from "lucide-react";
import { Dialog as Radix } from "radix-ui";
import type { ReactNode } from "react";
import { useFirst } from "@/i18n";
import { IconButton } from "./button";

/**
 * Dialog asks for something before it is done. Focus stays within, Escape closes it, and then returns whence it came. The
 * shade isn't Radix' own, which keeps the page still with an inline style that the content security policy refuses.
 */
export function Dialog({ open, onOpenChange, title, lead, children, wide, over }: {
  open: boolean;
  onOpenChange: (open: boolean) => void;
  title: ReactNode;
  lead?: ReactNode;
  children: ReactNode;
  wide?: boolean;
  /** It may stand before another dialog. */
  over?: boolean;
}) {
  const { t } = useFirst();
  return (
    <Radix.Root open={open} onOpenChange={onOpenChange}>
      <Radix.Portal>
        <div className={`fixed inset-0 bg-shade ${over ? "z-50" : "z-40"}`} aria-hidden />
        <Radix.Content
          aria-describedby={undefined}
          className={`fixed top-[8vh] left-1/2 z-50 flex max-h-[84vh] w-[calc(100vw-1.5rem)] -translate-x-1/2 flex-col overflow-hidden rounded-xl border border-line bg-raised shadow-2xl ${wide ? "max-w-2xl" : "max-w-lg"}`}
        >
          <div className="flex items-start justify-between gap-2 border-b border-line px-5 py-3">
            <div className="min-w-0">
              <Radix.Title className="text-base font-semibold break-words">{title}</Radix.Title>
              {lead && <p className="mt-0.5 text-soft">{lead}</p>}
            </div>
            <Radix.Close asChild>
              <IconButton label={t.common.close}>
                <X size={16} aria-hidden />
              </IconButton>
            </Radix.Close>
          </div>
          <div className="overflow-y-auto p-5">{children}</div>
        </Radix.Content>
      </Radix.Portal>
    </Radix.Root>
  );
}

/** DialogActions are a dialog's buttons, what goes on last. */
export function DialogActions({ children }: { children: ReactNode }) {
  return <div className="mt-5 flex flex-wrap justify-end gap-2">{children}</div>;
}
