// Options of a job that the form offers; an empty one takes the default. All of them: docs/hyperparameters.md.

import type { Json } from "./json";
import { parseObject } from "./json";

export type Options = Record<string, string>;

export interface Option {
  name: string;
  label: string;
  default: string;
  hint: string;
  least: number;
  most?: number;
  place?: "hyperparameters" | "job"; // where a request has it; others are in the block "iro"
}

export const FIRST: Option[] = [
  { name: "iterations", label: "Iterations", default: "1", least: 1, most: 16, hint: "Each adds a value function." },
  {
    name: "max_tokens",
    label: "Answer length in tokens",
    default: "measured",
    least: 1,
    most: 8192,
    hint: "Shorter is faster.",
  },
];

export const MORE: Option[] = [
  {
    name: "rollouts_per_prompt",
    label: "Rollouts of each prompt",
    default: "16",
    least: 2,
    most: 256,
    hint: "Samples that are graded.",
  },
  { name: "beam_width", label: "W, beams", default: "2", least: 1, most: 256, hint: "Texts that the search keeps." },
  {
    name: "num_successors",
    label: "K, successors",
    default: "8",
    least: 1,
    most: 256,
    hint: "Continuations of each beam.",
  },
  {
    name: "chunk_length",
    label: "L, chunk length",
    default: "4",
    least: 1,
    most: 8192,
    hint: "Tokens between two choices.",
  },
  {
    name: "validation_prompts",
    label: "Validation prompts",
    default: "32",
    least: 1,
    most: 10_000,
    hint: "They choose the best iteration.",
  },
  {
    name: "eval_samples",
    label: "Searches of each",
    default: "1",
    least: 1,
    most: 64,
    hint: "Of each validation prompt.",
    place: "hyperparameters",
  },
  {
    name: "seed",
    label: "Seed",
    default: "random",
    least: 0,
    most: 2 ** 31 - 1,
    hint: "The same one repeats a job.",
    place: "job",
  },
];

const OTHER = "Other fields of the request";
const NAMED = ["model", "training_file"]; // by the form

/** Fields of the request that the form does not name. Throws Error where they are no JSON object, or it names them. */
export function otherFields(options: Options): Json {
  if (!options.other?.trim()) return {};
  const fields = parseObject(options.other, OTHER);
  const method = (fields.method ?? {}) as { type?: string; reinforcement?: Json };
  const named = NAMED.find((name) => name in fields) ?? (method.reinforcement?.grader ? "the grader" : undefined);
  if (named) throw new Error(`${OTHER}: leave out ${named}, which the form above sets.`);
  if (method.type && method.type !== "reinforcement") throw new Error(`${OTHER}: the method is "reinforcement" only.`);
  return fields;
}

/** The options that are set and that a request has in `place`. */
export function optionsIn(place: Option["place"], options: Options): Record<string, number> {
  const set = [...FIRST, ...MORE].filter((option) => option.place === place && options[option.name]);
  return Object.fromEntries(set.map(({ name }) => [name, Number(options[name])]));
}
