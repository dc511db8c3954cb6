// The graders that the form can write. Any other is written as JSON.

import type { Grader } from "../api";
import { parseObject, sameJson } from "./json";

export const KINDS = {
  words: "Words to use",
  string_check: "Text check",
  text_similarity: "Similarity to a text",
  python: "Python",
  json: "Any grader, as JSON",
} as const;
export type Kind = keyof typeof KINDS;

export const OPERATIONS = {
  ilike: "contains, in any case",
  like: "contains",
  eq: "equals",
  ne: "differs from",
} as const;
export const METRICS = [
  "fuzzy_match",
  "bleu",
  "gleu",
  "meteor",
  "rouge_1",
  "rouge_2",
  "rouge_3",
  "rouge_4",
  "rouge_5",
  "rouge_l",
  "cosine",
] as const;

export interface Draft {
  kind: Kind;
  words: string; // separated by commas
  operation: string;
  metric: string;
  reference: string;
  source: string;
  json: string;
}

export const EMPTY: Draft = {
  kind: "words",
  words: "",
  operation: "ilike",
  metric: "fuzzy_match",
  reference: "",
  source: "def grade(sample, item):\n    return len(sample['output_text'].split()) / 100\n",
  json: '{\n  "type": "multi",\n  "graders": {},\n  "calculate_output": ""\n}',
};

const INPUT = "{{sample.output_text}}";

/** Throws Error, with what to change, where the draft is no grader. */
export function graderOf(draft: Draft): Grader {
  switch (draft.kind) {
    case "words":
      return wordsGrader(
        draft.words
          .split(",")
          .map((word) => word.trim())
          .filter(Boolean),
      );
    case "string_check":
      return {
        type: "string_check",
        name: "text check",
        input: INPUT,
        operation: draft.operation,
        reference: draft.reference,
      };
    case "text_similarity":
      return {
        type: "text_similarity",
        name: "similarity",
        input: INPUT,
        evaluation_metric: draft.metric,
        reference: draft.reference,
      };
    case "python":
      return { type: "python", name: "python", source: draft.source };
    case "json": {
      return parseObject(draft.json, "The grader") as Grader;
    }
  }
}

/** The text of the draft in which `{{item.name}}` is filled in. */
export function templateOf({ kind, reference, json }: Draft): string {
  if (kind === "json") return json;
  return kind === "string_check" || kind === "text_similarity" ? reference : "";
}

/** The number of `words` that the answer has, in any case. */
function wordsGrader(words: string[]): Grader {
  if (words.length === 0) throw new Error("Give the words that the answer is to use, with commas between them.");
  const check = (word: string) => ({ type: "string_check", input: INPUT, operation: "ilike", reference: word });
  const graders = Object.fromEntries(
    words.map((word, i) => [`word_${i + 1}`, { ...check(word), name: `word_${i + 1}` }]),
  );
  return { type: "multi", name: "words", graders, calculate_output: Object.keys(graders).join(" + ") };
}

/** What the form holds of a grader: the kind that writes it, or its JSON. */
export function draftOfGrader(grader: Grader): Draft {
  const text = (value: unknown) => (typeof value === "string" ? value : "");
  const parts = Object.values((grader.graders ?? {}) as Record<string, Grader>);
  const drafts: Draft[] = [
    { ...EMPTY, kind: "words", words: parts.map(({ reference }) => text(reference)).join(", ") },
    { ...EMPTY, kind: "string_check", operation: text(grader.operation), reference: text(grader.reference) },
    { ...EMPTY, kind: "text_similarity", metric: text(grader.evaluation_metric), reference: text(grader.reference) },
    { ...EMPTY, kind: "python", source: text(grader.source) },
  ];
  return drafts.find((draft) => writes(draft, grader)) ?? { ...EMPTY, kind: "json", json: JSON.stringify(grader, null, 2) };
}

function writes(draft: Draft, grader: Grader): boolean {
  if (draft.kind === "words" && !draft.words) return false;
  const written = graderOf(draft);
  return sameJson(draft.kind === "python" ? { ...written, name: grader.name } : written, grader);
}
