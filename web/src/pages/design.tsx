import { Ban } from "lucide-react";
import { useState } from "react";
import { Badge } from "@/components/badge";
import { Button, IconButton } from "@/components/button";
import { CopyLine } from "@/components/copy";
import { Dialog, DialogActions } from "@/components/dialog";
import { Empty, Waiting } from "@/components/empty";
import { AreaField, CheckField, SelectField, TextField } from "@/components/field";
import { Menu, MenuItem } from "@/components/menu";
import { Facts, Page, Panel } from "@/components/panel";
import { ProblemNote } from "@/components/problem";
import { type Columns, LongTable, Table } from "@/components/table";
import { Time } from "@/components/time";
import { note } from "@/components/toast";

interface Row {
  id: number;
  name: string;
}
const rows: Row[] = Array.from({ length: 100_000 }, (_, id) => ({ id, name: `row ${id}` }));
const columns: Columns<Row> = [
  { id: "id", header: "Number", cell: ({ row }) => row.original.id },
  { id: "name", header: "Name", cell: ({ row }) => row.original.name },
];

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
