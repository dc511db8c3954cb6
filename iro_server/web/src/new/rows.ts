// What a line of training rows or of an eval's items must hold: iro_server/api/jsonl.py, which decides, checks the same.

import { isObject } from "./json";
import { checkMessages, checkTools } from "./messages";

export const EDITABLE = 2_000_000; // bytes; a larger file is not put into the text field

export type Row = Record<string, unknown>;

export interface Checked {
  rows: Row[];
  problems: { line: number; message: string }[]; // lines count from 1
}

const ITEM_FIELD = /\{\{\s*item(?:\.([\w-]+)|\[['"]([^'"]+)['"]\])/g;
const UTF_16_MARKS = ["255,254", "254,255"]; // a file's first two bytes

/** A file's text. Throws Error where it is not UTF-8: each byte that is none would become another character. */
export async function utf8Text(file: File): Promise<string> {
  const bytes = await file.arrayBuffer();
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    const isUtf16 = UTF_16_MARKS.includes(new Uint8Array(bytes.slice(0, 2)).join());
    throw new Error(`${file.name} is not UTF-8${isUtf16 ? " (it looks like UTF-16)" : ""}: save the file as UTF-8`);
  }
}

const linesOf = (text: string): string[] => text.replace(/^\uFEFF/, "").trimEnd().split("\n");

export function checkRows(text: string, check: (line: string) => Row): Checked {
  const checked: Checked = { rows: [], problems: [] };
  const lines = linesOf(text);
  if (lines.length === 1 && !lines[0]) return checked;
  lines.forEach((line, index) => {
    try {
      checked.rows.push(check(line));
    } catch (problem) {
      checked.problems.push({ line: index + 1, message: (problem as Error).message });
    }
  });
  const message = checked.problems.length > 0 && spreadOverLines(text);
  return message ? { rows: [], problems: [{ line: 1, message }] } : checked;
}

/** What is wrong with a text that is JSON as a whole, and not line by line. */
function spreadOverLines(text: string): string | null {
  try {
    const value: unknown = JSON.parse(text.replace(/^\uFEFF/, ""));
    if (Array.isArray(value)) return "begins a JSON array: write one object a line, without the array around them";
    return isObject(value) && text.trim().includes("\n") ? "begins an object of several lines: write one object a line" : null;
  } catch {
    return null;
  }
}

export function checkedRow(line: string): Row {
  const row = objectOf(line);
  const { messages, prompt } = row;
  if ((messages === undefined) === (prompt === undefined)) throw new Error('needs either "messages" or "prompt"');
  if (messages !== undefined) checkMessages(messages);
  else if (typeof prompt !== "string" || !prompt) throw new Error('"prompt" must be a text that is not empty');
  checkTools(row.tools);
  return row;
}

/** The item of a line: the object itself, or its field "item", beside which a sample may stand. */
export function checkedItem(line: string): Row {
  const row = objectOf(line);
  if (row.item === undefined) return row;
  if (!isObject(row.item)) throw new Error('"item" must be a JSON object');
  return row.item;
}

/** Items as a file of them: each in the field "item". Throws Error with the line that is none. */
export const itemLines = (text: string): string => linesOf(text).map(itemLine).join("");

function itemLine(line: string, index: number): string {
  try {
    const row = objectOf(line);
    return ("item" in row ? line : JSON.stringify({ item: row })) + "\n";
  } catch (problem) {
    throw new Error(`Line ${index + 1} ${(problem as Error).message}`);
  }
}

function objectOf(line: string): Row {
  if (!line.trim()) throw new Error("is blank");
  const row = parsed(line);
  if (!isObject(row)) throw new Error("is not a JSON object");
  return row;
}

function parsed(line: string): unknown {
  try {
    return JSON.parse(line);
  } catch (problem) {
    throw new Error(`is not valid JSON: ${(problem as Error).message}`);
  }
}

/** The fields `{{item.name}}` of a template that rows lack, and how many of them do. */
export function missingFields(template: string, rows: Row[]): { name: string; lacking: number }[] {
  const names = new Set([...template.matchAll(ITEM_FIELD)].map(([, name, quoted]) => (name ?? quoted)!));
  const counts = [...names].map((name) => ({ name, lacking: rows.filter((row) => !(name in row)).length }));
  return counts.filter(({ lacking }) => lacking > 0);
}

/** What graders may read of the rows beside the answer. */
export function itemFields(rows: Row[]): string[] {
  const names = new Set(rows.slice(0, 100).flatMap((row) => Object.keys(row)));
  return [...names].filter((name) => name !== "messages");
}
