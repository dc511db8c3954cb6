// Several runs: one metric of all on one chart, and the fields of their configs that differ.

import { useRef, useState } from "preact/hooks";
import { usePolled } from "../hooks";
import { Problem } from "../parts";
import { address } from "../router";
import type { JobRun, RunMetrics } from "./api";
import { getRun, isOpen, readMetrics, titleOf } from "./api";
import { Curves } from "./Curves";
import { shown } from "./metrics";

const EVERY = 3000; // milliseconds
const MOST = 8; // runs

export function Compare({ query }: { query: URLSearchParams }) {
  const ids = (query.get("ids") ?? "").split(",").filter(Boolean).slice(0, MOST);
  const [open, setOpen] = useState(true);
  const last = useRef(new Map<string, RunMetrics>());
  const read = async (id: string, signal: AbortSignal) => {
    const metrics = await readMetrics(await getRun(id, signal), last.current.get(id), signal);
    last.current.set(id, metrics);
    return metrics;
  };
  const { value, error, again } = usePolled(
    async (signal) => {
      const runs = await Promise.all(ids.map((id) => read(id, signal)));
      setOpen(runs.some(({ run }) => isOpen(run)));
      return runs;
    },
    open ? EVERY : null,
    ids.join(),
  );
  if (!value) return error ? <Problem error={error} again={again} /> : <p class="faint">Loading …</p>;
  const labels = labelsOf(value.map(({ run }) => run));
  return (
    <section>
      <p class="crumb">
        <a href="#/runs">Batch jobs</a>
      </p>
      <div class="title">
        <h1>{ids.length} runs compared</h1>
      </div>
      {error && <Problem error={error} again={again} />}
      <section class="card" aria-labelledby="overlay">
        <h2 id="overlay">Metrics</h2>
        <Curves
          runs={value.map(({ rows }, i) => ({ label: labels[i]!, rows }))}
          empty={open ? "Metrics appear here as the runs write them." : "The runs have no metrics."}
        />
      </section>
      <Differences runs={value.map(({ run }) => run)} labels={labels} />
    </section>
  );
}

/** Titles; where two are the same, with the end of the id. */
function labelsOf(runs: JobRun[]): string[] {
  const titles = runs.map(titleOf);
  return runs.map((run, i) =>
    titles.filter((title) => title === titles[i]).length > 1 ? `${titles[i]} …${run.id.slice(-4)}` : titles[i]!,
  );
}

function Differences({ runs, labels }: { runs: JobRun[]; labels: string[] }) {
  const fields = [...new Set(runs.flatMap(({ config }) => Object.keys(config)))];
  const differing = fields.filter((name) => new Set(runs.map(({ config }) => JSON.stringify(config[name]))).size > 1);
  return (
    <section class="card" aria-labelledby="differences">
      <h2 id="differences">Fields that differ</h2>
      {differing.length === 0 ? (
        <p class="faint">The configs are the same.</p>
      ) : (
        <div class="scroll" tabIndex={0} role="region" aria-label="Table of differing fields">
          <table>
            <thead>
              <tr>
                <th scope="col">Field</th>
                {runs.map((run, i) => (
                  <th scope="col" key={run.id}>
                    <a href={address(["runs", run.id])}>{labels[i]}</a>
                  </th>
                ))}
              </tr>
            </thead>
            <tbody>
              {differing.map((name) => (
                <tr key={name}>
                  <th scope="row">{name}</th>
                  {runs.map(({ id, config }) => (
                    <td key={id} class="break">
                      {shown(config[name])}
                    </td>
                  ))}
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
    </section>
  );
}
