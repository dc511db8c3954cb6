// What each tilt and strength gave at one row, against how far it goes from the frozen model.

import type { JobEvent, TiltTrial } from "../api";
import { Chart } from "../Chart";
import { number } from "../format";

type Measured = TiltTrial & { kl: number };

export function Tilts({ events }: { events: JobEvent[] }) {
  const trials = events.find(({ data }) => data.tilts)?.data.tilts; // the newest
  const measured = (trials ?? []).filter((trial): trial is Measured => typeof trial.kl === "number");
  const kinds = [...new Set(measured.map(({ kind }) => kind))].filter((kind) => kind !== "none");
  if (!kinds.length) return null;
  const byKl = measured.toSorted((a, b) => a.kl - b.kl);
  const chosen = measured.find((trial) => trial.chosen);
  const curves = kinds.map((kind) => {
    const isOf = (trial: Measured) => trial.kind === kind || trial.kind === "none";
    return {
      name: kind,
      values: byKl.map((trial) => (isOf(trial) ? trial.reward : null)),
      errors: byKl.map((trial) => (isOf(trial) ? trial.error : null)),
    };
  });
  return (
    <section class="card" aria-labelledby="tilts">
      <h2 id="tilts">Reward against KL</h2>
      <p class="faint">
        Tilts at several strengths, one row on held-out prompts, by nats from the frozen model. The leftmost point is the
        model that the rollouts were drawn from.{" "}
        {chosen
          ? `Chosen: ${chosen.kind} at strength ${chosen.strength}, reward ${number(chosen.reward)} at ${number(chosen.kl, 1)} nats.`
          : "Chosen: none, because none is surely better than that model."}
      </p>
      <Chart
        label="Held-out reward of each tilt against nats from the frozen model"
        x={byKl.map(({ kl }) => kl)}
        curves={curves}
        numbers
      />
    </section>
  );
}
