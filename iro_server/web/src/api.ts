// The public API: one function a call. Errors are ApiError with the server's own message.

import { forgetDrafts } from "./drafts";
import type { Chunk, EventStream } from "./stream";
import { readEvents } from "./stream";

const KEY = "iro-key";
const LONGEST = 3600; // seconds that the page waits because the server says so
/** A character that a header can hold. */
export const SENDABLE = /^[\u0020-\u007e\u00a0-\u00ff]$/;

export const savedKey = (): string => sessionStorage.getItem(KEY) ?? "";

export function saveKey(key: string): void {
  if (key !== savedKey()) forgetDrafts();
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

let reportRefusal = (): void => {};

/** Calls `report` whenever the server refuses the key of this tab, or that there is none. */
export function watchRefusals(report: () => void): void {
  reportRefusal = report;
}

export class ApiError extends Error {
  constructor(
    readonly status: number,
    message: string,
    readonly param: string | null = null,
    readonly retryAfter = 0, // seconds
  ) {
    super(message);
  }
}

/** The error with the field at fault before it, where its message does not name that. */
export function named(error: Error): Error {
  const param = error instanceof ApiError ? error.param : null;
  return param && !error.message.includes(param) && param !== "file" ? new Error(`${param}: ${error.message}`) : error;
}

export type Status = "validating_files" | "queued" | "running" | "paused" | "succeeded" | "failed" | "cancelled";

export const OPEN: readonly Status[] = ["validating_files", "queued", "running", "paused"];

export interface Job {
  id: string;
  created_at: number;
  finished_at: number | null;
  status: Status;
  model: string;
  fine_tuned_model: string | null;
  training_file: string;
  validation_file: string | null;
  metadata: Record<string, string> | null;
  method: { reinforcement: { grader: Grader } & { [block: string]: Record<string, unknown> | undefined } };
  error: { code: string; message: string; param: string | null } | null;
  estimated_finish: number | null;
  iro: { improved: boolean | null; suffix: string | null; jobs_ahead: number | null; ran_seconds: number | null };
}

export type Grader = { type: string; name?: string } & Record<string, unknown>;

export interface JobEvent {
  id: string;
  created_at: number;
  level: "info" | "warn" | "error";
  message: string;
  type: "message" | "metrics";
  data: Metrics;
}

export interface Metrics {
  step?: number;
  total_steps?: number;
  train_mean_reward?: number | null;
  full_valid_mean_reward?: number | null;
  full_valid_error?: number | null;
  full_valid_half_width?: number | null; // of its 95 % interval; of jobs of earlier versions not told
  valid_grader_pick?: number | null;
  valid_mean_of_finals?: number | null;
  best_of_n?: number | null;
  correlation?: number | null;
  stack_correlation?: number | null;
  completion_tokens_mean?: number | null;
  mean_unresponsive_rewards?: number | null;
  usage?: { base_tokens?: number; graders?: Record<string, unknown>[] };
  errors?: { graders?: Record<string, unknown>[] };
  timing?: { step?: Record<string, number> };
  samples?: Sample[]; // this and the following are of events that are no metrics
  by_token?: { tokens: number[]; correlation: number[] };
  tilts?: TiltTrial[];
  prices?: Price[];
  strengths?: Strength[];
  chosen?: string;
  code?: string;
  measures?: Departure[];
}

export interface Sample {
  prompt: string;
  completion: string;
  reward: number | null;
}

/** A tilt at a strength, at one row on held-out prompts; of kind "none" the policy of the rollouts. */
export interface TiltTrial {
  kind: string;
  strength: number;
  sharpness?: number; // since format 5 of value bundles
  repetition_penalty?: number; // nats; older jobs tried none
  reward: number | null;
  error: number | null;
  half_width?: number | null; // of its 95 % interval; of jobs of earlier versions not told
  kl: number | null;
  perplexity: number | null;
  chosen: boolean;
}

/** A way to serve the model: how many rows it decodes at once, and what they gave on held-out prompts. */
export interface Price {
  name: string;
  rows: number;
  reward: number | null;
  error: number | null;
  half_width?: number | null; // of its 95 % interval; of jobs of earlier versions not told
  perplexity: number | null;
  kl: number | null;
  over_optimization?: Departure[] | null;
}

/** One row at a strength of the tilt. */
export interface Strength extends Price {
  kl_per_token: number | null;
  search: { strength: number };
}

/** A measure of the text that left the range of nine in ten of the frozen model's completions. */
export interface Departure {
  measure: string;
  median: number;
  frozen_low: number;
  frozen_high: number;
}

export interface Checkpoint {
  id: string;
  created_at: number;
  fine_tuned_model_checkpoint: string;
  metrics: Metrics;
  step_number: number;
}

export interface Model {
  id: string;
  created: number;
  iro?: { base: string; job: string; max_tokens?: number };
}

export interface Page<Row> {
  data: Row[];
  has_more: boolean;
}

export interface Graded {
  reward: number;
  sub_rewards: Record<string, number>;
  iro: { error: string | null };
}

export interface EstimateResult {
  verdict: string;
  message: string;
  reward: { mean: number | null };
  expected_gain: { mean: number; low: number; high: number } | null;
  cost: { seconds: number; grader_calls: number };
  samples: { text: string; reward: number | null; error: string | null }[];
}

export interface Estimate {
  id: string;
  created_at: number;
  status: string;
  error: { message: string } | null;
  result: EstimateResult | null;
}

export async function call(path: string, init: RequestInit = {}): Promise<Response> {
  const headers = new Headers(init.headers);
  const key = savedKey();
  if (key) headers.set("authorization", `Bearer ${key}`);
  let response: Response;
  try {
    response = await fetch(`/v1${path}`, { ...init, headers });
  } catch (error) {
    if (init.signal?.aborted) throw error;
    throw new ApiError(0, "The server cannot be reached.");
  }
  if (response.status === 401 && key === savedKey()) reportRefusal(); // not of an earlier key
  if (!response.ok) throw await failure(response);
  return response;
}

async function failure(response: Response): Promise<ApiError> {
  const retryAfter = secondsOf(response.headers.get("retry-after"));
  const text = await response.text();
  try {
    const { error } = JSON.parse(text) as { error: { message: string; param: string | null } };
    return new ApiError(response.status, error.message, error.param, retryAfter);
  } catch {
    return new ApiError(
      response.status,
      text.slice(0, 300) || `The server answered ${response.status}.`,
      null,
      retryAfter,
    );
  }
}

/** Seconds of a `Retry-After`; 0 for none, or for a date. */
function secondsOf(header: string | null): number {
  const seconds = Number(header ?? 0);
  return Number.isFinite(seconds) ? Math.min(Math.max(seconds, 0), LONGEST) : 0;
}

export async function get<Body>(path: string, signal?: AbortSignal): Promise<Body> {
  return (await call(path, { signal })).json() as Promise<Body>;
}

export async function post<Body>(path: string, body?: unknown, signal?: AbortSignal): Promise<Body> {
  return (await send(path, body, signal)).json() as Promise<Body>;
}

function send(path: string, body: unknown, signal?: AbortSignal): Promise<Response> {
  const headers = { "content-type": "application/json" };
  return call(path, { method: "POST", headers, body: body === undefined ? undefined : JSON.stringify(body), signal });
}

const job = (id: string): string => `/fine_tuning/jobs/${encodeURIComponent(id)}`;

export const listModels = (signal?: AbortSignal) => get<Page<Model>>("/models", signal);
export const listJobs = (after: string | null, signal?: AbortSignal) =>
  get<Page<Job>>(`/fine_tuning/jobs?limit=100${after ? `&after=${encodeURIComponent(after)}` : ""}`, signal);
export const getJob = (id: string, signal?: AbortSignal) => get<Job>(job(id), signal);
export const listEvents = (id: string, after: string | null, limit: number, signal?: AbortSignal) =>
  get<Page<JobEvent>>(`${job(id)}/events?limit=${limit}${after ? `&after=${encodeURIComponent(after)}` : ""}`, signal);
/** Events newer than `after`, as they come; returns whether the job has ended. */
export async function* followEvents(id: string, after: string | undefined, signal: AbortSignal) {
  const query = after ? `&after=${encodeURIComponent(after)}` : "";
  const response = await call(`${job(id)}/events?stream=true${query}`, { signal });
  return yield* readEvents<JobEvent>(response.body!);
}
export const listCheckpoints = (id: string, signal?: AbortSignal) =>
  get<Page<Checkpoint>>(`${job(id)}/checkpoints?limit=100`, signal);
export const actOnJob = (id: string, action: "cancel" | "pause" | "resume") => post<Job>(`${job(id)}/${action}`);
export const createJob = (body: unknown) => post<Job>("/fine_tuning/jobs", body);
export const createEstimate = (body: unknown) => post<Estimate>("/fine_tuning/jobs/estimate", body);
export const getEstimate = (id: string, signal?: AbortSignal) =>
  get<Estimate>(`/fine_tuning/jobs/estimate/${encodeURIComponent(id)}`, signal);
export const validateGrader = (grader: Grader) => post("/fine_tuning/alpha/graders/validate", { grader });
export const runGrader = (grader: Grader, sample: string, item: unknown, signal?: AbortSignal) =>
  post<Graded>("/fine_tuning/alpha/graders/run", { grader, model_sample: sample, item }, signal);

export async function uploadFile(file: Blob, name: string, purpose: "fine-tune" | "evals"): Promise<string> {
  const form = new FormData();
  form.set("purpose", purpose);
  form.set("file", file, name);
  const stored = (await (await call("/files", { method: "POST", body: form })).json()) as { id: string };
  return stored.id;
}

/** A file's text. Throws Error where it is gone, or has more than `most` bytes. */
export async function fileText(file: string, most: number): Promise<string> {
  const path = `/files/${encodeURIComponent(file)}`;
  const { bytes } = await get<{ bytes: number }>(path);
  if (bytes > most) throw new Error(`${file} has ${bytes} bytes, too many for the form: choose the file again.`);
  return (await call(`${path}/content`)).text();
}

/** The first row of a training file; null where it is gone. Reads no more of the file than that. */
export async function firstRow(file: string, signal?: AbortSignal): Promise<Record<string, unknown> | null> {
  const response = await call(`/files/${encodeURIComponent(file)}/content`, { signal });
  const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  while (!text.includes("\n")) {
    const { done, value } = await reader.read();
    if (done) break;
    text += value;
  }
  await reader.cancel();
  const line = text.split("\n", 1)[0] ?? "";
  return line ? (JSON.parse(line) as Record<string, unknown>) : null;
}

/** Server-sent events of a completion, chat or text. Throws ApiError where they end before the server has sent all. */
export async function* stream(path: string, body: Record<string, unknown>, signal: AbortSignal): EventStream {
  const response = await send(path, { ...body, stream: true, stream_options: { include_usage: true, include_search: true } }, signal);
  const isWhole = yield* readEvents<Chunk>(response.body!);
  if (!isWhole) throw new ApiError(0, "The answer broke off: the connection ended early.");
}
