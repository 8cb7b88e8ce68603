import { useQuery } from "@connectrpc/connect-query";
import type { ReactNode } from "react";
import { Waiting } from "@/components/empty";
import { Facts, Panel } from "@/components/panel";
import { ProblemNote } from "@/components/problem";
import { Time } from "@/components/time";
import { FleetService } from "@/gen/fleetban/operator/v1/operator_pb";
import { useNumber, useText } from "@/i18n";
import { visible } from "@/lib/visible";

/** Organisation is what holds for everybody. */
export function Organisation() {
  const { t } = useText();
  const number = useNumber();
  const fleet = useQuery(FleetService.method.getFleet);
  const f = fleet.data;
  return (
    <Panel id="organisation" title={t.settings.organisation}>
      <ProblemNote error={fleet.error} retry={() => void fleet.refetch()} />
      {!f ? (
        <Waiting />
      ) : (
        <Facts
          of={[
            [t.tokens.name, visible(f.organisationName, 100)],
            ["ID", <code key="id" className="font-mono text-[13px]">{f.organisationId}</code>],
            [t.policy.mode, t.modeLine[f.mode]],
            [t.settings.durability, t.durabilities[f.durability] ?? f.durability],
            [t.pages.hosts, number(f.hosts)],
            ...f.leases.map((l): [string, ReactNode] => [
              `${t.settings.work} ${visible(l.name, 40)}`,
              l.holder ? (
                <span key={l.name}>
                  {visible(l.holder, 80)}, <Time ms={l.sinceUnixMs} />
                  {l.runs.some((r) => r.problem) && <span className="text-warn"> · {visible(l.runs.find((r) => r.problem)?.problem ?? "", 300)}</span>}
                </span>
              ) : (
                t.settings.nobody
              ),
            ]),
            ...f.sets.map((s): [string, string] => [`${t.settings.set} ${visible(s.cursor?.set ?? "", 60)}`, t.settings.setLine(s.records, number(s.records), number(s.cursor?.version ?? 0n))]),
          ]}
        />
      )}
    </Panel>
  );
}
