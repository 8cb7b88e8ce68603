import { useSyncExternalStore } from "react";

/** Never, as the API says it: 9999-12-31. */
export const never = 253402300799000;

const listeners = new Set<() => void>();
let now = Date.now();
let timer: ReturnType<typeof setInterval> | undefined;

function subscribe(listener: () => void): () => void {
  listeners.add(listener);
  timer ??= setInterval(() => {
    now = Date.now();
    for (const l of listeners) l();
  }, 1000);
  return () => {
    listeners.delete(listener);
    if (listeners.size === 0) {
      clearInterval(timer);
      timer = undefined;
    }
  };
}

/** useNow is one clock for all relative times of a page, in steps of a second: Unix milliseconds. */
export function useNow(): number {
  return useSyncExternalStore(subscribe, () => now);
}

/** made keeps what is costly to make, one for each language: a table asks for a hundred times at once. */
function made<T>(make: (locale: string) => T): (locale: string) => T {
  const all = new Map<string, T>();
  return (locale) => {
    let one = all.get(locale);
    if (one === undefined) all.set(locale, (one = make(locale)));
    return one;
  };
}

const relatives = made((locale) => new Intl.RelativeTimeFormat(locale, { numeric: "auto", style: "short" }));
const exacts = made(
  (locale) =>
    new Intl.DateTimeFormat(locale, {
      year: "numeric",
      month: "short",
      day: "numeric",
      hour: "2-digit",
      minute: "2-digit",
      second: "2-digit",
      timeZoneName: "short",
    }),
);
const clocks = made((locale) => new Intl.DateTimeFormat(locale, { hour: "2-digit", minute: "2-digit", second: "2-digit" }));

const steps: [Intl.RelativeTimeFormatUnit, number][] = [
  ["year", 31_536_000],
  ["month", 2_592_000],
  ["day", 86_400],
  ["hour", 3_600],
  ["minute", 60],
  ["second", 1],
];

/** relative says how far `ms` is from `from`, in the largest unit that fits, rounded: "3 min. ago", "in 24 hr.". */
export function relative(ms: number, from: number, locale: string): string {
  const seconds = Math.round((ms - from) / 1000);
  // Nearly an hour is an hour, not 60 minutes.
  // Up to two days it is hours: a ban of 24 hours ends in 24 hours, not "tomorrow".
  const [unit, size] = steps.find(([name, s]) => Math.abs(seconds) >= (name === "day" ? 2 : 1) * s * 0.995) ?? (["second", 1] as const);
  return relatives(locale).format(Math.round(seconds / size), unit);
}

/** exact is a time in the viewer's zone, to the second, with the zone's name. */
export function exact(ms: number, locale: string): string {
  return exacts(locale).format(ms);
}

/** clock is the time of day, to the second. */
export function clock(ms: number, locale: string): string {
  return clocks(locale).format(ms);
}

const lengths: [string, number][] = [
  ["day", 86_400],
  ["hour", 3_600],
  ["minute", 60],
  ["second", 1],
];

/** duration says how long `s` seconds are, exactly, in the largest unit of which they are a whole number: "90 minutes". */
export function duration(s: number, locale: string): string {
  const [unit, size] = lengths.find(([, l]) => s > 0 && s % l === 0) ?? (["second", 1] as const);
  return new Intl.NumberFormat(locale, { style: "unit", unit, unitDisplay: "long" }).format(s / size);
}

const units: Record<string, number> = { s: 1, m: 60, h: 3600, d: 86_400, w: 604_800 };

/** seconds reads a duration as the CLI does ("90m", "1h30m", "2d"): whole seconds, or undefined where it isn't one. */
export function seconds(text: string): number | undefined {
  const parts = [...text.trim().toLowerCase().matchAll(/(\d{1,9})\s*([smhdw])/g)];
  if (parts.length === 0 || parts.map((p) => p[0]).join("") !== text.trim().toLowerCase().replace(/\s+(?=\d)/g, "")) return undefined;
  return parts.reduce((sum, p) => sum + Number(p[1]) * (units[p[2] ?? ""] ?? 0), 0);
}
