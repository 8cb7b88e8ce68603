import { loadavg } from "node:os";
import type { Reporter, TestCase, TestResult } from "@playwright/test/reporter";

/** A figure and what it should be at most. Beyond `gross` something is broken, whatever else the machine does. */
export interface Figure {
  name: string;
  value: number;
  unit: string;
  target: number;
  gross: number;
}

/** Figures prints what tests attach, one line each, and what failed. */
export default class Figures implements Reporter {
  onTestEnd(test: TestCase, result: TestResult): void {
    for (const { name, body } of result.attachments) {
      if (name !== "figure" || !body) continue;
      const f = JSON.parse(body.toString()) as Figure;
      const load = (loadavg()[0] ?? 0).toFixed(1);
      console.log(`${f.name.padEnd(58)} ${f.value.toFixed(f.value < 10 ? 1 : 0).padStart(7)} ${f.unit.padEnd(3)} target ${f.target} ${f.unit}${f.value > f.target ? ", missed" : ""} (load ${load})`);
    }
    for (const { message } of result.errors) console.log(`${test.title}: ${message ?? "failed"}`);
  }
}
