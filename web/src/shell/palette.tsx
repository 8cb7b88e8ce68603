import { createClient } from "@connectrpc/connect";
import { useNavigate } from "@tanstack/react-router";
import { Search } from "lucide-react";
import { Dialog as Radix } from "radix-ui";
import { type KeyboardEvent, useEffect, useId, useState } from "react";
import { transport } from "@/api/session";
import { HostService } from "@/gen/fleetban/operator/v1/operator_pb";
import { useText } from "@/i18n";
import { looksLikePrefix } from "@/lib/prefix";
import { visible } from "@/lib/visible";

interface Entry {
  key: string;
  name: string;
  hint: string;
  go: () => void;
}

const tabs = [
  ["account", "account"],
  ["sessions", "sessions"],
  ["tokens", "tokens"],
  ["members", "members"],
  ["join-tokens", "joinTokens"],
  ["organisation", "organisation"],
  ["sso", "sso"],
  ["approvals", "approvals"],
] as const;

/** Palette finds a page, a host or an address and goes there. */
export function Palette({ open, onOpenChange }: { open: boolean; onOpenChange: (open: boolean) => void }) {
  const { t } = useText();
  const navigate = useNavigate();
  const [text, setText] = useState("");
  const [chosen, setChosen] = useState(0);
  const [hosts, setHosts] = useState<string[]>([]);
  const list = useId();
  const query = text.trim();

  useEffect(() => {
    if (open) {
      setText("");
      setChosen(0);
    }
  }, [open]);
  useEffect(() => {
    if (!open || query.length < 1 || looksLikePrefix(query)) {
      setHosts([]);
      return;
    }
    const stop = new AbortController();
    const timer = setTimeout(() => {
      createClient(HostService, transport)
        .listHosts({ pageSize: 1000 }, { signal: stop.signal })
        .then((answer) => setHosts(answer.hosts.map((h) => h.name).filter((name) => name.toLowerCase().includes(query.toLowerCase())).slice(0, 8)))
        .catch(() => setHosts([]));
    }, 120);
    return () => {
      clearTimeout(timer);
      stop.abort();
    };
  }, [open, query]);

  const leave = (go: () => void) => () => {
    onOpenChange(false);
    go();
  };
  const pages: [string, () => void][] = [
    [t.pages.overview, () => void navigate({ to: "/" })],
    [t.pages.hosts, () => void navigate({ to: "/hosts" })],
    [t.common.addHost, () => void navigate({ to: "/hosts/add" })],
    [t.pages.bans, () => void navigate({ to: "/bans" })],
    [t.pages.policy, () => void navigate({ to: "/policy" })],
    [t.pages.approvals, () => void navigate({ to: "/approvals" })],
    [t.pages.audit, () => void navigate({ to: "/audit" })],
    [t.pages.settings, () => void navigate({ to: "/settings" })],
    ...tabs.map(([tab, name]): [string, () => void] => [`${t.pages.settings}: ${t.settings[name]}`, () => void navigate({ to: "/settings", search: { tab } })]),
  ];
  const entries: Entry[] = [];
  if (looksLikePrefix(query))
    entries.push({ key: "address", name: query, hint: t.palette.explain, go: () => void navigate({ to: "/address/$", params: { _splat: query } }) });
  for (const name of hosts) entries.push({ key: `host ${name}`, name: visible(name, 80), hint: t.palette.host, go: () => void navigate({ to: "/hosts/$host", params: { host: name } }) });
  for (const [name, go] of pages) if (name.toLowerCase().includes(query.toLowerCase())) entries.push({ key: name, name, hint: t.palette.page, go });
  const at = Math.min(chosen, Math.max(entries.length - 1, 0));

  const onKeyDown = (e: KeyboardEvent) => {
    const step = e.key === "ArrowDown" ? 1 : e.key === "ArrowUp" ? -1 : 0;
    if (step !== 0) {
      e.preventDefault();
      setChosen((at + step + entries.length) % Math.max(entries.length, 1));
    }
    const entry = entries[at];
    if (e.key === "Enter" && entry) {
      e.preventDefault();
      leave(entry.go)();
    }
  };
  return (
    <Radix.Root open={open} onOpenChange={onOpenChange}>
      <Radix.Portal>
        <div className="fixed inset-0 z-40 bg-shade" aria-hidden />
        <Radix.Content
          aria-describedby={undefined}
          className="fixed top-[12vh] left-1/2 z-50 w-[calc(100vw-1.5rem)] max-w-xl -translate-x-1/2 overflow-hidden rounded-xl border border-line bg-raised shadow-2xl"
        >
          <Radix.Title className="sr-only">{t.shell.search}</Radix.Title>
          <div className="flex items-center gap-2 border-b border-line px-4">
            <Search size={17} className="text-soft" aria-hidden />
            <input
              role="combobox"
              aria-expanded
              aria-controls={list}
              aria-activedescendant={entries.length > 0 ? `${list}-${at}` : undefined}
              aria-label={t.shell.search}
              placeholder={t.palette.placeholder}
              value={text}
              onChange={(e) => {
                setText(e.target.value);
                setChosen(0);
              }}
              onKeyDown={onKeyDown}
              className="min-h-12 w-full bg-transparent outline-none placeholder:text-soft"
            />
          </div>
          <ul id={list} role="listbox" aria-label={t.shell.search} className="max-h-80 overflow-y-auto p-1.5">
            {entries.map((entry, i) => (
              <li
                key={entry.key}
                id={`${list}-${i}`}
                role="option"
                aria-selected={i === at}
                onMouseMove={() => setChosen(i)}
                onClick={leave(entry.go)}
                className={`flex min-h-10 cursor-pointer items-center justify-between gap-3 rounded-md px-3 ${i === at ? "bg-accent-soft text-accent" : ""}`}
              >
                <span className="truncate">{entry.name}</span>
                <span className={`text-xs ${i === at ? "" : "text-soft"}`}>{entry.hint}</span>
              </li>
            ))}
          </ul>
          {entries.length === 0 && <p className="px-4 pb-4 text-soft">{t.palette.nothing}</p>}
        </Radix.Content>
      </Radix.Portal>
    </Radix.Root>
  );
}
