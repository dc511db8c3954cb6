// Curves over iterations or any numbers, with intervals: over iterations as bands, over numbers as bars. Drawn anew in
// other colours where dark and light change.

import { useEffect, useRef, useState } from "preact/hooks";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";

type Numbers = (number | null | undefined)[];

export interface Curve {
  name: string;
  values: Numbers;
  halfWidths?: Numbers; // of the intervals around the values
  dashed?: boolean;
}

const HEIGHT = 260;
const X_AXIS = 32; // pixels
const WHOLE = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000]; // steps between ticks
const MANY = 60; // points of a curve, which then shows none
export const COLOURS = 8; // further curves have them again, dashed
const DASHES = [undefined, [6, 4], [2, 3]];
const DASH_CLASSES = [undefined, "dashed", "dotted"];
const dark = matchMedia("(prefers-color-scheme: dark)");

interface Props {
  label: string;
  x: number[];
  curves: Curve[];
  numbers?: boolean; // whether x is any numbers instead of iterations, of which 0 is the frozen model
  logarithmic?: boolean;
  whole?: boolean; // whether the numbers of x are whole, and so its ticks
}

export function Chart({ label, x, curves, numbers = false, logarithmic = false, whole = false }: Props) {
  const place = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const [isDark, setDark] = useState(dark.matches);
  const names = curves.map(({ name, halfWidths }) => name + (halfWidths ? "±" : "")).join("|");
  const data = columns(x, logarithmic ? curves.map(positive) : curves);
  useEffect(() => {
    const changed = () => setDark(dark.matches);
    dark.addEventListener("change", changed);
    return () => dark.removeEventListener("change", changed);
  }, []);
  useEffect(() => {
    const element = place.current!;
    const chart = new uPlot(options(element, curves, { numbers, logarithmic, whole }), data, element);
    plot.current = chart;
    const observer = new ResizeObserver(() => chart.setSize({ width: element.clientWidth, height: HEIGHT }));
    observer.observe(element);
    return () => {
      observer.disconnect();
      chart.destroy();
    };
  }, [names, isDark, numbers, logarithmic]);
  useEffect(() => plot.current?.setData(data), [JSON.stringify(data)]);
  return (
    <>
      <div class="chart" role="img" aria-label={label} ref={place} />
      <ul class="legend">
        {curves.map((curve, i) => (
          <li>
            <i class={DASH_CLASSES[dashOf(curve, i)]} style={{ borderColor: `var(${colourOf(i)})` }} />
            {curve.name}
          </li>
        ))}
      </ul>
    </>
  );
}

const colourOf = (curve: number): string => `--curve-${(curve % COLOURS) + 1}`;

/** Which of `DASHES` a curve has. */
const dashOf = ({ dashed }: Curve, i: number): number =>
  dashed ? 1 : Math.min(Math.floor(i / COLOURS), DASHES.length - 1);

/** A logarithm has no place for the others. */
const positive = (curve: Curve): Curve => ({
  ...curve,
  values: curve.values.map((value) => (typeof value === "number" && value > 0 ? value : null)),
});

/** x, then for each curve its values and, where it has intervals, their lower and upper ends. */
function columns(x: number[], curves: Curve[]): uPlot.AlignedData {
  return [
    x,
    ...curves.flatMap(({ values, halfWidths }) => (halfWidths ? [values, ...ends(values, halfWidths)] : [values])),
  ] as uPlot.AlignedData;
}

function ends(values: Numbers, halfWidths: Numbers): [Numbers, Numbers] {
  const end = (sign: number) =>
    values.map((value, i) =>
      typeof value === "number" && typeof halfWidths[i] === "number" ? value + sign * halfWidths[i]! : null,
    );
  return [end(-1), end(1)];
}

function options(
  element: HTMLElement,
  curves: Curve[],
  { numbers, logarithmic, whole }: Record<"numbers" | "logarithmic" | "whole", boolean>,
): uPlot.Options {
  const style = getComputedStyle(element);
  const colour = (name: string) => style.getPropertyValue(name).trim();
  const series: uPlot.Series[] = [{}];
  const bands: uPlot.Band[] = [];
  const bars: { curve: number; stroke: string }[] = [];
  curves.forEach((curve, i) => {
    const stroke = colour(colourOf(i));
    series.push({
      label: curve.name,
      stroke,
      width: 2,
      dash: DASHES[dashOf(curve, i)],
      points: { show: (plot, index) => showsPoints(plot, index, curve.dashed, numbers), size: 7 },
      spanGaps: numbers,
    });
    if (!curve.halfWidths) return;
    const end = { stroke: "transparent", points: { show: false } };
    series.push(end, end); // which the range of y covers
    if (numbers) bars.push({ curve: series.length - 3, stroke });
    else bands.push({ series: [series.length - 1, series.length - 2], fill: colour(`--band-${i + 1}`) });
  });
  const axis = { stroke: colour("--faint"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false } };
  return {
    width: element.clientWidth,
    height: HEIGHT,
    series,
    bands,
    scales: {
      x: { time: false, range: (plot) => rangeOf(plot.data[0], numbers) },
      y: { distr: logarithmic ? 3 : 1 },
    },
    axes: [
      numbers
        ? { ...axis, size: X_AXIS, incrs: whole ? WHOLE : undefined, values: (_plot, places) => places.map(short) }
        : {
            ...axis,
            size: X_AXIS,
            incrs: WHOLE,
            values: (_plot, steps) => steps.map((step) => (step === 0 ? "frozen" : String(step))),
          },
      { ...axis, size: 64, values: (_plot, places) => places.map(short) },
    ],
    hooks: { draw: [(plot) => bars.forEach(({ curve, stroke }) => drawIntervals(plot, curve, stroke))] },
    cursor: { show: false },
    legend: { show: false },
  };
}

function showsPoints(plot: uPlot, index: number, dashed = false, numbers: boolean): boolean {
  if (plot.data[0].length === 1) return true;
  const values = plot.data[index] as Numbers;
  return !dashed && (!numbers || values.filter((value) => value !== null).length < MANY);
}

/** The range of x, which ascends, with a margin: uPlot itself widens a single number to 0 … 100. */
function rangeOf(x: ArrayLike<number>, numbers: boolean): [number, number] {
  const [first, last] = [x[0] ?? 0, x[x.length - 1] ?? 0];
  if (!numbers) return [first - 0.25, Math.max(last, first + 1) + 0.25];
  const margin = (last - first || Math.abs(first) || 1) / 40;
  return [first - margin, last + margin];
}

/** A vertical line through each point of a curve, between the ends of its intervals, which are the two series after
 * it. */
function drawIntervals(plot: uPlot, curve: number, stroke: string): void {
  const [low, high] = [plot.data[curve + 1]!, plot.data[curve + 2]!];
  const { ctx } = plot;
  ctx.save();
  ctx.strokeStyle = stroke;
  ctx.lineWidth = devicePixelRatio;
  for (let i = 0; i < low.length; i++) {
    if (typeof low[i] !== "number" || typeof high[i] !== "number") continue;
    const left = plot.valToPos(plot.data[0][i]!, "x", true);
    ctx.beginPath();
    ctx.moveTo(left, plot.valToPos(low[i]!, "y", true));
    ctx.lineTo(left, plot.valToPos(high[i]!, "y", true));
    ctx.stroke();
  }
  ctx.restore();
}

/** A tick's number; null: of a logarithm's ticks, one without a label. */
function short(value: number | null): string {
  if (value === null) return "";
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-3 || size >= 1e6) ? value.toExponential().replace("e+", "e") : String(+value.toPrecision(6));
}
