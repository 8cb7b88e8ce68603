import type { ComponentProps, ReactNode } from "react";

type Kind = "primary" | "plain" | "danger" | "ghost";

const looks: Record<Kind, string> = {
  primary: "bg-accent text-on-accent border-accent hover:opacity-90",
  plain: "bg-surface text-text border-line-strong hover:bg-sunken",
  danger: "bg-surface text-bad border-bad hover:bg-bad-soft",
  ghost: "bg-transparent text-text border-transparent hover:bg-sunken",
};

export interface ButtonProps extends ComponentProps<"button"> {
  kind?: Kind;
  small?: boolean;
  busy?: boolean;
  icon?: ReactNode;
}

/** Button does something. Busy, it says so to those who can't see it and takes no second press. */
export function Button({ kind = "plain", small, busy, icon, children, className = "", disabled, type = "button", ...rest }: ButtonProps) {
  const size = small ? "min-h-7 px-2 text-[13px] gap-1" : "min-h-9 px-3 gap-1.5";
  return (
    <button
      type={type}
      disabled={disabled || busy}
      aria-busy={busy || undefined}
      className={`inline-flex items-center justify-center rounded-md border font-medium whitespace-nowrap transition-colors disabled:opacity-55 ${size} ${looks[kind]} ${className}`}
      {...rest}
    >
      {icon}
      {children}
    </button>
  );
}

export interface IconButtonProps extends Omit<ComponentProps<"button">, "aria-label"> {
  label: string;
}

/** IconButton is a button that shows a symbol only; label is what it is called. At least 24 px, as WCAG 2.2 asks. */
export function IconButton({ label, className = "", type = "button", ...rest }: IconButtonProps) {
  return (
    <button
      type={type}
      aria-label={label}
      title={label}
      className={`inline-flex size-8 shrink-0 items-center justify-center rounded-md text-soft hover:bg-sunken hover:text-text disabled:opacity-55 ${className}`}
      {...rest}
    />
  );
}
