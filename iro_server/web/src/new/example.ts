// A job that one may start at once: openings of film reviews, and praise as the score. No sandbox is needed for it.

import type { Draft } from "./graders";
import { EMPTY } from "./graders";
import type { Options } from "./options";

const OPENINGS = [
  "The film", "I saw this", "The acting was", "My wife and I", "This story", "What a", "The plot", "It begins",
  "We went to", "After the first", "Nobody in", "The music", "Her voice", "At the end", "A friend", "The director",
  "This movie", "The cast", "From the start", "I expected", "The script", "Most of", "The last scene", "Last night",
];

export const EXAMPLE_ROWS = OPENINGS.map((opening) => JSON.stringify({ prompt: opening })).join("\n");

export const EXAMPLE_GRADER: Draft = { ...EMPTY, kind: "words", words: "great, love, beautiful, best, excellent, enjoy" };

export const EXAMPLE_OPTIONS: Options = { suffix: "praise", iterations: "1", max_tokens: "32" };
