// What each iteration answers to the same held-out prompts, side by side with the frozen model.

import { useState } from "preact/hooks";
import type { JobEvent, Sample } from "../api";
import { number } from "../format";

const COLUMNS = 4; // of the newest iterations, with the frozen model

export function Samples({ events }: { events: JobEvent[] }) {
  const [place, setPlace] = useState(0);
  const answers = samplesByStep(events);
  const prompts = answers[0]?.samples.map(({ prompt }) => prompt) ?? [];
  if (prompts.length === 0) return null;
  const current = Math.min(place, prompts.length - 1);
  const shown = answers.length > COLUMNS ? [answers[0]!, ...answers.slice(1 - COLUMNS)] : answers;
  const rewards = shown.map(({ samples }) => samples[current]?.reward ?? -Infinity);
  const best = new Set(rewards).size > 1 ? Math.max(...rewards) : null;
  return (
    <section class="card" aria-labelledby="samples">
      <div class="title">
        <h2 id="samples">Samples</h2>
        <label class="actions inline">
          Held-out prompt{" "}
          <select value={current} onChange={(event) => setPlace(Number(event.currentTarget.value))}>
            {prompts.map((_, i) => (
              <option value={i}>
                {i + 1} of {prompts.length}
              </option>
            ))}
          </select>
        </label>
      </div>
      <p class="prompt text" tabIndex={0}>
        {prompts[current]}
      </p>
      <div class="columns">
        {shown.map(({ step, samples }) => {
          const sample = samples[current];
          return (
            <article class="column-sample" key={step}>
              <h3>
                {step === 0 ? "Frozen model" : `Iteration ${step}`}
                <span class={best !== null && sample?.reward === best ? "good" : "faint"}>
                  reward {number(sample?.reward)}
                </span>
              </h3>
              <p class="answer text" tabIndex={0}>
                {sample?.completion || <span class="faint">(an empty answer)</span>}
              </p>
            </article>
          );
        })}
      </div>
    </section>
  );
}

/** The frozen model first. Of an iteration that a restarted worker repeated, the last. */
function samplesByStep(events: JobEvent[]): { step: number; samples: Sample[] }[] {
  const bySteps = new Map<number, Sample[]>();
  for (const { data } of events.toReversed()) {
    if (data.samples && data.step !== undefined) bySteps.set(data.step, data.samples); // an estimate's have no step
  }
  return [...bySteps].map(([step, samples]) => ({ step, samples })).sort((a, b) => a.step - b.step);
}
