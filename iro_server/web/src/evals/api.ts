// /v1/evals, as the pages read it.

import type { Page } from "../api";
import { call, get, post } from "../api";

export interface Eval {
  id: string;
  created_at: number;
  name: string;
  testing_criteria: ({ name?: string; type: string } & Record<string, unknown>)[];
}

export interface InputMessages {
  type: "template" | "item_reference";
  template?: { role: string; content: string | { text: string } }[];
  item_reference?: string;
}

export interface DataSource {
  type: "jsonl" | "completions" | "responses";
  model?: string;
  source: { type: string } & Record<string, unknown>;
  input_messages?: InputMessages;
  sampling_params?: Record<string, unknown>;
}

export interface EvalRun {
  id: string;
  eval_id: string;
  created_at: number;
  name: string;
  status: "queued" | "in_progress" | "completed" | "canceled" | "failed";
  model: string;
  data_source: DataSource;
  error: { message: string } | null;
  result_counts: { total: number; passed: number; failed: number; errored: number };
  per_testing_criteria_results: { testing_criteria: string; passed: number; failed: number; mean_score: number | null }[];
}

export interface OutputItem {
  id: string;
  status: "pass" | "fail" | "error";
  datasource_item_id: number;
  datasource_item: Record<string, unknown>;
  results: { name: string; score: number | null; passed: boolean; error?: string | null }[];
  sample: { output?: { content: string }[]; error?: { message: string } | null };
}

const path = (id: string): string => `/evals/${encodeURIComponent(id)}`;

export const PAGE = 100; // rows of a list that one call gives

/** The first rows of the list at `url`, which has a query: `most` of them, in whole pages. */
async function firstRows<Row extends { id: string }>(url: string, most: number, signal?: AbortSignal) {
  const rows: Row[] = [];
  for (;;) {
    const after = rows.length ? `&after=${encodeURIComponent(rows.at(-1)!.id)}` : "";
    const { data, has_more } = await get<Page<Row>>(`${url}&limit=${PAGE}${after}`, signal);
    rows.push(...data);
    if (!has_more || rows.length >= most) return { data: rows, has_more } satisfies Page<Row>;
  }
}

/** The newest first, as runs are. */
export const listEvals = (most: number, signal?: AbortSignal) => firstRows<Eval>("/evals?order=desc", most, signal);
export const getEval = (id: string, signal?: AbortSignal) => get<Eval>(path(id), signal);
export const listRuns = (id: string, most: number, signal?: AbortSignal) =>
  firstRows<EvalRun>(`${path(id)}/runs?order=desc`, most, signal);
export const createEval = (body: unknown) => post<Eval>("/evals", body);
export const deleteEval = (id: string) => call(path(id), { method: "DELETE" });
export const createRun = (id: string, body: unknown) => post<EvalRun>(`${path(id)}/runs`, body);

const runPath = (id: string, run: string): string => `${path(id)}/runs/${encodeURIComponent(run)}`;
export const cancelRun = (id: string, run: string) => post<EvalRun>(`${runPath(id, run)}/cancel`);
export const deleteRun = (id: string, run: string) => call(runPath(id, run), { method: "DELETE" });

/** The score from which an answer passes: `threshold` of iro_server/jobs/evals/criteria.py. */
export function thresholdOf({ pass_threshold, range }: Eval["testing_criteria"][number]): number {
  const [low, high] = (range as [number, number] | undefined) ?? [0, 1];
  return (pass_threshold as number | undefined) ?? (low + high) / 2;
}

/** The graded items of a run, or those of them that did not pass. */
export function listItems(run: EvalRun, which: "graded" | "failed", most: number, signal?: AbortSignal) {
  const url = `${runPath(run.eval_id, run.id)}/output_items?order=asc${which === "failed" ? "&status=fail" : ""}`;
  return firstRows<OutputItem>(url, most, signal);
}
