// A job's request as what the form of a new job holds: to start the job again, changed or not.

import type { Job } from "../api";
import { fileText } from "../api";
import { keepDrafts, saveDraft } from "../drafts";
import { draftOfGrader } from "./graders";
import type { Json } from "./json";
import type { Options } from "./options";
import { FIRST, MORE } from "./options";
import { EDITABLE } from "./rows";

export const FORM = ["rows", "grader", "options"] as const; // the drafts of the form

/** Throws Error where the training rows are gone, or too many for the form; the rest is filled in all the same. */
export async function fillFrom(job: Job): Promise<void> {
  keepDrafts(FORM);
  saveDraft("grader", draftOfGrader(job.method.reinforcement.grader));
  saveDraft("options", optionsOf(job));
  saveDraft("rows", await fileText(job.training_file, EDITABLE));
}

/** The seed is left out: the same request with another one is another measurement. */
function optionsOf(job: Job): Options {
  const { grader: _, ...reinforcement } = structuredClone(job.method.reinforcement);
  const options: Options = {};
  for (const { name, place } of [...FIRST, ...MORE]) {
    const block: Record<string, unknown> = reinforcement[place === "hyperparameters" ? place : "iro"] ?? {};
    if (place === "job" || typeof block[name] !== "number") continue;
    options[name] = String(block[name]);
    delete block[name];
  }
  const blocks = Object.entries(reinforcement).filter(([, block]) => Object.keys(block as Json).length > 0);
  const other: Record<string, unknown> = {};
  if (blocks.length > 0) other.method = { reinforcement: Object.fromEntries(blocks) };
  if (job.validation_file) other.validation_file = job.validation_file;
  if (job.metadata) other.metadata = job.metadata;
  if (Object.keys(other).length > 0) options.other = JSON.stringify(other, null, 2);
  if (job.iro.suffix) options.suffix = job.iro.suffix;
  return options;
}
