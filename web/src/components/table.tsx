import { type ColumnDef, FlexRender, type Row as TableRow, type RowData, tableFeatures, useTable } from "@tanstack/react-table";
import { useVirtualizer } from "@tanstack/react-virtual";
import { memo, useEffect, useRef } from "react";
import { useNarrow } from "@/lib/narrow";

export const features = tableFeatures({});
export type Features = typeof features;
export type Columns<Row extends RowData> = ColumnDef<Features, Row, unknown>[];

interface Common<Row extends RowData> {
  /** What the table holds, for those who can't see it. */
  label: string;
  columns: Columns<Row>;
  rows: Row[];
  rowId: (row: Row) => string;
}

// The first cell begins where a panel's heading does.
const head = "px-3 py-2 text-left text-xs font-medium whitespace-nowrap text-soft first:pl-4 last:pr-4";
const cellLook = "px-3 py-2 align-middle first:pl-4 last:pr-4";

/** Table is a short list: all of its rows are on the page. Wider than the screen, it scrolls within itself. */
export function Table<Row extends RowData>({ label, columns, rows, rowId }: Common<Row>) {
  const table = useTable({ features, columns, data: rows, getRowId: rowId });
  return (
    <div className="sideways relative overflow-x-auto" role="group" aria-label={label} tabIndex={0}>
      <table className="w-full border-collapse">
        <caption className="sr-only">{label}</caption>
        <thead>
          {table.getHeaderGroups().map((group) => (
            <tr key={group.id} className="border-b border-line">
              {group.headers.map((header) => (
                <th key={header.id} scope="col" className={head}>
                  {header.isPlaceholder ? null : <table.FlexRender header={header} />}
                </th>
              ))}
            </tr>
          ))}
        </thead>
        <tbody>
          {table.getRowModel().rows.map((row) => (
            <tr key={row.id} className="border-b border-line last:border-b-0 hover:bg-ground">
              {row.getAllCells().map((cell) => (
                <td key={cell.id} className={cellLook}>
                  <table.FlexRender cell={cell} />
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

const rowHeight = 41;

/** Narrow is how rows look where the screen is too narrow for all columns side by side. */
interface Narrow {
  /** CSS grid columns and areas; an area is a column's id, and columns without one aren't shown. */
  widths: string;
  areas: string;
  /** Pixels. */
  height: number;
  /** The columns whose headings stand above: those that sort. */
  heads: string[];
}

/**
 * LongTable shows the rows in sight of however many: 100,000 cost what 30 do. More are asked for with `more` before the
 * end is reached. `total` is how many there are, known or not yet read.
 */
export function LongTable<Row extends RowData>({ label, columns, widths, least, narrow, rows, rowId, total, more }: Common<Row> & {
  /** CSS grid columns, and the least width in which they are read; on a narrower screen the table scrolls sideways. */
  widths: string;
  least: string;
  narrow?: Narrow;
  total: number;
  more?: () => void;
}) {
  const table = useTable({ features, columns, data: rows, getRowId: rowId });
  const scroller = useRef<HTMLDivElement>(null);
  const folded = useNarrow() ? narrow : undefined;
  const height = folded?.height ?? rowHeight;
  const virtual = useVirtualizer({ count: rows.length, getScrollElement: () => scroller.current, estimateSize: () => height, overscan: 12 });
  useEffect(() => virtual.measure(), [virtual, height]);
  const items = virtual.getVirtualItems();
  const last = items.at(-1)?.index ?? 0;
  useEffect(() => {
    if (more && rows.length > 0 && last >= rows.length - 60) more();
  }, [last, more, rows.length]);
  const all = table.getRowModel().rows;
  const minWidth = folded ? undefined : least;
  return (
    <div
      ref={scroller}
      role="table"
      aria-label={label}
      aria-rowcount={total + 1}
      tabIndex={0}
      className="max-h-[max(20rem,calc(100dvh-16rem))] sm:max-h-[max(20rem,calc(100dvh-12.5rem))] overflow-auto rounded-lg border border-line bg-surface"
    >
      <div role="rowgroup" className="sticky top-0 z-10 border-b border-line bg-surface" style={{ minWidth }}>
        {table.getHeaderGroups().map((group) => (
          <div key={group.id} role="row" aria-rowindex={1} className={folded ? "flex items-center" : "grid items-center"} style={folded ? undefined : { gridTemplateColumns: widths }}>
            {group.headers.filter((h) => !folded || folded.heads.includes(h.column.id)).map((h) => (
              <div key={h.id} role="columnheader" className={head}>
                {h.isPlaceholder ? null : <table.FlexRender header={h} />}
              </div>
            ))}
          </div>
        ))}
      </div>
      <div role="rowgroup" className="relative" style={{ height: virtual.getTotalSize(), minWidth }}>
        {items.map((item) => {
          const row = all[item.index];
          if (!row) return null;
          return (
            <LongRow
              key={row.id}
              row={row as unknown as TableRow<Features, object>}
              columns={columns}
              index={item.index}
              start={item.start}
              widths={widths}
              folded={folded}
            />
          );
        })}
      </div>
    </div>
  );
}

/** LongRow is drawn anew only where something of it changed: scrolling draws those rows that come into sight. */
const LongRow = memo(function LongRow({ row, index, start, widths, folded }: {
  row: TableRow<Features, object>;
  /** What its cells are made with. */
  columns: unknown;
  index: number;
  /** Pixels from the first row's top. */
  start: number;
  widths: string;
  folded: Narrow | undefined;
}) {
  const grid = folded
    ? { gridTemplateColumns: folded.widths, gridTemplateAreas: folded.areas, height: folded.height }
    : { gridTemplateColumns: widths, height: rowHeight };
  const areas = folded?.areas.split(/[\s"]+/);
  const cells = row.getAllCells().filter((cell) => !areas || areas.includes(cell.column.id));
  return (
    <div
      role="row"
      aria-rowindex={index + 2}
      className="absolute inset-x-0 grid content-center items-center border-b border-line hover:bg-ground"
      style={{ ...grid, transform: `translateY(${start}px)` }}
    >
      {cells.map((cell) => (
        <div key={cell.id} role="cell" className="min-w-0 truncate px-3 first:pl-4" style={folded && { gridArea: cell.column.id }}>
          <FlexRender cell={cell} />
        </div>
      ))}
    </div>
  );
});
