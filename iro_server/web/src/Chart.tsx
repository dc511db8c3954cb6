// Curves over iterations or any numbers, with bands of 1.96 standard errors; drawn anew in other colours where dark and light change.

import { useEffect, useRef, useState } from "preact/hooks";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";

type Numbers = (number | null | undefined)[];

export interface Curve {
  name: string;
  values: Numbers;
  errors?: Numbers;
  dashed?: boolean;
}

const HEIGHT = 260;
const X_AXIS = 32; // pixels
const WHOLE = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000]; // steps between ticks
const MANY = 60; // points of a curve, which then shows none
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
  const names = curves.map(({ name, errors }) => name + (errors ? "±" : "")).join("|");
  const data = columns(x, logarithmic ? curves.map(positive) : curves);
  useEffect(() => {
    const changed = () => setDark(dark.matches);
    dark.addEventListener("change", changed);
    return () => dark.removeEventListener("change", changed);
  }, []);
  useEffect(() => {
    const element = place.current!;
    const chart = new uPlot(options(element, x, curves, { numbers, logarithmic, whole }), data, element);
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
        {curves.map(({ name, dashed }, i) => (
          <li>
            <i class={dashed ? "dashed" : undefined} style={{ borderColor: `var(--curve-${i + 1})` }} />
            {name}
          </li>
        ))}
      </ul>
    </>
  );
}

/** A logarithm has no place for the others. */
const positive = (curve: Curve): Curve => ({
  ...curve,
  values: curve.values.map((value) => (typeof value === "number" && value > 0 ? value : null)),
});

/** x, then for each curve its values and, where it has errors, the band's lower and upper end. */
function columns(x: number[], curves: Curve[]): uPlot.AlignedData {
  return [
    x,
    ...curves.flatMap(({ values, errors }) => (errors ? [values, ...band(values, errors)] : [values])),
  ] as uPlot.AlignedData;
}

function band(values: Numbers, errors: Numbers): [Numbers, Numbers] {
  const end = (sign: number) =>
    values.map((value, i) =>
      typeof value === "number" && typeof errors[i] === "number" ? value + sign * 1.96 * errors[i]! : null,
    );
  return [end(-1), end(1)];
}

function options(
  element: HTMLElement,
  x: number[],
  curves: Curve[],
  { numbers, logarithmic, whole }: Record<"numbers" | "logarithmic" | "whole", boolean>,
): uPlot.Options {
  const [least, most] = [Math.min(...x), Math.max(...x)]; // uPlot widens a single value to 0 … 100
  const style = getComputedStyle(element);
  const colour = (name: string) => style.getPropertyValue(name).trim();
  const series: uPlot.Series[] = [{}];
  const bands: uPlot.Band[] = [];
  curves.forEach(({ name, values, errors, dashed }, i) => {
    const stroke = colour(`--curve-${i + 1}`);
    series.push({
      label: name,
      stroke,
      width: 2,
      dash: dashed ? [6, 4] : undefined,
      points: { show: x.length === 1 || (!dashed && (!numbers || values.filter((value) => value !== null).length < MANY)), size: 7 },
      spanGaps: numbers,
    });
    if (errors) {
      const end = { stroke: "transparent", points: { show: false } };
      series.push(end, end);
      bands.push({ series: [series.length - 1, series.length - 2], fill: colour(`--band-${i + 1}`) });
    }
  });
  const axis = { stroke: colour("--faint"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false } };
  return {
    width: element.clientWidth,
    height: HEIGHT,
    series,
    bands,
    scales: {
      x: { time: false, range: () => (numbers ? wide(least, most) : [least - 0.25, Math.max(most, least + 1) + 0.25]) },
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
    cursor: { show: false },
    legend: { show: false },
  };
}

/** The range with a margin, also where it is a single number. */
function wide(least: number, most: number): [number, number] {
  const margin = (most - least || Math.abs(least) || 1) / 40;
  return [least - margin, most + margin];
}

/** A tick's number; null: of a logarithm's ticks, one without a label. */
function short(value: number | null): string {
  if (value === null) return "";
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-3 || size >= 1e6) ? value.toExponential().replace("e+", "e") : String(+value.toPrecision(6));
}
