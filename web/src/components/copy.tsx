import { Check, Copy } from "lucide-react";
import { useState } from "react";
import { useFirst } from "@/i18n";
import { Button } from "./button";

/** CopyLine is a line to paste elsewhere. */
export function CopyLine({ text, label }: { text: string; label: string }) {
  const { t } = useFirst();
  const [copied, setCopied] = useState(false);
  return (
    <div className="flex items-stretch gap-2">
      <pre tabIndex={0} aria-label={label} className="min-w-0 flex-1 overflow-x-auto rounded-md border border-line bg-sunken px-3 py-2 font-mono text-[13px]">
        <code>{text}</code>
      </pre>
      <Button
        icon={copied ? <Check size={15} aria-hidden /> : <Copy size={15} aria-hidden />}
        onClick={() => {
          void navigator.clipboard.writeText(text).then(() => setCopied(true));
        }}
      >
        {copied ? t.common.copied : t.common.copy}
      </Button>
      <span role="status" className="sr-only">
        {copied ? t.common.copied : ""}
      </span>
    </div>
  );
}
