// The tokens of an answer, in the spans of its text, and the colour of each.

import type { Logprobs } from "../stream";

export interface Token {
  text: string;
  probability: number; // under the frozen model
  logRatio?: number | null; // log of the aligned model's probability over the frozen model's
  gain?: number | null; // what the token adds to the value
  alternatives: { text: string; probability: number }[];
}

export function tokensOf(logprobs: Logprobs): Token[] {
  if (logprobs.content)
    return logprobs.content.map((entry) => ({
      text: entry.token,
      probability: Math.exp(entry.logprob),
      logRatio: entry.log_ratio,
      gain: entry.value,
      alternatives: (entry.top_logprobs ?? []).map(({ token, logprob }) => ({
        text: token,
        probability: Math.exp(logprob),
      })),
    }));
  return (logprobs.tokens ?? []).map((text, i) => ({
    text,
    probability: Math.exp(logprobs.token_logprobs![i]!),
    alternatives: Object.entries(logprobs.top_logprobs?.[i] ?? {})
      .map(([other, logprob]) => ({ text: other, probability: Math.exp(logprob) }))
      .sort((a, b) => b.probability - a.probability),
  }));
}

/** The text in spans, one a token; tokens that are parts of a character share one, with the least of their probabilities. */
export function aligned(text: string, tokens: Token[]): Token[] {
  const spans: Token[] = [];
  let place = 0;
  let least = 1;
  const rest = (end: number) => spans.push({ text: text.slice(place, end), probability: least, alternatives: [] });
  for (const token of tokens) {
    const start = token.text && !token.text.includes("\ufffd") ? text.indexOf(token.text, place) : -1;
    if (start < 0) {
      least = Math.min(least, token.probability);
      continue;
    }
    if (start > place) rest(start);
    spans.push(token);
    place = start + token.text.length;
    least = 1;
  }
  if (place < text.length) rest(text.length);
  return spans;
}

export type Colouring = "none" | "probability" | "log_ratio" | "value";

export const COLOURINGS: Record<Colouring, string> = {
  none: "nothing",
  probability: "probability under the frozen model",
  log_ratio: "what the alignment changes",
  value: "what they add to the value",
};

const UNLIKELY = [0.5, 0.1, 0.02]; // probabilities: a token below one more of them is coloured more strongly
const SHIFTS = [0.1, 0.5, 1.5]; // nats, and shares of the largest gain's size times 2
const GAINS = [0.1, 0.35, 0.7]; // of the largest gain of the answer

/** The class of a token's colour; `largest`: the size of the answer's largest gain. */
export function colourOf(token: Token, colouring: Colouring, largest: number): string | undefined {
  if (colouring === "probability") {
    const level = UNLIKELY.filter((limit) => token.probability < limit).length;
    return level ? `unlikely-${level}` : undefined;
  }
  if (colouring === "log_ratio") return signed(token.logRatio, SHIFTS);
  if (colouring === "value") return signed(largest ? (token.gain ?? 0) / largest : 0, GAINS);
  return undefined;
}

function signed(amount: number | null | undefined, limits: number[]): string | undefined {
  const level = limits.filter((limit) => Math.abs(amount ?? 0) >= limit).length;
  return level ? `${amount! > 0 ? "more" : "less"}-${level}` : undefined;
}

export const largestGain = (tokens: Token[]): number =>
  tokens.reduce((largest, { gain }) => Math.max(largest, Math.abs(gain ?? 0)), 0);

/** Why no token of a finished answer has this colour; null where they can have it. */
export function missing(tokens: Token[], colouring: Colouring): string | null {
  if (colouring === "log_ratio" && !tokens.some(({ logRatio }) => typeof logRatio === "number"))
    return "No log-ratios: this model draws from the frozen model's own probabilities.";
  if (colouring === "value" && !tokens.some(({ gain }) => typeof gain === "number"))
    return "No values: this model has no value functions.";
  return null;
}
