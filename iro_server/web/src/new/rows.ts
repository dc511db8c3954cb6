// What a line of training rows must hold: iro_server/api/jsonl.py, which decides, checks the same.

export const EDITABLE = 2_000_000; // bytes; a larger file is not put into the text field

export type Row = Record<string, unknown>;

export interface Checked {
  rows: Row[];
  problems: { line: number; message: string }[]; // lines count from 1
}

const ROLES = ["system", "developer", "user", "assistant"];

export function checkRows(text: string): Checked {
  const checked: Checked = { rows: [], problems: [] };
  const lines = text
    .replace(/^\uFEFF/, "")
    .trimEnd()
    .split("\n");
  if (lines.length === 1 && !lines[0]) return checked;
  lines.forEach((line, index) => {
    try {
      checked.rows.push(checkedRow(line));
    } catch (problem) {
      checked.problems.push({ line: index + 1, message: (problem as Error).message });
    }
  });
  return checked;
}

function checkedRow(line: string): Row {
  if (!line.trim()) throw new Error("is blank");
  const row = parsed(line);
  if (typeof row !== "object" || row === null || Array.isArray(row)) throw new Error("is not a JSON object");
  const { messages, prompt } = row as Row;
  if ((messages === undefined) === (prompt === undefined)) throw new Error('needs either "messages" or "prompt"');
  if (messages !== undefined) checkMessages(messages);
  else if (typeof prompt !== "string" || !prompt) throw new Error('"prompt" must be a text that is not empty');
  return row as Row;
}

function parsed(line: string): unknown {
  try {
    return JSON.parse(line);
  } catch (problem) {
    throw new Error(`is not valid JSON: ${(problem as Error).message}`);
  }
}

function checkMessages(messages: unknown): void {
  if (!Array.isArray(messages) || messages.length === 0) throw new Error('"messages" must be a list that is not empty');
  for (const message of messages as (Row | null)[]) {
    if (!ROLES.includes(String(message?.role)))
      throw new Error(`a message's "role" must be one of ${ROLES.join(", ")}`);
    if (typeof message!.content !== "string" && !Array.isArray(message!.content)) {
      throw new Error('a message needs a "content", a text');
    }
  }
  if ((messages.at(-1) as Row).role !== "user") {
    throw new Error('the last message must have the role "user": the model writes the answer');
  }
}

/** What graders may read of the rows beside the answer. */
export function itemFields(rows: Row[]): string[] {
  const names = new Set(rows.slice(0, 100).flatMap((row) => Object.keys(row)));
  return [...names].filter((name) => name !== "messages");
}
