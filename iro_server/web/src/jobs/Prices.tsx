// What each number of rows buys: the held-out reward of the ways to serve the model.

import type { JobEvent } from "../api";
import { intervalName, number } from "../format";
import { Interval, Reward } from "./Interval";

/** `served`: whether the model answers so, and not as the frozen one. */
export function Prices({ events, served }: { events: JobEvent[]; served: boolean }) {
  const report = events.find(({ data }) => data.prices)?.data; // the newest
  const prices = report?.prices?.toSorted((a, b) => a.rows - b.rows || (a.reward ?? 0) - (b.reward ?? 0));
  if (!prices?.length) return null;
  return (
    <section class="card" aria-labelledby="prices">
      <h2 id="prices">Reward by rows</h2>
      <p class="faint">
        On the validation prompts. A request costs as many rows as are decoded at once. The cheapest way that is as good as the best is chosen, of
        those that write like the frozen model if one of them is better than it.
        {!served && " It is not served: the model answers as the frozen one."}
      </p>
      <div class="scroll" tabIndex={0} role="region" aria-label="Table of rewards by rows">
        <table class="numbers">
          <thead>
            <tr>
              <th scope="col">Rows</th>
              <th scope="col">Held-out reward</th>
              <th scope="col">Perplexity</th>
              <th scope="col">KL, nats</th>
              <th scope="col" class="wide">
                {intervalName(prices)}
              </th>
              <th scope="col" class="name">
                Way
              </th>
            </tr>
          </thead>
          <tbody>
            {prices.map((price) => (
              <tr key={price.name}>
                <td>{price.rows}</td>
                <td>
                  <Reward price={price} />
                </td>
                <td>{number(price.perplexity, 1)}</td>
                <td>{number(price.kl, 1)}</td>
                <td class="wide">
                  <Interval price={price} prices={prices} />
                </td>
                <td class="name">
                  {price.name} {price.name === report?.chosen && <span class="badge succeeded">{served ? "served" : "chosen"}</span>}
                  {!!price.over_optimization?.length && <span class="badge">unlike the frozen model</span>}
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </section>
  );
}
