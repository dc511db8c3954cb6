// Prompts: a conversation to answer or a text to continue, each at its route.

import type { Chunk, EventStream } from "./stream";
import { stream } from "./api";

export const isChat = (row: Record<string, unknown>): boolean => Array.isArray(row.messages);

/** A message's content as text: a text itself, or its text parts joined, as `engines/text_parts.py` joins them. */
export function contentText(content: unknown): string {
  if (typeof content === "string") return content;
  if (!Array.isArray(content)) return content ? JSON.stringify(content) : "";
  return content.map((part: { text?: unknown }) => (typeof part.text === "string" ? part.text : JSON.stringify(part))).join("");
}

export function complete(
  model: string,
  row: Record<string, unknown>,
  options: object,
  signal: AbortSignal,
): EventStream {
  const prompt = isChat(row) ? { messages: row.messages } : { prompt: row.prompt };
  return stream(isChat(row) ? "/chat/completions" : "/completions", { model, ...prompt, ...options }, signal);
}

export const textOf = (chunk: Chunk): string => chunk.choices[0]?.text ?? chunk.choices[0]?.delta?.content ?? "";

/** One sample. */
export async function answerTo(model: string, row: Record<string, unknown>): Promise<string> {
  let text = "";
  for await (const chunk of complete(model, row, { max_tokens: 64 }, new AbortController().signal))
    text += textOf(chunk);
  return text;
}
