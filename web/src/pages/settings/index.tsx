import { getRouteApi, useNavigate } from "@tanstack/react-router";
import { Tabs } from "radix-ui";
import { type ReactNode, useEffect, useRef } from "react";
import { useMay } from "@/api/may";
import { useSession } from "@/api/session";
import { Page } from "@/components/panel";
import { useText } from "@/i18n";
import { Account } from "./account";
import { ApprovalPolicy } from "./approvals";
import { JoinTokens } from "./join-tokens";
import { Members } from "./members";
import { Organisation } from "./organisation";
import { Sso } from "./sso";
import { Sessions } from "./sessions";
import { Tokens } from "./tokens";

const route = getRouteApi("/inside/settings");

/** Settings is about oneself, and about the organisation for those who may. */
export function Settings() {
  const { t } = useText();
  const may = useMay();
  const session = useSession();
  const { tab } = route.useSearch();
  const navigate = useNavigate({ from: "/settings" });
  const tabs: [string, string, ReactNode][] = [
    ["account", t.settings.account, <Account key="account" />],
    ["sessions", t.settings.sessions, <Sessions key="sessions" />],
    ["tokens", t.settings.tokens, <Tokens key="tokens" />],
    ["members", t.settings.members, <Members key="members" />],
  ];
  if (may("hosts")) tabs.push(["join-tokens", t.settings.joinTokens, <JoinTokens key="join" />]);
  tabs.push(["organisation", t.settings.organisation, <Organisation key="organisation" />]);
  if (may("members")) tabs.push(["sso", t.settings.sso, <Sso key="sso" />]);
  // What is about the whole organisation isn't for who sees a part of it.
  if (session.state === "in" && session.person.tags.length === 0) tabs.push(["approvals", t.settings.approvals, <ApprovalPolicy key="approvals" />]);
  const current = tabs.some(([id]) => id === tab) ? (tab ?? "account") : "account";
  const list = useRef<HTMLDivElement>(null);
  // On a narrow screen the tabs are a strip, and the chosen one may be beside it.
  useEffect(() => {
    list.current?.querySelector('[aria-selected="true"]')?.scrollIntoView({ block: "nearest", inline: "center" });
  }, [current]);
  return (
    <Page title={t.pages.settings}>
      <Tabs.Root value={current} onValueChange={(value) => void navigate({ search: { tab: value } })} className="flex flex-col gap-4">
        <Tabs.List ref={list} aria-label={t.pages.settings} className="sideways flex gap-1 overflow-x-auto border-b border-line [--behind:var(--ground)]">
          {tabs.map(([id, name]) => (
            <Tabs.Trigger
              key={id}
              value={id}
              className="-mb-px min-h-10 border-b-2 border-transparent px-3 whitespace-nowrap text-soft hover:text-text data-[state=active]:border-accent data-[state=active]:font-medium data-[state=active]:text-text"
            >
              {name}
            </Tabs.Trigger>
          ))}
        </Tabs.List>
        {tabs.map(([id, , page]) => (
          <Tabs.Content key={id} value={id} className="flex flex-col gap-4">
            {id === current && page}
          </Tabs.Content>
        ))}
      </Tabs.Root>
    </Page>
  );
}
