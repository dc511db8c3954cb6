// All jobs, newest first: the newest hundred are read anew, older ones as they are asked for.

import type { Job } from "../api";
import { listJobs } from "../api";
import { date, duration, graderTitle, nameWithout } from "../format";
import { useNewest } from "../hooks";
import { Badge, Problem } from "../parts";
import { address } from "../router";

const EVERY = 2000; // milliseconds

export function JobList() {
  const { rows: jobs, hasMore, error, again, showOlder, olderError } = useNewest(listJobs, EVERY, "jobs");
  return (
    <section>
      <div class="title">
        <h1>Jobs</h1>
        <a class="button main" href="#/new">
          New job
        </a>
      </div>
      {error && <Problem error={error} again={again} />}
      {jobs && (jobs.length === 0 ? <NoJobs /> : <Table jobs={jobs} />)}
      {!jobs && !error && <p class="faint">Loading …</p>}
      {hasMore && <button onClick={() => void showOlder()}>Older jobs</button>}
      {olderError && <Problem error={olderError} />}
    </section>
  );
}

function NoJobs() {
  return (
    <div class="card empty">
      <h2>No jobs yet</h2>
      <p>
        A job aligns the frozen model to a score that you define: give it example prompts and a grader, and it learns to
        steer the model towards answers that score high.
      </p>
      <a class="button main" href="#/new">
        Start your first job
      </a>
    </div>
  );
}

function Table({ jobs }: { jobs: Job[] }) {
  return (
    <div class="scroll" tabIndex={0} role="region" aria-label="Table of jobs">
      <table>
        <thead>
          <tr>
            <th scope="col">Job</th>
            <th scope="col">Status</th>
            <th scope="col">Grader</th>
            <th scope="col">Created</th>
            <th scope="col">Ran</th>
          </tr>
        </thead>
        <tbody>
          {jobs.map((job) => (
            <tr key={job.id}>
              <td>
                <a class="clip" href={address(["jobs", job.id])} title={nameOf(job)}>
                  {nameWithout(job.model, nameOf(job))}
                  {nameOf(job) === job.iro.suffix && <span class="faint small"> {job.id}</span>}
                </a>
              </td>
              <td>
                <Badge status={job.status} />
                {job.error && <div class="faint small">{job.error.code}</div>}
                {!!job.iro.jobs_ahead && <div class="faint small">after {job.iro.jobs_ahead} more</div>}
              </td>
              <td>
                <span class="clip">{graderName(job)}</span>
              </td>
              <td class="nowrap">{date(job.created_at)}</td>
              <td class="nowrap">{ranOf(job)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

/** The aligned model's name, until there is one what the user called it, else the job's id. */
export const nameOf = (job: Job): string => job.fine_tuned_model ?? job.iro.suffix ?? job.id;

export const graderName = ({ method }: Job): string => graderTitle(method.reinforcement.grader);

const ageOf = ({ created_at, finished_at }: Job): number => (finished_at ?? Date.now() / 1000) - created_at;

/** How long it waited in the queue or was paused. */
export const waitedOf = (job: Job): string => duration(ageOf(job) - (job.iro.ran_seconds ?? 0));

/** How long it ran; of a job from before that was counted, since it was created. */
export function ranOf(job: Job): string {
  const { ran_seconds } = job.iro;
  if (!ran_seconds && ran_seconds !== null) return "–";
  const left = job.status === "running" && job.estimated_finish ? job.estimated_finish - Date.now() / 1000 : 0;
  const passed = duration(ran_seconds ?? ageOf(job));
  return left > 0 ? `${passed}, about ${duration(left)} left` : passed;
}
