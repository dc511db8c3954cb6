// One eval: its runs by criterion, and the items of one run, or of two side by side.

import { useState } from "preact/hooks";
import { date, nameWithout, number } from "../format";
import { usePolled } from "../hooks";
import { ConfirmedButton, Field, Problem, focusHeading } from "../parts";
import { address } from "../router";
import { Items } from "./Items";
import type { EvalRun } from "./api";
import { PAGE, cancelRun, deleteRun, getEval, listRuns, thresholdOf } from "./api";

const EVERY = 2000; // milliseconds
const RUNNING: readonly string[] = ["queued", "in_progress"];

export function EvalPage({ id, base }: { id: string; base: string }) {
  const [open, setOpen] = useState(true);
  const [most, setMost] = useState(PAGE); // runs
  const [picked, setPicked] = useState<{ run?: string; other?: string }>({});
  const { value, error, again } = usePolled(
    async (signal) => {
      const [evaluation, runs] = await Promise.all([getEval(id, signal), listRuns(id, most, signal)]);
      setOpen(runs.data.some(isOpen));
      return { evaluation, runs: runs.data, hasMore: runs.has_more };
    },
    open ? EVERY : null,
    id,
  );
  const [actError, setActError] = useState<Error | null>(null);
  const act = async (action: typeof cancelRun | typeof deleteRun, run: EvalRun) => {
    try {
      await action(id, run.id);
      setActError(null);
    } catch (problem) {
      setActError(problem as Error);
    }
    focusHeading();
    again();
  };
  if (!value) return error ? <Problem error={error} again={again} /> : <p class="faint">Loading …</p>;
  const { evaluation, runs, hasMore } = value;
  const readMore = () => {
    setMost(most + PAGE);
    again();
  };
  const run = runs.find((each) => each.id === picked.run) ?? runs[0];
  const other = runs.find((each) => each.id === picked.other && each !== run);
  return (
    <section>
      <p class="crumb">
        <a href="#/evals">Evals</a>
      </p>
      <div class="title">
        <h1 class="break" tabIndex={-1}>{evaluation.name || evaluation.id}</h1>
        <a class="button main" href={address(["evals", id, "new"])}>
          New run
        </a>
      </div>
      {error && <Problem error={error} again={again} />}
      {actError && <Problem error={actError} />}
      {!run && <p class="card faint">No runs yet.</p>}
      {run && (
        <>
          <Runs
            runs={runs}
            base={base}
            shown={[run, other]}
            thresholds={evaluation.testing_criteria.map(thresholdOf)}
            onAct={(action, run) => void act(action, run)}
          />
          {hasMore && <button onClick={readMore}>More runs</button>}
          <div class="pair">
            <RunSelect
              id="run"
              label="Run"
              runs={runs}
              base={base}
              value={run.id}
              onChange={(next) => setPicked({ ...picked, run: next })}
            />
            <RunSelect
              id="other"
              label="Compared with"
              runs={runs.filter((each) => each !== run)}
              base={base}
              value={other?.id ?? ""}
              open
              onChange={(next) => setPicked({ run: run.id, other: next })}
            />
          </div>
          <Items key={`${run.id} ${other?.id}`} run={run} other={other} />
        </>
      )}
    </section>
  );
}

/** The model first, by where it differs: runs often have the same name. */
const titleOf = ({ name, model, id }: EvalRun, base: string): string =>
  [model && nameWithout(base, model), name || id].filter(Boolean).join(" · ");

const isOpen = ({ status }: EvalRun): boolean => RUNNING.includes(status);

interface SelectProps {
  id: string;
  label: string;
  runs: EvalRun[];
  base: string;
  value: string;
  open?: boolean; // whether none may be chosen
  onChange: (id: string) => void;
}

const RunSelect = ({ id, label, runs, base, value, open, onChange }: SelectProps) => (
  <Field id={id} label={label}>
    <select id={id} value={value} onChange={(event) => onChange(event.currentTarget.value)}>
      {open && <option value="">no other run</option>}
      {runs.map((run) => (
        <option value={run.id}>{titleOf(run, base)}</option>
      ))}
    </select>
  </Field>
);

interface RunsProps {
  runs: EvalRun[];
  base: string;
  shown: (EvalRun | undefined)[];
  thresholds: number[]; // of the criteria
  onAct: (action: typeof cancelRun | typeof deleteRun, run: EvalRun) => void;
}

function Runs({ runs, base, shown, thresholds, onAct }: RunsProps) {
  const criteria = runs[0]!.per_testing_criteria_results.map(({ testing_criteria }) => testing_criteria);
  return (
    <section class="card" aria-labelledby="runs">
      <h2 id="runs">Runs</h2>
      <div class="scroll" tabIndex={0} role="region" aria-label="Table of runs">
        <table class="numbers">
          <thead>
            <tr>
              <th scope="col">Run</th>
              <th scope="col">Status</th>
              <th scope="col">Passed</th>
              {criteria.map((name, i) => (
                <th scope="col">
                  <span class="clip">{name}</span>
                  <div>passes from {Number(thresholds[i]!.toPrecision(4))}</div>
                </th>
              ))}
              <th scope="col">Created</th>
              <th scope="col">
                <span class="hidden">Actions</span>
              </th>
            </tr>
          </thead>
          <tbody>
            {runs.map((run) => (
              <tr key={run.id} class={shown.includes(run) ? "shown" : undefined}>
                <td>
                  <span class="clip" title={[run.model, run.name, run.id].filter(Boolean).join(" · ")}>
                    {titleOf(run, base)}
                  </span>
                  {run.error && <div class="bad text small">{run.error.message}</div>}
                </td>
                <td>{run.status.replace("_", " ")}</td>
                <td>
                  {run.result_counts.passed} of {run.result_counts.total}
                  {run.result_counts.errored > 0 && (
                    <div class="bad small">
                      {run.result_counts.errored === 1 ? "1 error" : `${run.result_counts.errored} errors`}
                    </div>
                  )}
                </td>
                {criteria.map((_, i) => (
                  <td>{number(run.per_testing_criteria_results[i]?.mean_score)}</td>
                ))}
                <td class="nowrap">{date(run.created_at)}</td>
                <td class="nowrap">
                  <RunButton key={isOpen(run) ? "cancel" : "delete"} run={run} onAct={onAct} />
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      <p class="faint small">Criteria: mean scores.</p>
    </section>
  );
}

const RunButton = ({ run, onAct }: { run: EvalRun } & Pick<RunsProps, "onAct">) =>
  isOpen(run) ? (
    <ConfirmedButton label="Cancel" confirmation="End the run for good" onConfirm={() => onAct(cancelRun, run)} />
  ) : (
    <ConfirmedButton label="Delete" confirmation="Delete the run" onConfirm={() => onAct(deleteRun, run)} />
  );
