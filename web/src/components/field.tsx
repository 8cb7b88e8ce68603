import { type ComponentProps, type ReactNode, useId } from "react";

const box = "w-full rounded-md border border-line-strong bg-surface px-2.5 text-text placeholder:text-soft aria-invalid:border-bad";

interface Labelled {
  label: ReactNode;
  hint?: ReactNode;
  error?: ReactNode;
  /** The label is for screen readers only, where the place says it to those who see. */
  quiet?: boolean;
}

function Frame({ id, label, hint, error, quiet, children }: Labelled & { id: string; children: ReactNode }) {
  return (
    <div className="flex flex-col gap-1">
      <label htmlFor={id} className={quiet ? "sr-only" : "text-sm font-medium"}>
        {label}
      </label>
      {children}
      {hint && (
        <p id={`${id}-hint`} className="text-[13px] text-soft">
          {hint}
        </p>
      )}
      {error && (
        <p id={`${id}-error`} className="text-[13px] text-bad" role="alert">
          {error}
        </p>
      )}
    </div>
  );
}

function describe(id: string, hint: ReactNode, error: ReactNode) {
  const ids = [hint && `${id}-hint`, error && `${id}-error`].filter(Boolean).join(" ");
  return { "aria-describedby": ids || undefined, "aria-invalid": error ? true : undefined };
}

export function TextField({ label, hint, error, quiet, className = "", ...rest }: Labelled & ComponentProps<"input">) {
  const id = useId();
  return (
    <Frame id={id} label={label} hint={hint} error={error} quiet={quiet}>
      <input id={id} {...describe(id, hint, error)} className={`min-h-9 ${box} ${className}`} {...rest} />
    </Frame>
  );
}

export function AreaField({ label, hint, error, quiet, className = "", ...rest }: Labelled & ComponentProps<"textarea">) {
  const id = useId();
  return (
    <Frame id={id} label={label} hint={hint} error={error} quiet={quiet}>
      <textarea id={id} {...describe(id, hint, error)} className={`min-h-20 py-2 ${box} ${className}`} {...rest} />
    </Frame>
  );
}

export function SelectField({ label, hint, error, quiet, className = "", children, ...rest }: Labelled & ComponentProps<"select">) {
  const id = useId();
  return (
    <Frame id={id} label={label} hint={hint} error={error} quiet={quiet}>
      <select id={id} {...describe(id, hint, error)} className={`min-h-9 ${box} ${className}`} {...rest}>
        {children}
      </select>
    </Frame>
  );
}

export function CheckField({ label, hint, ...rest }: { label: ReactNode; hint?: ReactNode } & ComponentProps<"input">) {
  const id = useId();
  return (
    <div className="flex items-start gap-2">
      <input id={id} type="checkbox" aria-describedby={hint ? `${id}-hint` : undefined} className="mt-1 size-4 accent-(--accent)" {...rest} />
      <div>
        <label htmlFor={id}>{label}</label>
        {hint && (
          <p id={`${id}-hint`} className="text-[13px] text-soft">
            {hint}
          </p>
        )}
      </div>
    </div>
  );
}
