// What the playground opens with: models, a prompt and a grader.

import type { Grader } from "../api";
import { ApiError, firstRow, getJob, listModels } from "../api";
import type { Prompt } from "./PromptForm";
import { promptOf } from "./PromptForm";
import type { Column } from "./search";

export interface Subject {
  name: string; // of its drafts: the aligned model, and the job of the grader
  models: string[];
  aligned: string[]; // those of them that can be mixed: final models, not checkpoints
  jobs: Record<string, string>; // by aligned model
  columns: Column[];
  grader: Grader | null;
  graderJob: string | null;
  prompt: Prompt;
}

/** The model that the address names, or the newest aligned one; its grader, and the first of its training rows. */
export async function loadSubject(base: string, query: URLSearchParams, signal: AbortSignal): Promise<Subject> {
  const { data } = await listModels(signal);
  const aligned = query.get("model") ?? data.filter((model) => model.iro).at(-1)?.id ?? null;
  const jobs = Object.fromEntries(data.flatMap(({ id, iro }) => (iro ? [[id, iro.job]] : [])));
  const graderJob = query.get("job") ?? (aligned ? (jobs[aligned] ?? null) : null);
  const names = new Set([...data.map((model) => model.id), ...(aligned ? [aligned] : [])]);
  const { grader, row } = graderJob ? await jobOf(graderJob, signal) : { grader: null, row: null };
  const maxTokens = data.find((model) => graderJob && model.iro?.job === graderJob)?.iro?.max_tokens;
  return {
    name: `playground ${aligned} ${graderJob}`,
    models: [...names],
    aligned: data.filter((model) => model.iro).map((model) => model.id),
    jobs,
    columns: firstColumns(base, aligned),
    grader,
    graderJob,
    prompt: promptOf(row, maxTokens),
  };
}

function firstColumns(base: string, aligned: string | null): Column[] {
  const column = { n: 16, settings: {}, weights: {}, mode: "served" as const };
  const frozen: Column = { ...column, id: 0, model: base };
  if (!aligned) return [frozen];
  return [frozen, { ...column, id: 1, model: aligned, mode: "best_of_n" }, { ...column, id: 2, model: aligned }];
}

async function jobOf(id: string, signal: AbortSignal) {
  try {
    const job = await getJob(id, signal);
    const row = await firstRow(job.training_file, signal).catch(orGone(null));
    return { grader: job.method.reinforcement.grader, row };
  } catch (error) {
    return orGone({ grader: null, row: null })(error);
  }
}

/** `value` for what was deleted, is another project's, or is not for this key to read. */
const orGone =
  <Value,>(value: Value) =>
  (error: unknown): Value => {
    if (error instanceof ApiError && (error.status === 404 || error.status === 403)) return value;
    throw error;
  };
