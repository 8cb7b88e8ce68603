import { useQuery } from "@connectrpc/connect-query";
import { Link, Outlet, useNavigate } from "@tanstack/react-router";
import { Activity, Ban, CheckCheck, Menu as MenuIcon, ScrollText, Search, Server, Settings, ShieldCheck } from "lucide-react";
import { lazy, type ReactNode, Suspense, useEffect, useState } from "react";
import { refresh } from "@/api/fresh";
import { useEvents, useLive, watch } from "@/api/live";
import { onProof } from "@/api/prove";
import { useSession } from "@/api/session";
import { Button, IconButton } from "@/components/button";
import { Time } from "@/components/time";
import { FleetService } from "@/gen/fleetban/operator/v1/operator_pb";
import { useFirst } from "@/i18n";
import { asked, later } from "@/lib/later";
import { useNow } from "@/lib/time";
import { PersonButton } from "./person-button";
import { searchKey, useShortcuts } from "./shortcuts";

// What the first screen doesn't need comes after it.
const SignIn = lazy(() => import("@/pages/sign-in").then((m) => ({ default: m.SignIn })));
const MustEnrol = lazy(() => import("@/pages/must-enrol").then((m) => ({ default: m.MustEnrol })));
const PersonMenu = lazy(later(() => import("./person-menu").then((m) => ({ default: m.PersonMenu }))));
const ApprovalsBadge = lazy(later(() => import("./approvals-badge").then((m) => ({ default: m.ApprovalsBadge }))));
const loadPalette = asked(() => import("./palette").then((m) => ({ default: m.Palette })));
const Palette = lazy(loadPalette);
const ProveDialog = lazy(asked(() => import("./prove-dialog").then((m) => ({ default: m.ProveDialog }))));
const ShortcutSheet = lazy(asked(() => import("./shortcut-sheet").then((m) => ({ default: m.ShortcutSheet }))));

const places = [
  { to: "/", icon: Activity, name: "overview" },
  { to: "/hosts", icon: Server, name: "hosts" },
  { to: "/bans", icon: Ban, name: "bans" },
  { to: "/policy", icon: ShieldCheck, name: "policy" },
  { to: "/approvals", icon: CheckCheck, name: "approvals" },
  { to: "/audit", icon: ScrollText, name: "audit" },
  { to: "/settings", icon: Settings, name: "settings" },
] as const;

/** Shell is what stands around every page; where nobody is signed in, the sign-in stands in its place. */
export function Shell() {
  const session = useSession();
  if (session.state === "asking") return <div aria-busy className="min-h-dvh" />;
  if (session.state === "out")
    return (
      <Suspense fallback={<div aria-busy className="min-h-dvh" />}>
        <SignIn why={session.why} />
      </Suspense>
    );
  if (session.person.mustEnrolSecondFactor)
    return (
      <Suspense fallback={<div aria-busy className="min-h-dvh" />}>
        <MustEnrol />
        <Proofs />
      </Suspense>
    );
  return <Inside key={session.person.id + session.person.organisationId} />;
}

