// Runs of batch jobs, newest first: the newest hundred are read anew, older ones as they are asked for. Several are
// chosen to be compared.

import { useState } from "preact/hooks";
import { date, duration } from "../format";
import { useNewest } from "../hooks";
import { Badge, Problem } from "../parts";
import { address } from "../router";
import type { JobRun } from "./api";
import { isOpen, listRuns, titleOf } from "./api";

const EVERY = 2000; // milliseconds

export function RunList() {
  const { rows, hasMore, error, again, showOlder, olderError } = useNewest(listRuns, EVERY, "runs");
  const [chosen, setChosen] = useState<string[]>([]);
  const runs = rows ?? [];
  const toggle = (id: string) =>
    setChosen(chosen.includes(id) ? chosen.filter((other) => other !== id) : [...chosen, id]);
  return (
    <section>
      <div class="title">
        <h1>Batch jobs</h1>
        <span class="actions">
          {chosen.length > 1 && (
            <a class="button" href={address(["runs", "compare"], { ids: chosen.join(",") })}>
              Compare {chosen.length} runs
            </a>
          )}
          <a class="button main" href="#/runs/new">
            New run
          </a>
        </span>
      </div>
      {error && <Problem error={error} again={again} />}
      {!rows && !error && <p class="faint">Loading …</p>}
      {rows?.length === 0 && (
        <div class="card empty">
          <h2>No runs yet</h2>
          <p>
            A run of a batch job is a study of its own: bilevel optimization, federated training, reinforcement learning,
            theory, benchmarks. It writes metrics while it runs, and figures at its end.
          </p>
          <a class="button main" href="#/runs/new">
            Start a run
          </a>
        </div>
      )}
      {runs.length > 0 && (
        <div class="scroll" tabIndex={0} role="region" aria-label="Table of runs">
          <table>
            <thead>
              <tr>
                <th scope="col">
                  <span class="hidden">Compare</span>
                </th>
                <th scope="col">Run</th>
                <th scope="col">Status</th>
                <th scope="col">Batch job</th>
                <th scope="col">Created</th>
                <th scope="col">Time</th>
              </tr>
            </thead>
            <tbody>
              {runs.map((run) => (
                <tr key={run.id}>
                  <td>
                    <input
                      type="checkbox"
                      aria-label={`Compare ${titleOf(run)}`}
                      checked={chosen.includes(run.id)}
                      onChange={() => toggle(run.id)}
                    />
                  </td>
                  <td>
                    <a class="clip" href={address(["runs", run.id])}>
                      {titleOf(run)}
                    </a>
                  </td>
                  <td>
                    <Badge status={run.status} />
                  </td>
                  <td class="nowrap">{run.kind}</td>
                  <td class="nowrap">{date(run.created_at)}</td>
                  <td class="nowrap">{timeOf(run)}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
      {runs.length > 0 && chosen.length < 2 && <p class="faint small">Choose two runs or more to compare them.</p>}
      {hasMore && <button onClick={() => void showOlder()}>Older runs</button>}
      {olderError && <Problem error={olderError} />}
    </section>
  );
}

export function timeOf(run: JobRun): string {
  const end = run.finished_at ?? (isOpen(run) ? Date.now() / 1000 : run.created_at);
  return duration(end - run.created_at);
}
