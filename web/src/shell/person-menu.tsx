import { Keyboard, LogOut, Monitor, Moon, Sun } from "lucide-react";
import type { ReactNode } from "react";
import { signOut, useSession } from "@/api/session";
import { Menu, MenuItem, MenuLabel, MenuRule } from "@/components/menu";
import { note } from "@/components/toast";
import { languages, useText } from "@/i18n";
import { PersonButton } from "./person-button";
import { type Theme, useTheme } from "./theme";

/** PersonMenu is who one is, how the console looks, and the way out. */
export function PersonMenu({ showKeys, openAtOnce }: { showKeys: () => void; openAtOnce: boolean }) {
  const { t, choose, language } = useText();
  const session = useSession();
  const [theme, setTheme] = useTheme();
  const themes: [Theme, string, ReactNode][] = [
    ["system", t.shell.themes.system, <Monitor key="s" size={15} aria-hidden />],
    ["light", t.shell.themes.light, <Sun key="l" size={15} aria-hidden />],
    ["dark", t.shell.themes.dark, <Moon key="d" size={15} aria-hidden />],
  ];
  if (session.state !== "in") return null;
  return (
    <Menu
      openAtOnce={openAtOnce}
      trigger={<PersonButton />}
    >
      <MenuLabel>{t.shell.theme}</MenuLabel>
      {themes.map(([name, label, icon]) => (
        <MenuItem key={name} icon={icon} onSelect={() => setTheme(name)}>
          {label}
          {theme === name && <span className="ml-auto text-accent">✓</span>}
        </MenuItem>
      ))}
      <MenuRule />
      <MenuLabel>{t.shell.language}</MenuLabel>
      {Object.entries(languages).map(([code, l]) => (
        <MenuItem key={code} onSelect={() => choose(code)}>
          {l.name}
          {language === code && <span className="ml-auto text-accent">✓</span>}
        </MenuItem>
      ))}
      <MenuRule />
      <MenuItem icon={<Keyboard size={15} aria-hidden />} onSelect={showKeys}>
        {t.shell.shortcuts}
      </MenuItem>
      <MenuItem
        icon={<LogOut size={15} aria-hidden />}
        onSelect={() => {
          signOut().catch(() => note(t.shell.signOutFailed, { bad: true }));
        }}
      >
        {t.shell.signOut}
      </MenuItem>
    </Menu>
  );
}
