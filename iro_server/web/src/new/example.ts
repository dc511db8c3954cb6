// A job that one may start at once: openings of film reviews, and praise as the score. No sandbox is needed for it.

import type { Draft } from "./graders";
import { EMPTY } from "./graders";
import type { Options } from "./options";

const NOUNS = ["film", "story", "acting", "music", "script", "cast", "ending", "director"];
const OPENINGS = [
  "The NOUN was",
  "I thought the NOUN",
  "In my opinion, the NOUN",
  "Everyone said that the NOUN",
  "As for the NOUN, it",
  "What a NOUN! It",
  "The NOUN of this one is",
  "My friend found the NOUN",
];

export const EXAMPLE_ROWS = OPENINGS.flatMap((opening) =>
  NOUNS.map((noun) => JSON.stringify({ prompt: opening.replace("NOUN", noun) })),
).join("\n");

export const EXAMPLE_GRADER: Draft = {
  ...EMPTY,
  kind: "words",
  words:
    "good, great, love, best, beautiful, wonderful, excellent, enjoy, amazing, perfect, brilliant, interesting, very, really",
};

// Few prompts are held out, so each is searched four times: else chance hides the gain.
export const EXAMPLE_OPTIONS: Options = {
  suffix: "praise",
  iterations: "1",
  rollouts_per_prompt: "8",
  max_tokens: "24",
  eval_samples: "4",
};
