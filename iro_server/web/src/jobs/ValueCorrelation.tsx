// How well the value functions tell good answers from bad ones, by how much of the answer they have read.

import type { JobEvent } from "../api";
import { Chart } from "../Chart";

const CURVES = 4; // of the newest iterations

export function ValueCorrelation({ events }: { events: JobEvent[] }) {
  const bySteps = new Map(events.toReversed().flatMap(({ data }) => (data.by_token ? [[data.step!, data.by_token]] : [])));
  const measured = [...bySteps].sort(([a], [b]) => a - b).slice(-CURVES);
  if (!measured.some(([, { tokens }]) => tokens.length > 1)) return null;
  const x = [...new Set(measured.flatMap(([, { tokens }]) => tokens))].sort((a, b) => a - b);
  const curves = measured.map(([step, { tokens, correlation }]) => {
    const byToken = new Map(tokens.map((token, i) => [token, correlation[i]]));
    return { name: `iteration ${step}`, values: x.map((token) => byToken.get(token) ?? null) };
  });
  return (
    <section class="card" aria-labelledby="correlation">
      <h2 id="correlation">Value correlation by token</h2>
      <p class="faint">
        Correlation of the value with the reward among the answers to one held-out prompt, after so many tokens. Values
        that tell answers apart only at their end steer little.
      </p>
      <Chart label="Correlation of values with rewards by token of the answer" x={x} curves={curves} numbers whole />
    </section>
  );
}
