// The alarm of a reward that rises while the text leaves what the frozen model writes.

import type { JobEvent } from "../api";
import { number } from "../format";

export const CODE = "over_optimization";

const TEXTS: Record<string, { name: string; low: string; high: string }> = {
  perplexity: {
    name: "perplexity under the frozen model",
    low: "the text is more predictable than what the frozen model writes, as a stock phrase is",
    high: "the frozen model would hardly write such text",
  },
  distinct_2: {
    name: "share of word pairs that differ",
    low: "the text repeats itself",
    high: "the text repeats less than the frozen model does",
  },
  length: {
    name: "length in tokens",
    low: "answers are much shorter",
    high: "answers are much longer",
  },
};

export function OverOptimization({ events }: { events: JobEvent[] }) {
  const alarm = events.find(({ data }) => data.code === CODE);
  const measures = alarm?.data.measures;
  if (!measures?.length) return null;
  return (
    <section class="warn" aria-labelledby="alarm">
      <h2 id="alarm">The model may satisfy the grader without doing what you want</h2>
      <p>Its reward rose, and its text is no longer like the frozen model’s:</p>
      <ul>
        {measures.map(({ measure, median, frozen_low, frozen_high }) => {
          const text = TEXTS[measure];
          return (
            <li key={measure}>
              {text?.name ?? measure}: the median is {number(median, 2)}, where nine in ten answers of the frozen model
              have {number(frozen_low, 2)} to {number(frozen_high, 2)}
              {text && ` – ${median < frozen_low ? text.low : text.high}`}
            </li>
          );
        })}
      </ul>
      <p>
        Read the samples below. If they are not what you want, the grader rewards something else: let it also take away
        reward for what is wrong with them, and start a new job. If they are fine, nothing has to be done.
      </p>
    </section>
  );
}
