import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { useEffect, useSyncExternalStore } from "react";
import { type FleetEvent, FleetService } from "@/gen/fleetban/operator/v1/operator_pb";
import { newer } from "@/lib/event-id";
import { expire, renew, transport } from "./session";

// One stream of events for the whole console. It resumes after the last event it saw, from whichever replica answers.

/** How many events are held: what a feed can show, whatever comes in. */
export const held = 400;
/** How many of the newest events a feed begins with: a page that is opened isn't empty until something happens. */
const recent = 60;
/** Events are handed on in batches, at most this often, so that hundreds a second cost few renderings. Milliseconds. */
const batchEvery = 250;
const backoffFirst = 500;
const backoffMost = 15_000;

export interface Live {
  /** Newest first. */
  events: readonly FleetEvent[];
  /** Undefined while the stream stands, else since when it doesn't: Unix milliseconds. */
  brokenSince: number | undefined;
  /** More was missed than the control plane keeps. */
  gap: boolean;
}

const listeners = new Set<() => void>();
const eventListeners = new Set<(events: readonly FleetEvent[]) => void>();
let live: Live = { events: [], brokenSince: undefined, gap: false };
let waiting: FleetEvent[] = [];
let flushing: ReturnType<typeof setTimeout> | undefined;
/** The last event before the stream began: what is new comes after it. */
let began = "0-0";
let stop: AbortController | undefined;

function set(next: Partial<Live>): void {
  live = { ...live, ...next };
  for (const l of listeners) l();
}

function flush(): void {
  flushing = undefined;
  const batch = waiting;
  waiting = [];
  set({ events: [...batch.toReversed(), ...live.events].slice(0, held) });
  const news = batch.filter((e) => newer(e.id, began));
  if (news.length > 0) for (const l of eventListeners) l(news);
}

function take(event: FleetEvent): void {
  waiting.push(event);
  // What a stream throws at a tab in the background is not all kept.
  if (waiting.length > 4 * held) waiting.splice(0, waiting.length - held);
  flushing ??= setTimeout(flush, batchEvery);
}

async function run(signal: AbortSignal): Promise<void> {
  const client = createClient(FleetService, transport);
  let after = "";
  let wait = backoffFirst;
  while (!signal.aborted) {
    try {
      for await (const message of client.watch({ after, recent }, { signal, onHeader: (header) => {
        // Where the stream begins: one that breaks before its first event misses none either.
        if (after === "") after = began = header.get("fleetban-after") ?? began;
        wait = backoffFirst;
        if (live.brokenSince !== undefined) set({ brokenSince: undefined });
      } })) {
        if (message.gap) set({ gap: true });
        if (message.event) {
          after = message.event.id;
          take(message.event);
        }
      }
    } catch (err) {
      if (signal.aborted) return;
      const code = ConnectError.from(err).code;
      if (code === Code.Unauthenticated) {
        expire();
        const stands = await renew().catch(() => true);
        if (!stands) return;
        if (wait === backoffFirst) {
          wait *= 2;
          continue;
        }
      }
      if (code === Code.PermissionDenied) return;
    }
    if (signal.aborted) return;
    if (live.brokenSince === undefined) set({ brokenSince: Date.now() });
    await new Promise((resume) => {
      const timer = setTimeout(resume, wait * (0.5 + Math.random()));
      signal.addEventListener("abort", () => {
        clearTimeout(timer);
        resume(undefined);
      }, { once: true });
      // A laptop that wakes up, a network that is back: at once.
      window.addEventListener("online", resume, { once: true });
    });
    wait = Math.min(2 * wait, backoffMost);
  }
}

/** watch begins the stream; the function it returns ends it and forgets what was seen: another person may sign in. */
export function watch(): () => void {
  stop?.abort();
  const mine = new AbortController();
  stop = mine;
  void run(mine.signal);
  return () => {
    mine.abort();
    clearTimeout(flushing);
    flushing = undefined;
    waiting = [];
    set({ events: [], brokenSince: undefined, gap: false });
  };
}

export function useLive(): Live {
  return useSyncExternalStore(
    (listener) => {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
    () => live,
  );
}

/** useEvents calls back with each batch of what is new. */
export function useEvents(take: (events: readonly FleetEvent[]) => void): void {
  useEffect(() => {
    eventListeners.add(take);
    return () => {
      eventListeners.delete(take);
    };
  }, [take]);
}
