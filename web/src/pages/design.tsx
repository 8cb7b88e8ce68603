import { create } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import { Ban } from "lucide-react";
import { useState } from "react";
import { Badge } from "@/components/badge";
import { Chart } from "@/components/chart";
import { Button, IconButton } from "@/components/button";
import { CopyLine } from "@/components/copy";
import { Dialog, DialogActions } from "@/components/dialog";
import { Empty, Waiting } from "@/components/empty";
import { AreaField, CheckField, SelectField, TextField } from "@/components/field";
import { EventLine } from "@/components/event-line";
import { HostBadge } from "@/components/host-state";
import { Menu, MenuItem } from "@/components/menu";
import { Facts, Page, Panel } from "@/components/panel";
import { ProblemNote } from "@/components/problem";
import { type Columns, LongTable, Table } from "@/components/table";
import { Time } from "@/components/time";
import { note } from "@/components/toast";
import { FleetEventKind as Kind, FleetEventSchema, HostSchema, Presence } from "@/gen/fleetban/operator/v1/operator_pb";
import { Fail2banHealth_State, Inert } from "@/gen/fleetban/v1/agent_pb";
import { ErrorInfoSchema, Reason } from "@/gen/fleetban/v1/error_pb";

interface Row {
  id: number;
  name: string;
}
const rows: Row[] = Array.from({ length: 100_000 }, (_, id) => ({ id, name: `row ${id}` }));
const columns: Columns<Row> = [
  { id: "id", header: "Number", cell: ({ row }) => row.original.id },
  { id: "name", header: "Name", cell: ({ row }) => row.original.name },
];

const info = (reason: Reason, fix: string, subject = "") => [{ desc: ErrorInfoSchema, value: { reason, fix, subject, requestId: "01J0000000000000000000000" } }];
const refused = new ConnectError("203.0.113.0/8 is wider than anyone may ban", Code.InvalidArgument, undefined, info(Reason.PREFIX_TOO_WIDE, "ban a /16 or smaller"));
const waits = new ConnectError("pause needs a second person", Code.FailedPrecondition, undefined, info(Reason.APPROVAL_REQUIRED, "", "01J0000000000000000000000"));
// One of each state that a badge tells, the worst that is true first.
const hosts = [
  ...[Presence.ONLINE, Presence.OFFLINE, Presence.NEW, Presence.QUARANTINED, Presence.DISABLED].map((presence) => create(HostSchema, { presence })),
  ...[Inert.UNABLE, Inert.PROXIED, Inert.OFF, Inert.OBSERVE, Inert.PAUSED].map((inert) => create(HostSchema, { presence: Presence.ONLINE, inert })),
  create(HostSchema, { presence: Presence.ONLINE, health: { fail2ban: { state: Fail2banHealth_State.DOWN } } }),
  create(HostSchema, { presence: Presence.ONLINE, sets: [{ set: "all", acknowledged: 1n, current: 2n }] }),
];
const events = [Kind.OBSERVED, Kind.BANNED, Kind.UNBANNED, Kind.ALLOWED, Kind.HOST_OFFLINE, Kind.HOST_CLONED, Kind.NOTICE].map((kind) =>
  create(FleetEventSchema, { id: String(kind), kind, atUnixMs: BigInt(Date.now()), prefix: "203.0.113.9", hostName: "web-1", jail: "sshd", actor: "<script>\u202e", reason: "why" }),
);
const times = Array.from({ length: 60 }, (_, i) => Date.now() / 1000 - 60 * (60 - i));

/** Design is every component in every state; in development only. */
export function Design() {
  const [open, setOpen] = useState(false);
  return (
    <Page title="Components" lead="In development only.">
      <Panel title="Buttons">
        <div className="flex flex-wrap items-center gap-2">
          {(["primary", "plain", "danger", "ghost"] as const).flatMap((kind) => [
            <Button key={kind} kind={kind}>
              {kind}
            </Button>,
            <Button key={`${kind} small`} kind={kind} small>
              small
            </Button>,
            <Button key={`${kind} busy`} kind={kind} busy>
              busy
            </Button>,
            <Button key={`${kind} disabled`} kind={kind} disabled>
              disabled
            </Button>,
          ])}
          <IconButton label="Ban">
            <Ban size={16} aria-hidden />
          </IconButton>
          <Menu trigger={<Button>menu</Button>}>
            <MenuItem onSelect={() => {}}>one</MenuItem>
            <MenuItem onSelect={() => {}} danger>
              danger
            </MenuItem>
          </Menu>
        </div>
      </Panel>
      <Panel title="Badges">
        <div className="flex flex-wrap gap-2">
          {(["ok", "warn", "bad", "info", "none"] as const).map((tone) => (
            <Badge key={tone} tone={tone} dot>
              {tone}
            </Badge>
          ))}
        </div>
      </Panel>
      <Panel title="Hosts">
        <div className="flex flex-wrap gap-2">
          {hosts.map((h, i) => (
            <HostBadge key={i} host={h} />
          ))}
        </div>
      </Panel>
      <Panel title="Events" flush>
        <ul className="divide-y divide-line">
          {events.map((e) => (
            <EventLine key={e.kind} event={e} />
          ))}
        </ul>
      </Panel>
      <Panel title="Chart">
        <Chart label="Counts over time" times={times} series={[{ name: "one", colour: "--accent", values: times.map((_, i) => i % 7) }, { name: "two", colour: "--bad", values: times.map((_, i) => i % 3) }]} theme="light" locale="en-GB" />
      </Panel>
      <Panel title="Fields">
        <div className="grid max-w-2xl gap-3 sm:grid-cols-2">
          <TextField label="Text" hint="What it is for." />
          <TextField label="Wrong" error="What would be right." defaultValue="x" />
          <AreaField label="Area" />
          <SelectField label="Select">
            <option>one</option>
          </SelectField>
          <CheckField label="Check" hint="What it does." />
        </div>
      </Panel>
      <Panel title="Notes, problems, empty, waiting">
        <div className="flex flex-col gap-3">
          <div className="flex gap-2">
            <Button onClick={() => note("It was done.", { undo: () => {} })}>note</Button>
            <Button onClick={() => note("It failed.", { bad: true })}>bad note</Button>
            <Button onClick={() => setOpen(true)}>dialog</Button>
          </div>
          <ProblemNote error={new Error("what went wrong")} retry={() => {}} />
          <ProblemNote error={refused} />
          <ProblemNote error={waits} />
          <Empty icon={<Ban size={24} aria-hidden />} title="Nothing here" action={<Button>next step</Button>}>
            What would be here.
          </Empty>
          <Waiting />
        </div>
      </Panel>
      <Panel title="Text">
        <Facts
          of={[
            ["a time", <Time key="t" ms={Date.now() - 65_000} />],
            ["never", <Time key="n" ms={253402300799000n} />],
          ]}
        />
        <div className="mt-3">
          <CopyLine text="curl -fsSL https://example.com/install.sh | sh" label="a line" />
        </div>
      </Panel>
      <Panel title="Table" flush>
        <Table label="short" columns={columns} rows={rows.slice(0, 3)} rowId={(r) => String(r.id)} />
      </Panel>
      <LongTable label="long" columns={columns} widths="8rem 1fr" least="20rem" rows={rows} rowId={(r) => String(r.id)} total={rows.length} />
      <Dialog open={open} onOpenChange={setOpen} title="A dialog" lead="What it asks.">
        <p>Something to decide.</p>
        <DialogActions>
          <Button onClick={() => setOpen(false)}>Cancel</Button>
          <Button kind="danger">Do it</Button>
        </DialogActions>
      </Dialog>
    </Page>
  );
}
