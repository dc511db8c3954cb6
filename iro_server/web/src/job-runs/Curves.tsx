// One metric of one or several runs on one chart, as it grows, with the chart and the numbers to download.

import { useRef, useState } from "preact/hooks";
import { COLOURS, Chart } from "../Chart";
import { Fact } from "../parts";
import { csv, png, save } from "./download";
import type { Flat } from "./metrics";
import { aligned, defaultX, numericNames, seriesOf, shown } from "./metrics";

export interface Labelled {
  label: string;
  rows: Flat[];
}

/** `empty`: what to say while there are no metrics. */
export function Curves({ runs, empty }: { runs: Labelled[]; empty: string }) {
  const [chosen, setChosen] = useState("");
  const [chosenX, setX] = useState("");
  const [isLog, setLog] = useState(false);
  const place = useRef<HTMLDivElement>(null);
  const rows = runs.flatMap((run) => run.rows);
  const { metrics, xs } = numericNames(rows);
  if (metrics.length === 0) return <p class="faint">{empty}</p>;
  const metric = metrics.includes(chosen) ? chosen : fullest(rows, metrics);
  const x = xs.includes(chosenX) ? chosenX : defaultX(rows, metric);
  const all = runs.flatMap(({ label, rows }) =>
    seriesOf(rows, metric, x).map(({ name, points }) => ({
      name: runs.length === 1 ? name || metric : [label, name].filter(Boolean).join(": "),
      points,
    })),
  );
  const series = all.slice(0, COLOURS);
  const chart = aligned(series);
  const saveTable = () => {
    const table = chart.x.map((value, i) => ({
      [x]: value,
      ...Object.fromEntries(chart.curves.map(({ name, values }) => [name, values[i] ?? null])),
    }));
    save(csv(table), `${fileName(metric)}.csv`);
  };
  const savePicture = async () => {
    const canvas = place.current?.querySelector("canvas");
    const names = series.map(({ name }) => name);
    if (canvas) save(await png(canvas, `${metric} by ${x}`, names), `${fileName(metric)}.png`);
  };
  return (
    <>
      <div class="chooser">
        <label>
          Metric <Choice value={metric} options={metrics} onChange={setChosen} />
        </label>
        <label>
          By <Choice value={x} options={xs.filter((name) => name !== metric)} onChange={setX} />
        </label>
        <label class="check">
          <input type="checkbox" checked={isLog} onChange={(event) => setLog(event.currentTarget.checked)} /> Logarithmic
        </label>
        <span class="actions">
          <button onClick={saveTable}>CSV</button>
          <button onClick={() => void savePicture()} disabled={series.every(({ points }) => points.size < 2)}>
            PNG
          </button>
        </span>
      </div>
      {series.some(({ points }) => points.size > 1) ? (
        <div ref={place}>
          <Chart label={`${metric} by ${x}`} x={chart.x} curves={chart.curves} numbers logarithmic={isLog} />
        </div>
      ) : (
        <dl class="facts">
          {series.map(({ name, points }) => (
            <Fact name={name} value={shown([...points.values()][0])} />
          ))}
        </dl>
      )}
      {all.length > series.length && (
        <p class="faint small">
          The first {series.length} of {all.length} curves.
        </p>
      )}
    </>
  );
}

/** The metric with the most values; of equals, the first. */
function fullest(rows: Flat[], metrics: string[]): string {
  const size = (name: string) => rows.filter((row) => typeof row[name] === "number").length;
  return metrics.reduce((best, name) => (size(name) > size(best) ? name : best));
}

const fileName = (metric: string): string => metric.replaceAll(/[^\w-]+/g, "-");

function Choice({
  value,
  options,
  onChange,
}: {
  value: string;
  options: string[];
  onChange: (value: string) => void;
}) {
  return (
    <select value={value} onChange={(event) => onChange(event.currentTarget.value)}>
      {options.map((option) => (
        <option key={option}>{option}</option>
      ))}
    </select>
  );
}