function Inside() {
  const { t } = useFirst();
  const [palette, setPalette] = useState(false);
  const [sheet, setSheet] = useState(false);
  const [nav, setNav] = useState(false);
  const [pressed, setPressed] = useState(false);
  const navigate = useNavigate();
  useEffect(() => watch(), []);
  useEvents(refresh);
  // Whoever presses ⌘K types at once: it must be there by then.
  useEffect(() => {
    void later(loadPalette)().catch(() => {});
  }, []);
  useShortcuts({
    "mod+k": () => setPalette(true),
    "/": () => setPalette(true),
    "?": () => setSheet(true),
    "g o": () => void navigate({ to: "/" }),
    "g h": () => void navigate({ to: "/hosts" }),
    "g b": () => void navigate({ to: "/bans" }),
    "g p": () => void navigate({ to: "/policy" }),
    "g v": () => void navigate({ to: "/approvals" }),
    "g a": () => void navigate({ to: "/audit" }),
    "g s": () => void navigate({ to: "/settings" }),
    "a h": () => void navigate({ to: "/hosts/add" }),
  });
  return (
    <div className="flex min-h-dvh flex-col md:flex-row">
      <a href="#main" className="sr-only focus:not-sr-only focus:absolute focus:z-50 focus:bg-surface focus:p-2">
        {t.shell.skip}
      </a>
      <aside className="shrink-0 border-line bg-surface max-md:border-b md:sticky md:top-0 md:flex md:h-dvh md:w-56 md:flex-col md:border-r">
        <div className="flex items-center justify-between gap-2 px-3 py-2 md:py-3">
          <Link to="/" className="flex items-center gap-2 rounded-md px-1 py-1 font-semibold">
            <img src="/icon.svg" alt="" width={24} height={24} />
            Fleetban
          </Link>
          <div className="flex md:hidden">
            <IconButton label={t.shell.search} onClick={() => setPalette(true)}>
              <Search size={18} aria-hidden />
            </IconButton>
            <IconButton label={t.shell.menu} aria-expanded={nav} aria-controls="navigation" onClick={() => setNav(!nav)}>
              <MenuIcon size={18} aria-hidden />
            </IconButton>
          </div>
        </div>
        <div id="navigation" className={`${nav ? "flex" : "hidden"} flex-1 flex-col gap-3 px-3 pb-3 md:flex`}>
          <Button className="hidden w-full !justify-between md:inline-flex" onClick={() => setPalette(true)}>
            <span className="flex items-center gap-2 text-soft">
              <Search size={15} aria-hidden />
              {t.shell.search}
            </span>
            <kbd className="text-xs text-soft">{searchKey}</kbd>
          </Button>
          <nav aria-label={t.shell.navigation} className="flex flex-col gap-0.5">
            {places.map(({ to, icon: Icon, name }) => (
              <Link
                key={to}
                to={to}
                activeOptions={{ exact: to === "/" }}
                onClick={() => setNav(false)}
                className="flex min-h-9 items-center gap-2.5 rounded-md px-2.5 text-soft hover:bg-sunken hover:text-text aria-[current=page]:bg-accent-soft aria-[current=page]:font-medium aria-[current=page]:text-accent"
              >
                <Icon size={16} aria-hidden />
                {t.pages[name]}
                {name === "approvals" && (
                  <Suspense>
                    <ApprovalsBadge />
                  </Suspense>
                )}
              </Link>
            ))}
          </nav>
          <div className="mt-auto flex flex-col gap-2">
            <LiveState />
            <Suspense fallback={<PersonButton onClick={() => setPressed(true)} />}>
              <PersonMenu openAtOnce={pressed} showKeys={() => setSheet(true)} />
            </Suspense>
          </div>
        </div>
      </aside>
      <main id="main" className="min-w-0 flex-1">
        <Banners />
        <Outlet />
      </main>
      <Suspense>
        {palette && <Palette open onOpenChange={setPalette} />}
        {sheet && <ShortcutSheet open onOpenChange={setSheet} />}
        <Proofs />
      </Suspense>
    </div>
  );
}

/** Proofs asks who they are where a call needs it; what asked may be a dialog itself. */
function Proofs() {
  const [asked, setAsked] = useState<{ done: (proved: boolean) => void }>();
  useEffect(() => onProof(() => new Promise((done) => setAsked({ done }))), []);
  if (!asked) return null;
  return (
    <Suspense>
      <ProveDialog
        done={(proved) => {
          setAsked(undefined);
          asked.done(proved);
        }}
      />
    </Suspense>
  );
}

function LiveState() {
  const { t } = useFirst();
  const live = useLive();
  const ok = live.brokenSince === undefined;
  return (
    <p className="flex items-center gap-2 px-2.5 text-[13px] text-soft">
      <span className={`size-2 rounded-full ${ok ? "bg-ok" : "bg-warn"}`} aria-hidden />
      {ok ? t.shell.live : t.shell.notLive}
    </p>
  );
}

function Banner({ tone, children }: { tone: "warn" | "info"; children: ReactNode }) {
  return (
    <div role="status" className={`border-b border-line px-4 py-2 sm:px-6 ${tone === "warn" ? "bg-warn-soft text-warn" : "bg-accent-soft text-accent"}`}>
      {children}
    </div>
  );
}

function Banners() {
  const { t } = useFirst();
  const live = useLive();
  const now = useNow();
  const fleet = useQuery(FleetService.method.getFleet, {}, { refetchInterval: 15_000 });
  const f = fleet.data;
  return (
    <>
      {live.brokenSince !== undefined && now - live.brokenSince > 1_500 && (
        <Banner tone="warn">
          {t.shell.brokenSince} <Time ms={live.brokenSince} />. {t.shell.brokenMeans}
        </Banner>
      )}
      {f && f.pausedUntilUnixMs > now && (
        <Banner tone="warn">
          {t.shell.paused} <Time ms={f.pausedUntilUnixMs} />. <Link to="/policy" className="underline">{t.pages.policy}</Link>
        </Banner>
      )}
      {f && f.rebuildUntilUnixMs > now && <Banner tone="warn">{t.shell.rebuilding}</Banner>}
      {live.gap && <Banner tone="info">{t.shell.gap}</Banner>}
    </>
  );
}
