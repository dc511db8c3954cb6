// A job's request as what the form of a new job holds: to start the job again, changed or not.

import type { Job } from "../api";
import { ApiError, fileText } from "../api";
import { keepDrafts, saveDraft } from "../drafts";
import { draftOfGrader } from "./graders";
import type { Json } from "./json";
import type { Options } from "./options";
import { FIRST, MORE } from "./options";
import { EDITABLE } from "./rows";

export const FORM = ["rows", "grader", "options"] as const; // the drafts of the form
export const PROBLEM = "problem"; // the draft that says what the form could not be filled with
export const ESTIMATE = "estimate";

/**
 * Without the rows, and with a problem for the form to show, where they are gone, or too many for it.
 * Throws Error where the server does not answer; the form is then as it was.
 */
export async function fillFrom(job: Job): Promise<void> {
  let rows = "";
  let problem: string | null = null;
  try {
    rows = await fileText(job.training_file, EDITABLE);
  } catch (error) {
    if (error instanceof ApiError && error.status !== 404 && error.status !== 403) throw error;
    problem = `The training rows are not filled in: ${(error as Error).message}`;
  }
  keepDrafts(FORM);
  saveDraft("grader", draftOfGrader(job.method.reinforcement.grader));
  saveDraft("options", optionsOf(job));
  saveDraft("rows", rows);
  saveDraft(PROBLEM, problem);
  saveDraft(ESTIMATE, null);
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
