import { useEffect, useState } from "react";

export type Theme = "system" | "light" | "dark";

const key = "fleetban-theme";
const dark = window.matchMedia("(prefers-color-scheme: dark)");

function stored(): Theme {
  try {
    const value = localStorage.getItem(key);
    return value === "light" || value === "dark" ? value : "system";
  } catch {
    return "system";
  }
}

/** useTheme is the chosen theme and how to choose another. theme.js applies it before the first paint. */
export function useTheme(): [Theme, (theme: Theme) => void] {
  const [theme, setTheme] = useState(stored);
  useEffect(() => {
    const apply = () => {
      document.documentElement.dataset.theme = theme === "dark" || (theme === "system" && dark.matches) ? "dark" : "light";
    };
    apply();
    dark.addEventListener("change", apply);
    return () => dark.removeEventListener("change", apply);
  }, [theme]);
  return [
    theme,
    (next) => {
      try {
        localStorage.setItem(key, next);
      } catch {
        // Storage is forbidden: the choice lasts as long as the page.
      }
      setTheme(next);
    },
  ];
}
