// One answer as it streams, and what it is worth.

import type { Grader } from "../api";
import { runGrader } from "../api";
import { complete, isChat, textOf } from "../completion";
import type { Chunk, Usage } from "../stream";

export interface Token {
  text: string;
  probability: number; // under the frozen model
}

export interface Answer {
  text: string;
  state: "streaming" | "done" | "stopped" | "failed";
  seconds: number;
  cut: boolean; // by the maximum length
  usage: Usage | null;
  tokens: Token[];
  reward: number | null;
  graderError: string | null;
  error: Error | null;
}

const BEGUN: Answer = {
  text: "",
  state: "streaming",
  seconds: 0,
  cut: false,
  usage: null,
  tokens: [],
  reward: null,
  graderError: null,
  error: null,
};

export interface Request {
  model: string;
  row: Record<string, unknown>;
  options: Record<string, unknown>;
  grader: Grader | null;
  logprobs: boolean; // wanted, of a model that has them
}

/** Calls `show` with each state of the answer, and never throws. */
export async function answer(request: Request, signal: AbortSignal, show: (answer: Answer) => void): Promise<void> {
  const started = performance.now();
  let current = BEGUN;
  const update = (fields: Partial<Answer>) => {
    current = {
      ...current,
      ...fields,
      seconds: current.state === "streaming" ? (performance.now() - started) / 1000 : current.seconds,
    };
    show(current);
  };
  try {
    update({});
    const logprobs = request.logprobs ? { logprobs: isChat(request.row) ? true : 0 } : {};
    for await (const chunk of complete(request.model, request.row, { ...request.options, ...logprobs }, signal)) {
      const choice = chunk.choices[0];
      update({
        text: current.text + textOf(chunk),
        usage: chunk.usage ?? current.usage,
        cut: choice?.finish_reason === "length" || current.cut,
        tokens: choice?.logprobs ? [...current.tokens, ...tokensOf(choice.logprobs)] : current.tokens,
      });
    }
    update({ state: "done", tokens: aligned(current.text, current.tokens) });
    if (request.grader) {
      const graded = await runGrader(request.grader, current.text, request.row, signal);
      update(graded.iro.error ? { graderError: graded.iro.error } : { reward: graded.reward });
    }
  } catch (error) {
    if (signal.aborted) update({ state: "stopped" });
    else if (current.state === "done") update({ graderError: (error as Error).message });
    else update({ state: "failed", error: error as Error });
  }
}

function tokensOf(logprobs: NonNullable<Chunk["choices"][number]["logprobs"]>): Token[] {
  if (logprobs.content)
    return logprobs.content.map(({ token, logprob }) => ({ text: token, probability: Math.exp(logprob) }));
  return (logprobs.tokens ?? []).map((text, i) => ({ text, probability: Math.exp(logprobs.token_logprobs![i]!) }));
}

/** The text in spans, one a token; tokens that are parts of a character share one, with the least of their probabilities. */
function aligned(text: string, tokens: Token[]): Token[] {
  const spans: Token[] = [];
  let place = 0;
  let least = 1;
  for (const token of tokens) {
    const start = token.text && !token.text.includes("\ufffd") ? text.indexOf(token.text, place) : -1;
    if (start < 0) {
      least = Math.min(least, token.probability);
      continue;
    }
    if (start > place) spans.push({ text: text.slice(place, start), probability: least });
    spans.push(token);
    place = start + token.text.length;
    least = 1;
  }
  if (place < text.length) spans.push({ text: text.slice(place), probability: least });
  return spans;
}
