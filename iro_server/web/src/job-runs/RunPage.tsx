// One run of a batch job: how far it is, its metrics, figures, checks and config.

import { useRef, useState } from "preact/hooks";
import { date } from "../format";
import { usePolled } from "../hooks";
import { Badge, ConfirmedButton, Fact, Problem, focusHeading } from "../parts";
import { address, fromHere } from "../router";
import type { Check, JobRun, RunMetrics } from "./api";
import { cancelRun, deleteRun, figureUrl, getChecks, getRun, isOpen, readMetrics, titleOf } from "./api";
import { Curves } from "./Curves";
import { csv, save } from "./download";
import { shown } from "./metrics";
import { timeOf } from "./RunList";

const EVERY = 1500; // milliseconds

export function RunPage({ id }: { id: string }) {
  const [open, setOpen] = useState(true);
  const { value, error, again } = usePolled(
    async (signal) => {
      const run = await getRun(id, signal);
      setOpen(isOpen(run));
      return run;
    },
    open ? EVERY : null,
    id,
  );
  if (!value) return error ? <Problem error={error} again={again} /> : <p class="faint">Loading …</p>;
  return (
    <section>
      <p class="crumb">
        <a href="#/runs">Batch jobs</a>
      </p>
      <Head run={value} again={again} />
      {error && <Problem error={error} again={again} />}
      {value.error && (
        <div class="problem" role="alert" tabIndex={0}>
          <span class="text">
            <strong>{value.error.code}</strong> {value.error.message}
          </span>
        </div>
      )}
      <Metrics run={value} />
      {value.figures.length > 0 && !isOpen(value) && <Figures run={value} />}
      {value.status === "succeeded" && <Checks id={id} />}
      <details class="card">
        <summary>Config</summary>
        <pre class="text" tabIndex={0}>
          {JSON.stringify(value.config, null, 2)}
        </pre>
      </details>
    </section>
  );
}

function Head({ run, again }: { run: JobRun; again: () => void }) {
  const [error, setError] = useState<Error | null>(null);
  const cancel = async () => {
    try {
      await cancelRun(run.id);
      setError(null);
    } catch (problem) {
      setError(problem as Error);
    }
    focusHeading();
    again();
  };
  const remove = async () => {
    const goTo = fromHere();
    try {
      await deleteRun(run.id);
      goTo(["runs"]);
    } catch (problem) {
      setError(problem as Error);
    }
  };
  return (
    <>
      <div class="title">
        <h1 class="break" tabIndex={-1}>
          {titleOf(run)}
        </h1>
        <Badge status={run.status} />
        <span class="actions">
          {isOpen(run) && (
            <ConfirmedButton label="Cancel" confirmation="End the run for good" onConfirm={() => void cancel()} />
          )}
          <a class="button" href={address(["runs", "new"], { from: run.id })}>
            Run again
          </a>
          {!isOpen(run) && (
            <ConfirmedButton label="Delete" confirmation="Delete metrics and figures" onConfirm={() => void remove()} />
          )}
        </span>
      </div>
      {error && <Problem error={error} />}
      <dl class="facts">
        <Fact name="Batch job" value={run.kind} />
        {run.preset && <Fact name="Preset" value={run.preset} />}
        <Fact name="Created" value={date(run.created_at)} />
        <Fact name="Time" value={timeOf(run)} />
        <Fact name="Run" value={run.id} />
      </dl>
      {isOpen(run) && (
        <p class="faint" role="status">
          {run.progress && (
            <>
              <progress
                max={run.progress.total}
                value={run.progress.done}
                aria-label="Steps"
              />{" "}
              step {run.progress.done} of {run.progress.total}
              {run.message && " · "}
            </>
          )}
          {run.message}
          {!run.progress && !run.message && (run.status === "queued" ? "Waits for its turn." : "Starts.")}
        </p>
      )}
    </>
  );
}

function Metrics({ run }: { run: JobRun }) {
  const last = useRef<RunMetrics | undefined>(undefined);
  const { value, error, again } = usePolled(
    async (signal) => (last.current = await readMetrics(run, last.current, signal)),
    null,
    run.id,
    `${run.attempts} ${run.metrics_bytes}`,
  );
  const rows = value?.rows ?? [];
  return (
    <section class="card" aria-labelledby="metrics">
      <div class="title">
        <h2 id="metrics">Metrics</h2>
        {rows.length > 0 && (
          <span class="actions">
            <button onClick={() => save(csv(rows), `${run.kind}-metrics.csv`)}>All metrics as CSV</button>
          </span>
        )}
      </div>
      {error && <Problem error={error} again={again} />}
      <Curves runs={[{ label: titleOf(run), rows }]} empty={withoutMetrics(run)} />
    </section>
  );
}

function withoutMetrics(run: JobRun): string {
  if (isOpen(run)) return "Metrics appear here as the run writes them.";
  if (run.attempts === 0) return "The run was cancelled before it started: there are no metrics.";
  return run.metrics_bytes ? "Reading the metrics …" : "The run ended before it wrote metrics.";
}

function Figures({ run }: { run: JobRun }) {
  return (
    <section class="card" aria-labelledby="figures">
      <h2 id="figures">Figures</h2>
      {run.figures.map((name) => (
        <Figure key={name} id={run.id} name={name} />
      ))}
    </section>
  );
}

function Figure({ id, name }: { id: string; name: string }) {
  const { value, error, again } = usePolled((signal) => figureUrl(id, name, signal), null, `${id} ${name}`);
  return (
    <figure>
      {error && <Problem error={error} again={again} />}
      {value && <img src={value} alt={`Figure ${name} of the run`} />}
      <figcaption class="small">
        {name}{" "}
        {value && (
          <a href={value} download={`${name}.png`}>
            PNG<span class="hidden"> of {name}</span>
          </a>
        )}
      </figcaption>
    </figure>
  );
}

function Checks({ id }: { id: string }) {
  const { value, error, again } = usePolled((signal) => getChecks(id, signal), null, id);
  if (error) return <Problem error={error} again={again} />;
  if (!value?.length) return null;
  return (
    <section class="card" aria-labelledby="checks">
      <h2 id="checks">Checks</h2>
      <div class="scroll" tabIndex={0} role="region" aria-label="Table of checks">
        <table>
          <thead>
            <tr>
              <th scope="col">Holds</th>
              <th scope="col">Claim</th>
              <th scope="col">Expected</th>
              <th scope="col">Got</th>
            </tr>
          </thead>
          <tbody>
            {value.map((check: Check) => (
              <tr key={check.name}>
                <td class={check.holds ? "good" : "bad"}>{check.holds ? "yes" : "no"}</td>
                <td class="break">{check.name}</td>
                <td class="break">{shown(check.expected)}</td>
                <td class="break">{shown(check.got)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </section>
  );
}
