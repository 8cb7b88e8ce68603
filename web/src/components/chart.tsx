import { useEffect, useRef } from "react";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";

interface Series {
  name: string;
  /** A CSS variable: "--bad". */
  colour: string;
  values: number[];
}

/** Chart draws counts over time. What it shows is in a table beside it for those who can't see it. */
export function Chart({ label, times, series, height = 180, theme, locale }: { label: string; times: number[]; series: Series[]; height?: number; theme: string; locale: string }) {
  const place = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot>(undefined);
  const names = series.map((s) => s.name + s.colour).join("\n");
  useEffect(() => {
    const node = place.current;
    if (!node) return;
    const style = getComputedStyle(document.documentElement);
    const colour = (name: string) => style.getPropertyValue(name).trim();
    const clock = new Intl.DateTimeFormat(locale, { hour: "2-digit", minute: "2-digit" });
    const axis = { stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui" };
    const u = new uPlot(
      {
        width: node.clientWidth || 300,
        height,
        padding: [6, 12, 0, 0],
        legend: { show: false },
        cursor: { show: false },
        scales: { y: { range: (_, __, max) => [0, Math.max(max * 1.1, 4)] } },
        axes: [{ ...axis, size: 28, values: (_, at) => at.map((s) => clock.format(s * 1000)) }, { ...axis, size: 34 }],
        series: [
          {},
          ...series.map((s) => ({
            label: s.name,
            stroke: colour(s.colour),
            width: 1.5,
            fill: `color-mix(in srgb, ${colour(s.colour)} 16%, transparent)`,
            points: { show: false },
            paths: uPlot.paths.stepped?.({ align: 1 }),
          })),
        ],
      },
      [times, ...series.map((s) => s.values)],
      node,
    );
    plot.current = u;
    const sized = new ResizeObserver(() => u.setSize({ width: node.clientWidth, height }));
    sized.observe(node);
    return () => {
      sized.disconnect();
      u.destroy();
    };
  }, [names, height, theme, locale]);
  useEffect(() => {
    plot.current?.setData([times, ...series.map((s) => s.values)]);
  }, [times, series]);
  return <div ref={place} role="img" aria-label={label} className="w-full overflow-hidden" />;
}
