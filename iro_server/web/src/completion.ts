// Prompts: a conversation to answer, with tools or without, or a text to continue, each at its route.

import type { Chunk, EventStream } from "./stream";
import { stream } from "./api";

export const isChat = (row: Record<string, unknown>): boolean => Array.isArray(row.messages);

/** A message's content as text: a text itself, or its text parts joined, as `engines/text_parts.py` joins them. */
export function contentText(content: unknown): string {
  if (typeof content === "string") return content;
  if (!Array.isArray(content)) return content ? JSON.stringify(content) : "";
  return content.map((part: { text?: unknown }) => (typeof part.text === "string" ? part.text : JSON.stringify(part))).join("");
}

/** A function that an answer calls. */
export interface Call {
  name: string;
  arguments: string; // JSON
}

export const callText = (call: Call): string => `${call.name}(${call.arguments})`;

/** The calls so far, with what `chunk` adds to them. */
export function withCalls(calls: Call[], chunk: Chunk): Call[] {
  const extended = [...calls];
  for (const { index, function: part } of chunk.choices[0]?.delta?.tool_calls ?? []) {
    const call = extended[index] ?? { name: "", arguments: "" };
    extended[index] = { name: call.name + (part?.name ?? ""), arguments: call.arguments + (part?.arguments ?? "") };
  }
  return extended;
}

export interface Message {
  role: string;
  content?: unknown;
  tool_calls?: { function: Call }[] | null;
  tool_call_id?: string;
}

/** A message as text: its content, and the functions that it calls. */
export function messageText({ content, tool_calls }: Message): string {
  const calls = (tool_calls ?? []).map((call) => `calls ${callText(call.function)}`);
  return [contentText(content), ...calls].filter(Boolean).join("\n");
}

/** The chunks of an answer. Throws Error where the server fails, or the answer breaks off. */
export async function* complete(
  model: string,
  row: Record<string, unknown>,
  options: object,
  signal: AbortSignal,
): EventStream {
  const { messages, tools, prompt } = row;
  const chunks = isChat(row)
    ? stream("/chat/completions", { model, messages, tools, ...options }, signal)
    : stream("/completions", { model, prompt, ...options }, signal);
  for await (const chunk of chunks) {
    if (chunk.error) throw new Error(chunk.error.message);
    yield chunk;
  }
}

export const textOf = (chunk: Chunk): string => chunk.choices[0]?.text ?? chunk.choices[0]?.delta?.content ?? "";

/** One sample. Throws Error where it calls a function: what grades it takes a text alone. */
export async function answerTo(model: string, row: Record<string, unknown>): Promise<string> {
  let text = "";
  let calls: Call[] = [];
  for await (const chunk of complete(model, row, { max_tokens: 64 }, new AbortController().signal)) {
    text += textOf(chunk);
    calls = withCalls(calls, chunk);
  }
  if (calls.length > 0) throw new Error(`The model calls ${calls.map(callText).join(", ")}: only a text is graded here.`);
  return text;
}
