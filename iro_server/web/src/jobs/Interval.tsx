// The rewards of a table with their intervals, on the range of all of them.

import type { Price } from "../api";
import { halfWidth, withInterval } from "../format";

export const Reward = ({ price }: { price: Price }) => <>{withInterval(price.reward, price)}</>;

/** A bar from end to end of the interval, on the range of the intervals of all `prices`; none of a single prompt. */
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

function interval(price: Price): [number, number] | null {
  const half = halfWidth(price);
  return typeof price.reward === "number" && half !== null ? [price.reward - half, price.reward + half] : null;
}
