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

export const listEvals = (after: string | null, signal?: AbortSignal) =>
  get<Page<Eval>>(`/evals?limit=100&order=desc${after ? `&after=${encodeURIComponent(after)}` : ""}`, signal);
export const getEval = (id: string, signal?: AbortSignal) => get<Eval>(path(id), signal);
export const listRuns = (id: string, signal?: AbortSignal) =>
  get<Page<EvalRun>>(`${path(id)}/runs?limit=100&order=desc`, signal);
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

const PAGES = 10; // of a hundred items

/** The run's graded items, the first thousand of them. */
export async function listItems(id: string, run: string, signal?: AbortSignal): Promise<OutputItem[]> {
  const items: OutputItem[] = [];
  for (let page = 0; page < PAGES; page++) {
    const after = items.length ? `&after=${encodeURIComponent(items.at(-1)!.id)}` : "";
    const url = `${runPath(id, run)}/output_items?limit=100${after}`;
    const { data, has_more } = await get<Page<OutputItem>>(url, signal);
    items.push(...data);
    if (!has_more) break;
  }
  return items;
}
