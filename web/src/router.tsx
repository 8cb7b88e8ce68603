import { createRootRoute, createRoute, createRouter, lazyRouteComponent, Outlet } from "@tanstack/react-router";
import { Notes } from "./components/toast";
import { Shell } from "./shell/shell";

// Every filter is in the URL: a page can be reloaded, sent to somebody and gone back to.

/** text takes a bounded text from the URL, undefined where there is none. */
function text(value: unknown, max = 128): string | undefined {
  const s = typeof value === "number" ? String(value) : value;
  return typeof s === "string" && s !== "" ? s.slice(0, max) : undefined;
}

function oneOf<T extends string>(value: unknown, all: readonly T[]): T | undefined {
  return all.find((v) => v === value);
}

const root = createRootRoute({ component: Root, notFoundComponent: lazyRouteComponent(() => import("./pages/not-found"), "NotFound") });

function Root() {
  return (
    <>
      <Outlet />
      <Notes />
    </>
  );
}

// Behind the sign-in: Shell shows it in their place where nobody is signed in.
const inside = createRoute({ getParentRoute: () => root, id: "inside", component: Shell });

const overview = createRoute({
  getParentRoute: () => inside,
  path: "/",
  component: lazyRouteComponent(() => import("./pages/overview"), "Overview"),
});
const hosts = createRoute({
  getParentRoute: () => inside,
  path: "/hosts",
  validateSearch: (s: Record<string, unknown>): { q?: string; state?: "online" | "offline" | "attention" | "disabled" } => ({
    q: text(s.q),
    state: oneOf(s.state, ["online", "offline", "attention", "disabled"]),
  }),
  component: lazyRouteComponent(() => import("./pages/hosts"), "Hosts"),
});
const addHost = createRoute({
  getParentRoute: () => inside,
  path: "/hosts/add",
  component: lazyRouteComponent(() => import("./pages/add-host"), "AddHost"),
});
const host = createRoute({
  getParentRoute: () => inside,
  path: "/hosts/$host",
  component: lazyRouteComponent(() => import("./pages/host"), "HostPage"),
});
export const bansSorts = ["expires", "since", "prefix"] as const;
const bans = createRoute({
  getParentRoute: () => inside,
  path: "/bans",
  validateSearch: (
    s: Record<string, unknown>,
  ): { q?: string; jail?: string; host?: string; actor?: string; sort?: (typeof bansSorts)[number]; up?: true; all?: true } => ({
    q: text(s.q),
    jail: text(s.jail),
    host: text(s.host, 253),
    actor: text(s.actor, 254),
    sort: oneOf(s.sort, bansSorts),
    up: s.up === true ? true : undefined,
    all: s.all === true ? true : undefined,
  }),
  component: lazyRouteComponent(() => import("./pages/bans"), "Bans"),
});
const address = createRoute({
  getParentRoute: () => inside,
  path: "/address/$",
  component: lazyRouteComponent(() => import("./pages/address"), "Address"),
});
const policy = createRoute({
  getParentRoute: () => inside,
  path: "/policy",
  component: lazyRouteComponent(() => import("./pages/policy"), "Policy"),
});
const approvals = createRoute({
  getParentRoute: () => inside,
  path: "/approvals",
  validateSearch: (s: Record<string, unknown>): { id?: string } => ({ id: text(s.id, 26) }),
  component: lazyRouteComponent(() => import("./pages/approvals"), "Approvals"),
});
const audit = createRoute({
  getParentRoute: () => inside,
  path: "/audit",
  validateSearch: (s: Record<string, unknown>): { actor?: string; action?: string; target?: string } => ({
    actor: text(s.actor, 254),
    action: text(s.action, 64),
    target: text(s.target, 254),
  }),
  component: lazyRouteComponent(() => import("./pages/audit"), "Audit"),
});
const settings = createRoute({
  getParentRoute: () => inside,
  path: "/settings",
  validateSearch: (s: Record<string, unknown>): { tab?: string } => ({ tab: text(s.tab, 32) }),
  component: lazyRouteComponent(() => import("./pages/settings/index"), "Settings"),
});
const terminal = createRoute({
  getParentRoute: () => inside,
  path: "/terminal",
  component: lazyRouteComponent(() => import("./pages/terminal"), "Terminal"),
});
const invitation = createRoute({
  getParentRoute: () => root,
  path: "/invitation",
  component: lazyRouteComponent(() => import("./pages/invitation"), "Invitation"),
});
const reset = createRoute({
  getParentRoute: () => root,
  path: "/reset",
  component: lazyRouteComponent(() => import("./pages/reset"), "Reset"),
});
const confirmEmail = createRoute({
  getParentRoute: () => root,
  path: "/email",
  component: lazyRouteComponent(() => import("./pages/confirm-email"), "ConfirmEmail"),
});
const design = createRoute({
  getParentRoute: () => root,
  path: "/design",
  component: lazyRouteComponent(() => import("./pages/design"), "Design"),
});

const insideRoutes = inside.addChildren([overview, hosts, addHost, host, bans, address, policy, approvals, audit, settings, terminal]);

const pages = [insideRoutes, invitation, reset, confirmEmail];

export const router = createRouter({
  // The component page is for development only.
  routeTree: root.addChildren(__DESIGN__ ? [...pages, design] : pages),
  defaultPreload: "intent",
  scrollRestoration: true,
});

declare module "@tanstack/react-router" {
  interface Register {
    router: typeof router;
  }
}
declare global {
  const __DESIGN__: boolean;
}
