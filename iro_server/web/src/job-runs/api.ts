// Batch jobs and their runs: the part of the public API that these pages call.

import type { Page } from "../api";
import { call, get, post } from "../api";
import type { Flat, Row } from "./metrics";
import { flatten } from "./metrics";

export interface JobKind {
  id: string;
  summary: string;
  presets: Record<string, Config>;
  config_schema: Schema;
  problem: string | null;
}

export type Config = Record<string, unknown>;

/** The part of JSON schema that pydantic writes. */
export interface Schema {
  type?: string;
  format?: string;
  description?: string;
  default?: unknown;
  enum?: unknown[];
  anyOf?: Schema[];
  items?: Schema;
  prefixItems?: Schema[];
  properties?: Record<string, Schema>;
  required?: string[];
  minimum?: number;
  maximum?: number;
}

export type RunStatus = "queued" | "in_progress" | "succeeded" | "failed" | "cancelled";

export interface JobRun {
  id: string;
  created_at: number;
  finished_at: number | null;
  attempts: number; // of processes to run it; 0: it has not started
  status: RunStatus;
  kind: string;
  name: string | null;
  preset: string | null;
  config: Config;
  error: { code: string; message: string; param?: string | null } | null;
  progress: { done: number; total: number } | null;
  message: string | null;
  metrics_bytes: number;
  figures: string[];
}

export interface Check {
  name: string;
  expected: unknown;
  got: unknown;
  holds: boolean;
}

const ROWS = 5000; // of one answer

const path = (id: string): string => `/iro/job_runs/${encodeURIComponent(id)}`;

export const isOpen = ({ status }: JobRun): boolean => status === "queued" || status === "in_progress";
export const titleOf = (run: JobRun): string => run.name ?? run.kind + (run.preset ? ` (${run.preset})` : "");

export const listKinds = (signal?: AbortSignal) => get<Page<JobKind>>("/iro/job_kinds", signal);
export const listRuns = (after: string | null, signal?: AbortSignal) =>
  get<Page<JobRun>>(`/iro/job_runs?limit=100${after ? `&after=${encodeURIComponent(after)}` : ""}`, signal);
export const getRun = (id: string, signal?: AbortSignal) => get<JobRun>(path(id), signal);
export const cancelRun = (id: string) => post<JobRun>(`${path(id)}/cancel`);
export const deleteRun = (id: string) => call(path(id), { method: "DELETE" });
export const createRun = (body: unknown) => post<JobRun>("/iro/job_runs", body);

export async function getChecks(id: string, signal?: AbortSignal): Promise<Check[]> {
  return (await get<{ checks?: Check[] }>(`${path(id)}/result`, signal)).checks ?? [];
}

/** What a run has written. */
export interface RunMetrics {
  run: JobRun; // as it was before that was read
  rows: Flat[];
}

/** The run's metrics. Only the rows after those of `before` are read, unless another process may have rewritten them. */
export async function readMetrics(run: JobRun, before: RunMetrics | undefined, signal: AbortSignal): Promise<RunMetrics> {
  const isContinued = before?.run.attempts === run.attempts && before.run.metrics_bytes <= run.metrics_bytes;
  const rows = isContinued ? [...before.rows] : [];
  let hasMore = run.metrics_bytes > (isContinued ? before.run.metrics_bytes : 0);
  while (hasMore) {
    const page = await get<Page<Row>>(`${path(run.id)}/metrics?limit=${ROWS}&offset=${rows.length}`, signal);
    rows.push(...page.data.map((row) => flatten(row)));
    hasMore = page.has_more;
  }
  return { run, rows };
}

/** A figure as a data URL: an image's own request could not carry the key. */
export async function figureUrl(id: string, name: string, signal?: AbortSignal): Promise<string> {
  const response = await call(`${path(id)}/figures/${encodeURIComponent(name)}`, { signal });
  const image = await response.blob();
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result as string);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(image);
  });
}
