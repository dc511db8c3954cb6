// One job: what it is doing, its rewards, its checkpoints and its events.

import { useState } from "preact/hooks";
import type { Checkpoint, Job, JobEvent } from "../api";
import { OPEN, actOnJob, getJob, listCheckpoints } from "../api";
import { fillFrom } from "../new/again";
import { date, number } from "../format";
import { usePolled } from "../hooks";
import { Badge, ConfirmedButton, Fact, Problem, focusHeading } from "../parts";
import { address, fromHere } from "../router";
import { EventLog } from "./EventLog";
import { useEvents } from "./events";
import { Warnings } from "./Warnings";
import { graderName, nameOf, ranOf, waitedOf } from "./JobList";
import { OverOptimization } from "./OverOptimization";
import { Prices } from "./Prices";
import { Progress } from "./Progress";
import { Samples } from "./Samples";
import { Strengths } from "./Strengths";
import { Tilts } from "./Tilts";
import { ValueCorrelation } from "./ValueCorrelation";

const EVERY = 5000; // milliseconds: it is read sooner once there is an event

export function JobPage({ id }: { id: string }) {
  const [open, setOpen] = useState<boolean | null>(null); // until it has been read
  const events = useEvents(id, open);
  const { value, error, again } = usePolled(
    async (signal) => {
      const job = await getJob(id, signal);
      const checkpoints = await listCheckpoints(id, signal); // not at once: a key may allow one request at a time
      setOpen(OPEN.includes(job.status));
      return { job, checkpoints: checkpoints.data };
    },
    open === false ? null : EVERY,
    id,
    events.events[0]?.id,
  );
  const crumb = (
    <p class="crumb">
      <a href="#/jobs">Jobs</a>
    </p>
  );
  if (!value && error)
    return (
      <section>
        {crumb}
        <Problem error={error} again={again} />
      </section>
    );
  if (!value) return <p class="faint">Loading …</p>;
  return (
    <section>
      {crumb}
      <Head
        job={value.job}
        events={events.events}
        onAct={() => {
          setOpen(true);
          again();
          events.again();
        }}
      />
      {error && <Problem error={error} again={again} />}
      {value.job.error && <Failure job={value.job} />}
      <OverOptimization events={events.events} />
      <Warnings events={events.events} />
      <Progress job={value.job} events={events.events} />
      <ValueCorrelation events={events.events} />
      <Samples events={events.events} />
      <Tilts events={events.events} />
      <Strengths events={events.events} />
      <Prices events={events.events} served={isServed(value.job)} />
      <Checkpoints job={value.job} checkpoints={value.checkpoints} />
      <EventLog {...events} />
      <details class="card">
        <summary>Request</summary>
        <pre class="text" tabIndex={0}>
          {JSON.stringify(value.job.method, null, 2)}
        </pre>
      </details>
    </section>
  );
}

function Head({ job, events, onAct }: { job: Job; events: JobEvent[]; onAct: () => void }) {
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<Error | null>(null);
  const act = async (action: "cancel" | "pause" | "resume") => {
    setBusy(true);
    try {
      await actOnJob(job.id, action);
      setError(null);
    } catch (problem) {
      setError(problem as Error);
    }
    setBusy(false);
    focusHeading();
    onAct();
  };
  const startAgain = async () => {
    const goTo = fromHere();
    setBusy(true);
    try {
      await fillFrom(job);
      goTo(["new"]);
    } catch (problem) {
      setError(problem as Error);
      setBusy(false);
    }
  };
  const open = OPEN.includes(job.status);
  return (
    <>
      <div class="title">
        <h1 class="break" tabIndex={-1}>
          {nameOf(job)}
        </h1>
        <Badge status={job.status} />
        <span class="actions">
          {open && job.status !== "paused" && (
            <button disabled={busy} onClick={() => void act("pause")}>
              Pause
            </button>
          )}
          {job.status === "paused" && (
            <button class="main" disabled={busy} onClick={() => void act("resume")}>
              Resume
            </button>
          )}
          {open && (
            <ConfirmedButton
              label="Cancel"
              confirmation="End the job for good"
              disabled={busy}
              onConfirm={() => void act("cancel")}
            />
          )}
          {!open && (
            <button disabled={busy} onClick={() => void startAgain()}>
              Start again
            </button>
          )}
          {job.fine_tuned_model && (
            <a class="button main" href={compare(job, job.fine_tuned_model)}>
              Try it
            </a>
          )}
        </span>
      </div>
      {error && <Problem error={error} />}
      <dl class="facts">
        <Fact name="Model" value={job.model} />
        <Fact name="Grader" value={graderName(job)} />
        <Fact name="Created" value={date(job.created_at)} />
        {job.iro.ran_seconds !== null && <Fact name="Waited" value={waitedOf(job)} />}
        <Fact name={job.iro.ran_seconds === null ? "Time" : "Ran"} value={ranOf(job)} />
        <Fact name="Job" value={job.id} />
      </dl>
      {job.iro.improved === false && (
        <p class="warn">
          On held-out prompts that chose none of its settings, a gain is not shown.{" "}
          {isServed(job)
            ? "The model is served all the same, as keep_unproven demands."
            : "So the model answers as the frozen one does."}{" "}
          {isOfOnePrompt(events)
            ? "It was measured on a single prompt: more prompts may show a gain."
            : "More prompts, or more rollouts of each, may show a gain."}
        </p>
      )}
    </>
  );
}

const isServed = (job: Job): boolean =>
  job.iro.improved !== false || job.method.reinforcement.iro?.keep_unproven === true;

/** Whether the gain was measured on a single prompt, as `with_improvement` of training/iro/job.py then warns. */
const isOfOnePrompt = (events: JobEvent[]): boolean =>
  events.some(({ level, message }) => level === "warn" && message.includes("of a single prompt"));

function Failure({ job }: { job: Job }) {
  return (
    <div class="problem" role="alert" tabIndex={0}>
      <span class="text">
        <strong>{job.error!.code}</strong> {job.error!.message}
      </span>
    </div>
  );
}

const compare = (job: Job, model: string): string => address(["playground"], { model, job: job.id });

function Checkpoints({ job, checkpoints }: { job: Job; checkpoints: Checkpoint[] }) {
  if (checkpoints.length === 0) return null;
  return (
    <section class="card" aria-labelledby="checkpoints">
      <h2 id="checkpoints">Checkpoints</h2>
      <p class="faint">Each can be called by its name, also while the job runs.</p>
      <div class="scroll" tabIndex={0} role="region" aria-label="Table of checkpoints">
        <table>
          <thead>
            <tr>
              <th scope="col">Step</th>
              <th scope="col">Held-out reward</th>
              <th scope="col">Name</th>
              <th scope="col">
                <span class="hidden">Try it</span>
              </th>
            </tr>
          </thead>
          <tbody>
            {checkpoints.map((checkpoint) => (
              <tr key={checkpoint.id}>
                <td>{checkpoint.step_number}</td>
                <td>{number(checkpoint.metrics.full_valid_mean_reward)}</td>
                <td>
                  <code class="break">{checkpoint.fine_tuned_model_checkpoint}</code>
                </td>
                <td>
                  <a href={compare(job, checkpoint.fine_tuned_model_checkpoint)}>
                    Try <span class="hidden">step {checkpoint.step_number}</span>
                  </a>
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </section>
  );
}
