import { create } from "@bufbuild/protobuf";
import { Code, ConnectError, createClient, type Interceptor, type Transport } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-web";
import { useSyncExternalStore } from "react";
import { type Person, PersonSchema, SessionService } from "@/gen/fleetban/operator/v1/people_pb";

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
  if (message.data === "out" && session.state === "in") become({ state: "out", why: "elsewhere" });
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

let renewing: Promise<boolean> | undefined;

/** renew exchanges the refresh cookie for the next two; false where the session is over. Tabs take turns. */
export function renew(): Promise<boolean> {
  renewing ??= locked(async () => {
    try {
      await sessions.refresh({});
      return true;
    } catch (err) {
      if (ConnectError.from(err).code === Code.Unauthenticated) {
        if (session.state === "in") become({ state: "out", why: "ended" });
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
    if (request.stream || ConnectError.from(err).code !== Code.Unauthenticated || !(await renew())) throw err;
    return await next(request);
  }
};

/** transport carries every call of the console. */
export const transport: Transport = createConnectTransport({ baseUrl: "/", useBinaryFormat: true, interceptors: [renewed, asBrowser] });

/** ask finds out whether there is a session. */
export async function ask(): Promise<void> {
  const client = createClient(SessionService, transport);
  try {
    const { person } = await client.getMe({});
    become({ state: "in", person: person ?? create(PersonSchema) });
  } catch (err) {
    if (ConnectError.from(err).code !== Code.Unauthenticated) throw err;
    become({ state: "out", why: session.state === "in" ? "ended" : "none" });
  }
}

/** began is called when a sign-in has set the cookies. */
export function began(person: Person): void {
  become({ state: "in", person });
  tabs.postMessage("in");
}

/** signOut ends the session on every replica, and tells the other tabs. */
export async function signOut(): Promise<void> {
  await createClient(SessionService, transport).signOut({});
  become({ state: "out", why: "none" });
  tabs.postMessage("out");
}
