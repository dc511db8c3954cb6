// Files made in the browser: a table as CSV, a chart as PNG.

import { COLOURS } from "../Chart";
import type { Flat } from "./metrics";

export function save(content: Blob, name: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000); // milliseconds: the download has begun
}

/** Columns in the order in which they first come up; what a row lacks is empty. */
export function csv(rows: Flat[]): Blob {
  const columns = [...new Set(rows.flatMap((row) => Object.keys(row)))];
  const lines = [columns, ...rows.map((row) => columns.map((name) => row[name] ?? ""))];
  return new Blob(lines.map((cells) => `${cells.map(quoted).join(",")}\n`), { type: "text/csv" });
}

function quoted(cell: unknown): string {
  const text = String(cell);
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

const MARGIN = 12;
const LINE = 22; // of the title and the legend; both in CSS pixels

/** The chart on its ground, with a title and the names of its curves. */
export function png(chart: HTMLCanvasElement, title: string, names: string[]): Promise<Blob> {
  const scale = devicePixelRatio;
  const style = getComputedStyle(document.documentElement);
  const colours = getComputedStyle(chart);
  const canvas = document.createElement("canvas");
  canvas.width = chart.width + 2 * MARGIN * scale;
  canvas.height = chart.height + (2 * MARGIN + LINE * (names.length + 1)) * scale;
  const context = canvas.getContext("2d")!;
  context.fillStyle = resolved("--card");
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.font = `${14 * scale}px ${style.fontFamily}`;
  context.textBaseline = "middle";
  context.fillStyle = colours.color;
  context.fillText(title, MARGIN * scale, (MARGIN + LINE / 2) * scale);
  context.drawImage(chart, MARGIN * scale, (MARGIN + LINE) * scale);
  names.forEach((name, i) => {
    const y = chart.height + (MARGIN + LINE * (i + 1.5)) * scale;
    context.fillStyle = resolved(`--curve-${(i % COLOURS) + 1}`);
    context.fillRect(MARGIN * scale, y - 2 * scale, 18 * scale, 4 * scale);
    context.fillStyle = colours.color;
    context.fillText(name, (MARGIN + 26) * scale, y);
  });
  return new Promise((resolve) => canvas.toBlob((blob) => resolve(blob!), "image/png"));
}

/** A colour of the style sheet that depends on dark and light, as a canvas takes it. */
function resolved(name: string): string {
  const probe = document.createElement("i");
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const { color } = getComputedStyle(probe);
  probe.remove();
  return color;
}
