// What the messages and tools of a training row must hold: iro_server/api/messages.py, which decides, checks the same.

import type { Json } from "./json";
import { isObject } from "./json";

const ROLES = ["system", "developer", "user", "assistant", "tool"];
const ANSWERED = ["user", "tool"]; // roles of a last message
const TEXT_PARTS = ["text", "input_text", "output_text"];
const UNSUPPORTED = ["audio", "function_call", "refusal"];
const FUNCTION_NAME = /^[A-Za-z0-9_-]{1,64}$/;
const CALL = '{"id": "…", "type": "function", "function": {"name": "…", "arguments": "…"}}';
const TOOL = '{"type": "function", "function": {"name": "…", "parameters": {…}}}';

/** Throws Error with what is wrong. */
export function checkMessages(messages: unknown): void {
  if (!Array.isArray(messages) || messages.length === 0) throw new Error('"messages" must be a list that is not empty');
  messages.forEach((message) => checkMessage(isObject(message) ? message : {}));
  if (!ANSWERED.includes((messages.at(-1) as Json).role as string))
    throw new Error('the last message must have the role "user" or "tool": the model writes the answer');
  checkResults(messages as Json[]);
}

function checkResults(messages: Json[]): void {
  let [calls, unanswered] = [new Set<unknown>(), new Set<unknown>()];
  for (const { role, tool_call_id, tool_calls } of messages) {
    if (role === "tool") {
      if (!calls.has(tool_call_id))
        throw new Error('a message with the role "tool" must answer one of the "tool_calls" before it, by its "id"');
      unanswered.delete(tool_call_id);
    } else {
      if (unanswered.size > 0) break;
      calls = new Set(((tool_calls ?? []) as Json[]).map((call) => call.id));
      unanswered = new Set(calls);
    }
  }
  if (unanswered.size > 0)
    throw new Error('a message with "tool_calls" must be followed by a message with the role "tool" for each of them');
}

function checkMessage(message: Json): void {
  const { role, content, tool_call_id } = message;
  if (!ROLES.includes(role as string)) throw new Error(`a message's "role" must be one of ${ROLES.join(", ")}`);
  const calls = message.tool_calls ?? [];
  if (!Array.isArray(calls) || !calls.every(isCall)) throw new Error(`"tool_calls" must be a list of ${CALL}`);
  if (!isText(content) && !(isNone(content) && calls.length > 0))
    throw new Error('a message needs a "content", a text, or "tool_calls"');
  if (calls.length > 0 && role !== "assistant")
    throw new Error('only a message with the role "assistant" has "tool_calls"');
  if (role === "tool" && !isString(tool_call_id))
    throw new Error('a message with the role "tool" names its call in "tool_call_id"');
  const unsupported = UNSUPPORTED.find((name) => !isNone(message[name]));
  if (unsupported) throw new Error(`a message's "${unsupported}" is not supported`);
}

/** Throws Error with what is wrong. */
export function checkTools(tools: unknown): void {
  if (isNone(tools)) return;
  if (!Array.isArray(tools) || !tools.every(isTool)) throw new Error(`"tools" must be a list of ${TOOL}`);
}

type Check = (value: unknown) => boolean;

const isNone: Check = (value) => value === undefined || value === null;
const isString: Check = (value) => typeof value === "string";
const isPart: Check = (part) => isObject(part) && TEXT_PARTS.includes(part.type as string) && isString(part.text);
const isText: Check = (content) => isString(content) || (Array.isArray(content) && content.every(isPart));
const orNone = (check: Check): Check => (value) => isNone(value) || check(value);

/** For an object that has no fields but these. */
const hasFields = (fields: Record<string, Check>): Check => (value) =>
  isObject(value) &&
  Object.keys(value).every((name) => Object.hasOwn(fields, name)) &&
  Object.entries(fields).every(([name, check]) => check(value[name]));

const isCall = hasFields({
  type: (type) => type === undefined || type === "function",
  id: isString,
  function: hasFields({ name: isString, arguments: isString }),
});

const isTool = hasFields({
  type: (type) => type === "function",
  function: hasFields({
    name: (name) => typeof name === "string" && FUNCTION_NAME.test(name),
    description: orNone(isString),
    parameters: orNone(isObject),
    strict: () => true,
  }),
});
