// An answer's tokens in colours; the one under the pointer, or reached by the arrow keys, with its alternatives.

import { useState } from "preact/hooks";
import { number } from "../format";
import type { Colouring, Token } from "./tokens";
import { colourOf, largestGain, missing } from "./tokens";

interface Props {
  tokens: Token[];
  colouring: Colouring;
  current: number | null;
  onPoint: (place: number) => void;
}

export function TokenText({ tokens, colouring, current, onPoint }: Props) {
  const largest = largestGain(tokens);
  return (
    <>
      {tokens.map((token, i) => {
        const colour = colourOf(token, colouring, largest) ?? "";
        return (
          <span class={i === current ? `${colour} current` : colour || undefined} onMouseEnter={() => onPoint(i)}>
            {token.text}
          </span>
        );
      })}
    </>
  );
}

/** The token that is pointed at, and how the arrow keys move it. */
export function useToken(count: number) {
  const [current, setCurrent] = useState<number | null>(null);
  const onKeyDown = (event: KeyboardEvent) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step || count === 0) return;
    event.preventDefault();
    setCurrent((place) => Math.max(0, Math.min(count - 1, place === null ? 0 : place + step)));
  };
  return { current, setCurrent, onKeyDown };
}

export function TokenDetail({ tokens, colouring, current }: Omit<Props, "onPoint">) {
  const reason = missing(tokens, colouring);
  const token = current === null ? undefined : tokens[current];
  if (!token) return <p class="faint small">{reason ?? "Point at a token, or use the arrow keys in the answer."}</p>;
  return (
    <p class="small token" aria-live="polite">
      <code>{visible(token.text)}</code> {factsOf(token).join(" · ")}
      {token.alternatives.length > 0 && (
        <>
          {" "}
          <span class="faint">likeliest</span>{" "}
          {token.alternatives.map(({ text, probability }) => (
            <span class="alternative">
              <code>{visible(text)}</code> {percent(probability)}
            </span>
          ))}
        </>
      )}
    </p>
  );
}

function factsOf({ probability, logRatio, gain }: Token): string[] {
  const facts = [`${percent(probability)} under the frozen model`];
  if (typeof logRatio === "number") facts.push(`log-ratio ${signedNumber(logRatio)}`);
  if (typeof gain === "number") facts.push(`adds ${signedNumber(gain)}`);
  return facts;
}

const percent = (probability: number): string =>
  probability < 1e-4 ? "< 0.01 %" : `${(100 * probability).toPrecision(2)} %`;

const signedNumber = (value: number): string => (value > 0 ? "+" : "") + number(value, 2);

const visible = (text: string): string => text.replaceAll("\n", "↵").replaceAll(" ", "␣");
