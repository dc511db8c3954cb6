// The prompt: one message, or a text to continue; and what a training row holds beside it, for the grader.

import type { Message } from "../completion";
import { contentText, messageText } from "../completion";
import { Field } from "../parts";

type Row = Record<string, unknown>;

export interface Prompt {
  chat: boolean;
  text: string;
  before: Message[]; // of a conversation, before its last message
  last?: Omit<Message, "content">; // the last message without its text; left out: a user's
  item: Row;
  maxTokens: string;
  temperature: string;
  seed: string;
}

/** A training row's prompt. `maxTokens`: as long as the aligned model's answers, so that all are of one length. */
export function promptOf(row: Row | null, maxTokens?: number): Prompt {
  const { messages, prompt, ...item } = row ?? {};
  const conversation = (messages ?? []) as Message[];
  const last = conversation.at(-1);
  return {
    chat: prompt === undefined,
    text: typeof prompt === "string" ? prompt : contentText(last?.content),
    before: conversation.slice(0, -1),
    last: last && { role: last.role, tool_call_id: last.tool_call_id },
    item,
    maxTokens: maxTokens?.toString() ?? "",
    temperature: "",
    seed: "",
  };
}

export function rowOf({ chat, text, before, last, item }: Prompt): Row {
  if (!chat) return { ...item, prompt: text };
  return { ...item, messages: [...before, { role: "user", ...last, content: text }] };
}

const toolNames = ({ tools }: Row): string[] =>
  Array.isArray(tools) ? tools.map((tool: { function?: { name: string } }) => tool.function?.name ?? "?") : [];

interface Props {
  prompt: Prompt;
  running: boolean;
  graded: boolean;
  onChange: (prompt: Prompt) => void;
  onGenerate: () => void;
  onStop: () => void;
}

export function PromptForm({ prompt, running, graded, onChange, onGenerate, onStop }: Props) {
  const change = (fields: Partial<Prompt>) => onChange({ ...prompt, ...fields });
  const submit = (event: Event) => {
    event.preventDefault();
    onGenerate();
  };
  const kind = (chat: boolean, name: string) => (
    <label>
      <input type="radio" name="kind" checked={prompt.chat === chat} onChange={() => change({ chat })} /> {name}
    </label>
  );
  const extra = Object.keys(prompt.item).length > 0;
  const tools = toolNames(prompt.item);
  const { tools: _, ...otherFields } = prompt.item;
  return (
    <form class="card" onSubmit={submit}>
      <fieldset class="kinds">
        <legend class="hidden">Kind of prompt</legend>
        {kind(true, "A message to answer")}
        {kind(false, "A text to continue")}
      </fieldset>
      {prompt.chat && prompt.before.length > 0 && (
        <details>
          <summary>{prompt.before.length === 1 ? "1 message" : `${prompt.before.length} messages`} before it</summary>
          <pre class="text" tabIndex={0}>
            {prompt.before.map((message) => `${message.role}: ${messageText(message)}`).join("\n")}
          </pre>
          <button type="button" onClick={() => change({ before: [], last: undefined })}>
            Leave out
          </button>
        </details>
      )}
      {prompt.chat && tools.length > 0 && (
        <p class="small text">
          The model may call {tools.join(", ")}.{" "}
          <button type="button" onClick={() => change({ item: otherFields })}>
            Leave them out
          </button>
        </p>
      )}
      <Field id="prompt" label={prompt.chat && prompt.last?.role === "tool" ? "Prompt, the result of a tool" : "Prompt"}>
        <textarea
          id="prompt"
          rows={3}
          value={prompt.text}
          onInput={(event) => change({ text: event.currentTarget.value })}
          onKeyDown={(event) => {
            const sends = event.key === "Enter" && (event.ctrlKey || event.metaKey) && !running && prompt.text;
            if (sends) event.currentTarget.form!.requestSubmit(); // which checks the numbers below
          }}
        />
      </Field>
      {graded && extra && (
        <details>
          <summary>The row's fields for the grader</summary>
          <pre class="text" tabIndex={0}>
            {JSON.stringify(prompt.item, null, 2)}
          </pre>
        </details>
      )}
      <div class="below">
        {running ? (
          /* Two keys: a single element, become "Generate" while it is clicked, would submit the form. */
          <button key="stop" type="button" class="main" onClick={onStop}>
            Stop
          </button>
        ) : (
          <button key="generate" class="main" disabled={!prompt.text}>
            Generate
          </button>
        )}
        <Small
          id="max"
          label="Max tokens"
          most={8192}
          value={prompt.maxTokens}
          onInput={(maxTokens) => change({ maxTokens })}
        />
        <Small
          id="temperature"
          label="Temperature"
          most={2}
          fractions
          value={prompt.temperature}
          onInput={(temperature) => change({ temperature })}
        />
        <Small id="seed" label="Seed" most={2 ** 31} value={prompt.seed} onInput={(seed) => change({ seed })} />
      </div>
    </form>
  );
}

interface SmallProps {
  id: string;
  label: string;
  most: number;
  fractions?: boolean; // whether it may be 0 and need not be whole
  value: string;
  onInput: (value: string) => void;
}

const Small = ({ id, label, most, fractions, value, onInput }: SmallProps) => (
  <label class="inline" for={id}>
    {label}{" "}
    <input
      id={id}
      type="number"
      min={fractions || id === "seed" ? 0 : 1}
      max={most}
      step={fractions ? "any" : 1}
      placeholder="auto"
      value={value}
      onInput={(event) => onInput(event.currentTarget.value)}
    />
  </label>
);
