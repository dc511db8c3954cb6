// What each strength of a tilt gives at one row, and how far from the frozen model it goes.

import type { JobEvent } from "../api";
import { intervalName, number } from "../format";
import { Interval, Reward } from "./Interval";

export function Strengths({ events }: { events: JobEvent[] }) {
  const strengths = events.find(({ data }) => data.strengths)?.data.strengths; // the newest
  if (!strengths?.length) return null;
  return (
    <section class="card" aria-labelledby="strengths">
      <h2 id="strengths">Reward by strength</h2>
      <p class="faint">
        One row on the validation prompts, which are not those of the chart above. A request may set <code>search.strength</code>: a weaker tilt stays nearer to what
        the frozen model writes.
      </p>
      <div class="scroll" tabIndex={0} role="region" aria-label="Table of rewards by strength">
        <table class="numbers">
          <thead>
            <tr>
              <th scope="col">Strength</th>
              <th scope="col">Held-out reward</th>
              <th scope="col">Perplexity</th>
              <th scope="col">KL, nats</th>
              <th scope="col">KL a token</th>
              <th scope="col" class="wide">
                {intervalName(strengths)}
              </th>
            </tr>
          </thead>
          <tbody>
            {strengths.map((price) => (
              <tr key={price.name}>
                <td>{price.search.strength}</td>
                <td>
                  <Reward price={price} />
                </td>
                <td>{number(price.perplexity, 1)}</td>
                <td>{number(price.kl, 1)}</td>
                <td>{number(price.kl_per_token, 2)}</td>
                <td class="wide">
                  <Interval price={price} prices={strengths} />
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </section>
  );
}
