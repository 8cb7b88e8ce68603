import { create } from "@bufbuild/protobuf";
import { Code, ConnectError, createClient, type Interceptor, type Transport } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-web";
import { useSyncExternalStore } from "react";
import { proving } from "./prove";
import { type Person, PersonSchema, SessionService, type Tokens } from "@/gen/fleetban/operator/v1/people_pb";

// The two tokens of a session are in cookies that no script can read. This file only knows whether there is a session
// and whose: it asks for it, has it renewed when a call is refused, and hears when another tab ends it.

export type Session = { state: "asking" } | { state: "out"; why: "none" | "ended" | "elsewhere" } | { state: "in"; person: Person };

const listeners = new Set<() => void>();
let session: Session = { state: "asking" };
const tabs = new BroadcastChannel("fleetban-session");

function become(next: Session): void {
  session = next;
  for (const l of listeners) l();
}

tabs.onmessage = (message) => {
  // The stream may have been refused before the other tab said why.
  if (message.data === "out" && (session.state === "in" || (session.state === "out" && session.why === "ended"))) become({ state: "out", why: "elsewhere" });
  if (message.data === "in" && session.state === "out") void ask();
};

export function useSession(): Session {
  return useSyncExternalStore(
    (listener) => {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
    () => session,
  );
}

const asBrowser: Interceptor = (next) => (request) => {
  // With this header the answer's tokens leave as cookies, and only with it do cookies count: no foreign page can set it.
  request.header.set("fleetban-session", "cookie");
  return next(request);
};

const plain = createConnectTransport({ baseUrl: "/", useBinaryFormat: true, interceptors: [asBrowser] });
const sessions = createClient(SessionService, plain);

// What a script may know of the cookies: that there are some, and until when the access token is good. With it a tab
// renews before it is refused, and the first page of a stranger asks nothing.
const noteKey = "fleetban-session";
const returnKey = "fleetban-return";
/** Renewed this long before the access token ends, milliseconds. */
const early = 45_000;

function goodUntil(): number | undefined {
  try {
    const text = localStorage.getItem(noteKey);
    return text === null ? undefined : Number(text) || 0;
  } catch {
    return 0; // storage is forbidden: the control plane is asked
  }
}

function keep(tokens: Tokens | undefined): void {
  const until = Date.now() + Number(tokens?.accessS ?? 0n) * 1000;
  try {
    localStorage.setItem(noteKey, String(until));
  } catch {
    // as above
  }
  schedule(until);
}

function drop(): void {
  clearTimeout(due);
  try {
    localStorage.removeItem(noteKey);
  } catch {
    // as above
  }
}

/** expire has the next renewal not rely on what was noted. */
export function expire(): void {
  try {
    if (localStorage.getItem(noteKey) !== null) localStorage.setItem(noteKey, "0");
  } catch {
    // as above
  }
}

/** leaving notes before the browser goes to an identity provider where it is to come back to. */
export function leaving(): void {
  try {
    sessionStorage.setItem(returnKey, location.pathname + location.search);
  } catch {
    // Storage is forbidden: it comes back to the first page.
  }
}

// The control plane sends a browser here that an identity provider vouched for. The cookies are there, and nothing is noted.
if (location.hash === "#signed-in") {
  try {
    localStorage.setItem(noteKey, "0");
    history.replaceState(null, "", sessionStorage.getItem(returnKey) ?? location.pathname);
    sessionStorage.removeItem(returnKey);
  } catch {
    history.replaceState(null, "", location.pathname);
  }
}

let due: ReturnType<typeof setTimeout> | undefined;

function schedule(until: number): void {
  clearTimeout(due);
  due = setTimeout(() => void renew().catch(() => {}), Math.max(until - Date.now() - early, 1_000));
}

/** A sign-out that is under way. */
let ending: Promise<void> | undefined;
let renewing: Promise<boolean> | undefined;

/** renew exchanges the refresh cookie for the next two; false where the session is over. Tabs take turns. */
export function renew(): Promise<boolean> {
  const asked = Date.now();
  renewing ??= locked(async () => {
    // Where somebody signs out, what is refused meanwhile is no reason to ask whether the session stands.
    await ending?.catch(() => {});
    const until = goodUntil();
    if (until === undefined) {
      if (session.state === "in") become({ state: "out", why: "elsewhere" });
      return false;
    }
    if (until - early > asked) {
      schedule(until); // another tab was first
      return true;
    }
    try {
      keep((await sessions.refresh({})).tokens);
      return true;
    } catch (err) {
      if (ConnectError.from(err).code === Code.Unauthenticated) {
        drop();
        if (session.state !== "out") become({ state: "out", why: session.state === "in" ? "ended" : "none" });
        return false;
      }
      throw err;
    }
  }).finally(() => {
    renewing = undefined;
  });
  return renewing;
}

async function locked<T>(work: () => Promise<T>): Promise<T> {
  return "locks" in navigator ? navigator.locks.request("fleetban-renew", work) : work();
}

const renewed: Interceptor = (next) => async (request) => {
  try {
    return await next(request);
  } catch (err) {
    // A stream's message can't be sent twice; who watches renews by itself.
    if (request.stream || ConnectError.from(err).code !== Code.Unauthenticated) throw err;
    // Refused before its time: the role or the session changed. What the note says is worth nothing then.
    expire();
    if (!(await renew())) throw err;
    return await next(request);
  }
};

/** transport carries every call of the console. */
export const transport: Transport = createConnectTransport({ baseUrl: "/", useBinaryFormat: true, interceptors: [proving, renewed, asBrowser] });

/** ask finds out whether there is a session. */
export async function ask(): Promise<void> {
  const until = goodUntil();
  if (until === undefined) {
    become({ state: "out", why: "none" });
    return;
  }
  if (until - early < Date.now()) {
    if (!(await renew())) return;
  } else schedule(until);
  try {
    const { person } = await createClient(SessionService, transport).getMe({});
    become({ state: "in", person: person ?? create(PersonSchema) });
  } catch (err) {
    if (ConnectError.from(err).code !== Code.Unauthenticated) throw err;
    drop();
    become({ state: "out", why: session.state === "in" ? "ended" : "none" });
  }
}

/** began is called when a sign-in has set the cookies. */
export function began(person: Person, tokens: Tokens | undefined): void {
  keep(tokens);
  become({ state: "in", person });
  tabs.postMessage("in");
}

/** signOut ends the session on every replica, and tells the other tabs. */
export async function signOut(): Promise<void> {
  try {
    await end();
  } catch (err) {
    if (ConnectError.from(err).code !== Code.Unauthenticated) throw err;
    expire();
    if (await renew()) await end();
  }
}

async function end(): Promise<void> {
  ending = (async () => {
    await sessions.signOut({});
    drop();
    become({ state: "out", why: "none" });
    tabs.postMessage("out");
  })();
  try {
    await ending;
  } finally {
    ending = undefined;
  }
}
