// What each tilt and strength gave at one row, against how far it goes from the frozen model.

import type { JobEvent, TiltTrial } from "../api";
import { Chart } from "../Chart";
import { halfWidth, intervalName, number } from "../format";

type Measured = TiltTrial & { kl: number; round: number };

export function Tilts({ events }: { events: JobEvent[] }) {
  const rounds = newestRounds(events);
  const trials = rounds.flatMap((tried, round) => tried.map((trial) => ({ ...trial, round })));
  const measured = trials.filter((trial): trial is Measured => typeof trial.kl === "number");
  const byKl = measured.toSorted((a, b) => a.kl - b.kl);
  const curves = rounds.flatMap((_, round) => {
    const ofRound = measured.filter((trial) => trial.round === round);
    const names = new Set(ofRound.flatMap((trial) => curveName(trial) ?? []));
    return [...names].map((name) => {
      const isOf = (trial: Measured) => trial.round === round && (curveName(trial) ?? name) === name;
      return {
        name: rounds.length > 1 ? `${name}, round ${round + 1}` : name,
        values: byKl.map((trial) => (isOf(trial) ? trial.reward : null)),
        halfWidths: byKl.map((trial) => (isOf(trial) ? halfWidth(trial) : null)),
      };
    });
  });
  if (!curves.length) return null;
  return (
    <section class="card" aria-labelledby="tilts">
      <h2 id="tilts">Reward against KL</h2>
      <p class="faint">
        Tilts at several strengths, one row on prompts that the iteration held out of its training, by nats from the
        frozen model. Those of a later round are added to the one that the round before chose. Bars: {intervalName(measured)}.{" "}
        {choice(measured.filter(({ chosen }) => chosen))}
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

/** The curve of a trial. Null: of the policy of the rollouts, from which every curve starts. */
function curveName({ kind, sharpness, repetition_penalty: penalty }: TiltTrial): string | null {
  if (kind !== "none") return kind;
  const settings = [...(sharpness ? ["temperature"] : []), ...(penalty ? ["repetition penalty"] : [])];
  return settings.length > 0 ? `${settings.join(" and ")} alone` : null;
}

/** The trials of the newest iteration, a list for each round. */
function newestRounds(events: JobEvent[]): TiltTrial[][] {
  const newest = events.find(({ data }) => data.tilts)?.data.step;
  const rounds = events.filter(({ data }) => data.tilts && data.step === newest).toReversed();
  return rounds.map(({ data }) => data.tilts ?? []);
}

function choice(chosen: Measured[]): string {
  const last = chosen.at(-1);
  if (!last) return "Chosen: none, because none is surely better than the model that the rollouts were drawn from.";
  const steps = chosen.map(({ kind, strength, sharpness, repetition_penalty: penalty }, round) => {
    const settings = [
      ...(penalty ? [`repetition penalty ${penalty}`] : []),
      ...(sharpness ? [`temperature ${number(1 / (1 + sharpness), 2)}`] : []),
    ];
    if (kind === "none") return `${round ? ", then with " : "the frozen model with "}${settings.join(", ")}`;
    return `${round ? ", and added to it " : ""}${[`${kind} at strength ${strength}`, ...settings].join(", ")}`;
  });
  return `Chosen: ${steps.join("")}, reward ${number(last.reward)} at ${number(last.kl, 1)} nats.`;
}
