import { createContext, type ReactNode, useContext, useEffect, useMemo, useState } from "react";
import { en, type Messages } from "./en";

// A language is a file beside this one with the same messages as en.ts; the compiler tells what is missing.

export const languages: Record<string, { name: string; load: () => Promise<Messages> }> = {
  en: { name: "English", load: () => Promise.resolve(en) },
  de: { name: "Deutsch", load: () => import("./de").then((m) => m.de) },
};

interface Text {
  t: Messages;
  language: string;
  /** For numbers and times: the viewer's own region where it is of the language. */
  locale: string;
  choose: (language: string) => void;
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

const Context = createContext<Text>({ t: en, language: "en", locale: "en", choose: () => {} });

export function TextProvider({ children }: { children: ReactNode }) {
  const [language, setLanguage] = useState(preferred);
  const [t, setT] = useState<Messages | undefined>(language === "en" ? en : undefined);
  useEffect(() => {
    let current = true;
    void languages[language]?.load().then((messages) => {
      if (current) setT(messages);
    });
    document.documentElement.lang = language;
    return () => {
      current = false;
    };
  }, [language]);
  const value = useMemo(
    () => ({
      t: t ?? en,
      language,
      locale: navigator.languages.find((l) => l.split("-")[0] === language) ?? language,
      choose: (next: string) => {
        try {
          localStorage.setItem(key, next);
        } catch {
          // as above
        }
        setLanguage(next);
      },
    }),
    [t, language],
  );
  if (!t) return null; // the first paint is in the viewer's language
  return <Context.Provider value={value}>{children}</Context.Provider>;
}

export function useText(): Text {
  return useContext(Context);
}

/** useNumber formats numbers in the viewer's format. */
export function useNumber(): (n: number | bigint) => string {
  const { locale } = useText();
  const format = useMemo(() => new Intl.NumberFormat(locale), [locale]);
  return (n) => format.format(n);
}
