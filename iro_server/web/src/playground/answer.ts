// One answer as it streams, and what it is worth.

import type { Grader } from "../api";
import { runGrader } from "../api";
import type { Call } from "../completion";
import { complete, isChat, textOf, withCalls } from "../completion";
import type { Usage } from "../stream";
import type { Token } from "./tokens";
import { aligned, tokensOf } from "./tokens";
import type { Tree } from "./tree";
import { EMPTY, withEvent } from "./tree";

export interface Answer {
  text: string;
  calls?: Call[]; // of functions, beside the text
  state: "streaming" | "done" | "stopped" | "failed";
  seconds: number;
  cut: boolean; // by the maximum length
  usage: Usage | null;
  tokens: Token[];
  tree: Tree;
  reward: number | null;
  graderError: string | null;
  error: string | null;
}

const BEGUN: Answer = {
  text: "",
  state: "streaming",
  seconds: 0,
  cut: false,
  usage: null,
  tokens: [],
  tree: EMPTY,
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

const TOP = 5; // alternatives to each token

const logprobOptions = (chat: boolean) => (chat ? { logprobs: true, top_logprobs: TOP } : { logprobs: TOP });

const UNGRADED_CALLS = "the answer calls a function, and only a text is graded here";

/** Without a reward where the grader fails, or the key may not grade. */
async function gradesOf(grader: Grader, text: string, row: Record<string, unknown>, signal: AbortSignal) {
  try {
    const { iro, reward } = await runGrader(grader, text, row, signal);
    return iro.error ? { graderError: iro.error } : { reward };
  } catch (problem) {
    if (signal.aborted) throw problem;
    return { graderError: (problem as Error).message };
  }
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
    const logprobs = request.logprobs ? logprobOptions(isChat(request.row)) : {};
    for await (const chunk of complete(request.model, request.row, { ...request.options, ...logprobs }, signal)) {
      const choice = chunk.choices[0];
      update({
        text: current.text + textOf(chunk),
        calls: withCalls(current.calls ?? [], chunk),
        usage: chunk.usage ?? current.usage,
        tree: chunk.search ? withEvent(current.tree, chunk.search) : current.tree,
        cut: choice?.finish_reason === "length" || current.cut,
        tokens: choice?.logprobs ? [...current.tokens, ...tokensOf(choice.logprobs)] : current.tokens,
      });
    }
    update({ state: "done", tokens: aligned(current.text, current.tokens) });
    if (request.grader) {
      const calls = current.calls?.length;
      update(calls ? { graderError: UNGRADED_CALLS } : await gradesOf(request.grader, current.text, request.row, signal));
    }
  } catch (error) {
    if (current.state === "done") update({ graderError: signal.aborted ? "stopped" : (error as Error).message });
    else if (signal.aborted) update({ state: "stopped" });
    else update({ state: "failed", error: (error as Error).message });
  }
}
