import { Link } from "@tanstack/react-router";
import { visible } from "@/lib/visible";

/** AddressLink leads to everything about an address or prefix. */
export function AddressLink({ of }: { of: string }) {
  return (
    <Link to="/address/$" params={{ _splat: of }} title={visible(of, 64)} className="font-mono text-[13px] text-accent hover:underline">
      {visible(of, 64)}
    </Link>
  );
}

/** HostLink leads to a host. */
export function HostLink({ name }: { name: string }) {
  return (
    <Link to="/hosts/$host" params={{ host: name }} className="text-accent hover:underline">
      {visible(name, 80)}
    </Link>
  );
}
