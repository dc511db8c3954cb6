// The rewards of a table with their 95 % intervals, on the range of all of them.

import type { Price } from "../api";
import { number } from "../format";

export function Reward({ price: { reward, error } }: { price: Price }) {
  return (
    <>
      {number(reward)}
      {typeof error === "number" && `\u00a0±\u00a0${number(1.96 * error, 2)}`}
    </>
  );
}

/** A bar from end to end of the interval, on the range of the intervals of all `prices`. */
export function Interval({ price, prices }: { price: Price; prices: Price[] }) {
  const band = interval(price);
  if (!band) return null;
  const ends = prices.flatMap((each) => interval(each) ?? []);
  const low = Math.min(...ends);
  const range = Math.max(...ends) - low || 1;
  const place = (reward: number) => (100 * (reward - low)) / range;
  return (
    <div class="interval" aria-hidden="true">
      <i style={{ left: `${place(band[0])}%`, width: `${place(band[1]) - place(band[0])}%` }} />
      <b style={{ left: `${place(price.reward!)}%` }} />
    </div>
  );
}

function interval({ reward, error }: Price): [number, number] | null {
  return typeof reward === "number" ? [reward - 1.96 * (error ?? 0), reward + 1.96 * (error ?? 0)] : null;
}
