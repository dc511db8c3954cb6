// Rewards by iteration as curves, and the same numbers with costs and times as a table.

import type { Job, JobEvent, Metrics } from "../api";
import { OPEN } from "../api";
import { Chart } from "../Chart";
import type { Uncertainty } from "../format";
import { count, duration, halfWidth, intervalName, number, withInterval } from "../format";

export function Progress({ job, events }: { job: Job; events: JobEvent[] }) {
  const rows = iterations(events);
  const latest = rows.at(-1);
  if (!latest) {
    const ahead = job.iro.jobs_ahead;
    const place = ahead ? `It starts after ${ahead === 1 ? "1 other job" : `${ahead} other jobs`} of yours. ` : "";
    const waiting = `${place}Rewards appear here after the first measurement of the frozen model.`;
    const ended = "The job ended before the frozen model was measured: there are no rewards.";
    return <p class="card faint">{OPEN.includes(job.status) ? waiting : ended}</p>;
  }
  const measured = curves(rows);
  return (
    <section class="card" aria-labelledby="rewards">
      <div class="title">
        <h2 id="rewards">Reward by iteration</h2>
        <span class="faint">
          iteration {latest.step} of {latest.total_steps}
        </span>
      </div>
      <Headline rows={rows} isProven={job.iro.improved !== false} />
      {overoptimises(rows) && (
        <p class="warn" role="status">
          The training reward rose while the held-out reward fell: the last iteration may exploit the training prompts.
        </p>
      )}
      {measured.length > 0 && (
        <Chart
          label="Reward by iteration; the table below has the numbers"
          x={rows.map((row) => row.step ?? 0)}
          curves={measured}
        />
      )}
      <Table rows={rows} />
      <p class="faint small">± and the band: {intervalName(rows.map(uncertainty))} over held-out prompts.</p>
    </section>
  );
}

/** Metrics by step; of a step that a restarted worker told again, the last. */
function iterations(events: JobEvent[]): Metrics[] {
  const metrics = events.filter((event) => event.type === "metrics" && event.data.step !== undefined);
  const bySteps = new Map(metrics.toReversed().map(({ data }) => [data.step, data]));
  return [...bySteps.values()].sort((a, b) => a.step! - b.step!);
}

function curves(rows: Metrics[]) {
  const bestOfN = rows[0]?.best_of_n;
  const all = [
    {
      name: "held out",
      values: rows.map((row) => row.full_valid_mean_reward),
      halfWidths: rows.map((row) => halfWidth(uncertainty(row))),
    },
    { name: "training", values: rows.map((row) => row.train_mean_reward) },
    { name: "held out, picked by the grader", values: rows.map((row) => row.valid_grader_pick) },
    { name: "frozen model, best of n by the grader", values: rows.map(() => bestOfN), dashed: true },
  ];
  return all.filter(({ values }) => values.some((value) => value !== null && value !== undefined));
}

function Headline({ rows, isProven }: { rows: Metrics[]; isProven: boolean }) {
  const base = rows.find((row) => row.step === 0)?.full_valid_mean_reward;
  const validated = rows.filter((row) => row.step !== 0 && typeof row.full_valid_mean_reward === "number");
  const best = validated.sort((a, b) => b.full_valid_mean_reward! - a.full_valid_mean_reward!)[0];
  return (
    <p class="headline">
      {typeof base === "number" && (
        <span>
          frozen model <b>{number(base)}</b>
        </span>
      )}
      {best && (
        <span>
          best iteration <b class={isProven ? "good" : ""}>{number(best.full_valid_mean_reward)}</b>
        </span>
      )}
      {typeof rows[0]?.best_of_n === "number" && (
        <span>
          best of n by the grader <b>{number(rows[0].best_of_n)}</b>
        </span>
      )}
    </p>
  );
}

function overoptimises(rows: Metrics[]): boolean {
  const [before, last] = rows.filter((row) => row.step !== 0).slice(-2);
  if (!before || !last) return false;
  const rose = (last.train_mean_reward ?? 0) > (before.train_mean_reward ?? Infinity);
  return rose && (last.full_valid_mean_reward ?? Infinity) < (before.full_valid_mean_reward ?? -Infinity);
}

const uncertainty = ({ full_valid_error, full_valid_half_width }: Metrics): Uncertainty => ({
  error: full_valid_error,
  half_width: full_valid_half_width,
});

const graderErrors = (row: Metrics): number =>
  (row.errors?.graders ?? [])
    .flatMap((grader) => Object.entries(grader))
    .filter(([name]) => name.endsWith("_count"))
    .reduce((sum, [, value]) => sum + Number(value), 0);

const graderTokens = (row: Metrics): number =>
  (row.usage?.graders ?? [])
    .flatMap((model) => Object.entries(model))
    .filter(([name]) => name.endsWith("_tokens_count"))
    .reduce((sum, [, value]) => sum + Number(value), 0);

const COLUMNS: { name: string; value: (row: Metrics) => string }[] = [
  { name: "Iteration", value: (row) => (row.step === 0 ? "frozen" : String(row.step)) },
  { name: "Training", value: (row) => number(row.train_mean_reward) },
  { name: "Held out", value: (row) => withInterval(row.full_valid_mean_reward, uncertainty(row)) },
  { name: "Value correlation", value: (row) => number(row.stack_correlation, 2) },
  { name: "Tokens each", value: (row) => number(row.completion_tokens_mean, 0) },
  { name: "Base tokens", value: (row) => count(row.usage?.base_tokens) },
  { name: "Grader errors", value: (row) => (row.errors ? count(graderErrors(row)) : "–") },
  { name: "Grader tokens", value: (row) => count(graderTokens(row) || null) },
];
const STAGES = ["sampling", "training", "choosing", "eval"] as const;

function Table({ rows }: { rows: Metrics[] }) {
  const columns = COLUMNS.filter(({ value }) => rows.some((row) => value(row) !== "–"));
  const longest = Math.max(...rows.map((row) => row.timing?.step?.full_iteration ?? 0));
  return (
    <div class="scroll" tabIndex={0} role="region" aria-label="Table of iterations">
      <table class="numbers">
        <thead>
          <tr>
            {columns.map(({ name }) => (
              <th scope="col">{name}</th>
            ))}
            {longest > 0 && (
              <th scope="col" class="wide">
                Time{" "}
                {STAGES.map((stage) => (
                  <span class="key">
                    <i class={stage} /> {stage}
                  </span>
                ))}
              </th>
            )}
          </tr>
        </thead>
        <tbody>
          {rows.map((row) => (
            <tr key={row.step}>
              {columns.map(({ value }) => (
                <td>{value(row)}</td>
              ))}
              {longest > 0 && (
                <td class="wide">{row.timing?.step && <Times step={row.timing.step} longest={longest} />}</td>
              )}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

function Times({ step, longest }: { step: Record<string, number>; longest: number }) {
  return (
    <div class="times">
      {STAGES.map((stage) => (
        <i
          class={stage}
          title={`${stage}: ${duration(step[stage] ?? 0)}`}
          style={{ width: `${(60 * (step[stage] ?? 0)) / longest}%` }}
        />
      ))}
      <span>{duration(step.full_iteration ?? 0)}</span>
    </div>
  );
}
