import { createContext, type ReactNode, use, useContext, useEffect, useMemo, useState } from "react";
import { asked, later } from "@/lib/later";
import { type First, first } from "./en/first";
import type { Rest } from "./en/rest";

// A language is a folder beside this file with the messages of en's; the compiler tells what is missing. What the first
// screen says is a file of its own, so that the rest comes after it.

interface Language {
  name: string;
  first: () => Promise<First>;
  rest: () => Promise<Rest>;
}

const en: Language = { name: "English", first: () => Promise.resolve(first), rest: asked(() => import("./en/rest").then((m) => m.rest)) };

export const languages: Record<string, Language> = {
  en,
  de: { name: "Deutsch", first: () => import("./de/first").then((m) => m.first), rest: asked(() => import("./de/rest").then((m) => m.rest)) },
};

interface Shared {
  language: string;
  /** For numbers and times: the viewer's own region where it is of the language. */
  locale: string;
  choose: (language: string) => void;
}

interface Loaded extends Shared {
  t: First;
  rest: () => Promise<Rest>;
}

const key = "fleetban-language";

function preferred(): string {
  const stored = read();
  if (stored && languages[stored]) return stored;
  return navigator.languages.map((l) => l.split("-")[0] ?? "").find((l) => languages[l]) ?? "en";
}

function read(): string | null {
  try {
    return localStorage.getItem(key);
  } catch {
    return null; // storage is forbidden: the choice lasts as long as the page
  }
}

const loading: Record<string, Promise<Rest>> = {};

/** restOf loads what a language says beyond the first screen, once; what failed is tried again. */
function restOf(language: string): Promise<Rest> {
  const { rest } = languages[language] ?? en;
  return (loading[language] ??= rest().catch((err: unknown) => {
    delete loading[language];
    throw err;
  }));
}

/** readAhead is for before anybody asks: at once on a page where somebody will, else after the first screen. */
function readAhead(language: string): () => Promise<Rest> {
  const load = () => restOf(language);
  return location.pathname === "/" ? later(load) : load;
}

const Context = createContext<Loaded>({ t: first, language: "en", locale: "en", choose: () => {}, rest: () => restOf("en") });

export function TextProvider({ children }: { children: ReactNode }) {
  const [wanted, setWanted] = useState(preferred);
  const [now, setNow] = useState<{ language: string; t: First } | undefined>(wanted === "en" ? { language: "en", t: first } : undefined);
  useEffect(() => {
    let current = true;
    const both = Promise.all([languages[wanted]?.first() ?? first, now && now.language !== wanted ? restOf(wanted) : undefined]);
    both.then(
      ([t]) => {
        if (!current) return;
        document.documentElement.lang = wanted;
        setNow({ language: wanted, t });
      },
      () => {
        if (current) setNow((old) => old ?? { language: "en", t: first });
      },
    );
    return () => {
      current = false;
    };
    // Only what is wanted decides: that there is something already is looked at once.
  }, [wanted]);
  useEffect(() => {
    void readAhead(wanted)().catch(() => {});
  }, [wanted]);
  const value = useMemo(
    () =>
      now && {
        t: now.t,
        language: now.language,
        locale: navigator.languages.find((l) => l.split("-")[0] === now.language) ?? now.language,
        choose: (next: string) => {
          try {
            localStorage.setItem(key, next);
          } catch {
            // as above
          }
          setWanted(next);
        },
        rest: () => restOf(now.language),
      },
    [now],
  );
  if (!value) return null; // the first paint is in the viewer's language
  return <Context.Provider value={value}>{children}</Context.Provider>;
}

/** useFirst is the text of the first screen, and of what stands around every page. */
export function useFirst(): Shared & { t: First } {
  return useContext(Context);
}

/** useText is all text. A component that uses it waits until it is there: within a Suspense, as every page is. */
export function useText(): Shared & { t: First & Rest } {
  const { t, rest, ...shared } = useContext(Context);
  const more = use(rest());
  return { ...shared, t: useMemo(() => ({ ...t, ...more }), [t, more]) };
}

/** useNumber formats numbers in the viewer's format. */
export function useNumber(): (n: number | bigint) => string {
  const { locale } = useFirst();
  return useMemo(() => {
    const format = new Intl.NumberFormat(locale);
    return (n) => format.format(n);
  }, [locale]);
}
