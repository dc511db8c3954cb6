// Rows of metrics as curves: a batch job writes rows of any shape, so nested fields go by their path, and texts tell
// curves apart.

import type { Curve } from "../Chart";

export type Row = Record<string, unknown>;
export type Flat = Record<string, string | number | boolean | null>;

export const ROW = "row number";
const COUNTERS = ["step", "seed", "repeat"]; // no metrics, though they are numbers

export function flatten(value: unknown, prefix = ""): Flat {
  if (value === null || typeof value !== "object") return { [prefix]: value as string | number | boolean | null };
  const parts = Object.entries(value).map(([key, item]) => flatten(item, prefix ? `${prefix}/${key}` : key));
  return Object.assign({}, ...parts) as Flat;
}

/** Names of numbers in the rows: those that a curve may show, and those that may be its x. */
export function numericNames(rows: Flat[]): { metrics: string[]; xs: string[] } {
  const names = new Set<string>();
  for (const row of rows) for (const [name, value] of Object.entries(row)) if (typeof value === "number") names.add(name);
  const metrics = [...names].filter((name) => !COUNTERS.includes(name));
  return { metrics, xs: [ROW, ...names].filter((name) => name !== "seed") };
}

/** The x that suits a metric: its step where its rows have one, else their order. */
export const defaultX = (rows: Flat[], metric: string): string =>
  rows.some((row) => typeof row[metric] === "number" && typeof row.step === "number") ? "step" : ROW;

export interface Series {
  name: string;
  points: Map<number, number>;
}

/** A curve for each combination of texts; of several values at one x, their mean. */
export function seriesOf(rows: Flat[], metric: string, x: string): Series[] {
  const groups = new Map<string, Map<number, number[]>>();
  for (const row of rows) {
    const value = row[metric];
    if (typeof value !== "number") continue;
    const label = Object.values(row)
      .filter((item) => typeof item === "string")
      .join(", ");
    const points = groups.get(label) ?? groups.set(label, new Map()).get(label)!;
    const place = x === ROW ? points.size + 1 : row[x];
    if (typeof place === "number") points.set(place, [...(points.get(place) ?? []), value]);
  }
  const mean = (values: number[]) => values.reduce((sum, value) => sum + value, 0) / values.length;
  return [...groups].map(([name, points]) => ({
    name,
    points: new Map([...points].sort(([a], [b]) => a - b).map(([place, values]) => [place, mean(values)])),
  }));
}

/** All series over the same x. */
export function aligned(series: Series[]): { x: number[]; curves: Curve[] } {
  const x = [...new Set(series.flatMap(({ points }) => [...points.keys()]))].sort((a, b) => a - b);
  return { x, curves: series.map(({ name, points }) => ({ name, values: x.map((place) => points.get(place) ?? null) })) };
}

/** A value as people read it: numbers with four digits. */
export function shown(value: unknown): string {
  if (value === undefined || value === null) return "–";
  if (typeof value === "number") return String(Number.isInteger(value) ? value : Number(value.toPrecision(4)));
  if (Array.isArray(value)) return `[${value.map(shown).join(", ")}]`;
  if (typeof value !== "object") return String(value);
  return Object.entries(value)
    .map(([name, part]) => `${name}: ${shown(part)}`)
    .join(", ");
}
