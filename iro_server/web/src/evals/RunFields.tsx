// What a run of an eval asks which model: fields that a new run and a new eval share.

import { listModels, uploadFile } from "../api";
import { usePolled } from "../hooks";
import { Field, Problem } from "../parts";
import { MissingFields } from "../new/MissingFields";
import { RowsEditor } from "../new/RowsEditor";
import type { RowsSource } from "../new/RowsEditor";
import type { Checked, Row } from "../new/rows";
import { itemLines, missingFields, utf8Text } from "../new/rows";
import type { DataSource, EvalRun, InputMessages } from "./api";
import { PAGE, listItems } from "./api";

export interface RunDraft {
  name: string;
  model: string;
  like: string; // the run whose items are taken; empty: new ones
  items: RowsSource;
  prompt: string; // empty: as the earlier run asks, else the items' own messages
  maxTokens: string;
}

interface Props {
  draft: RunDraft;
  runs: EvalRun[]; // whose items may be taken
  checked: Checked; // of new items
  onChange: (fields: Partial<RunDraft>) => void;
}

export const emptyDraft = (model: string): RunDraft => ({
  name: "",
  model,
  like: "",
  items: { text: "", file: null },
  prompt: "",
  maxTokens: "",
});

const ITEM_MESSAGES: InputMessages = { type: "item_reference", item_reference: "item.messages" };
const COMPLETION_MESSAGES: InputMessages = { type: "item_reference", item_reference: "item.input" };

export function RunFields({ draft, runs, checked, onChange }: Props) {
  const models = usePolled(listModels, null, "models");
  const names = new Set([...(models.value?.data.map(({ id }) => id) ?? []), draft.model]);
  return (
    <>
      {models.error && <Problem error={models.error} again={models.again} />}
      <div class="pair">
        <Field id="run-name" label="Name of the run" hint="Optional.">
          <input
            id="run-name"
            maxLength={512}
            value={draft.name}
            aria-describedby="run-name-hint"
            onInput={(event) => onChange({ name: event.currentTarget.value })}
          />
        </Field>
        <Field id="model" label="Model" hint="Whose answers are graded.">
          <select
            id="model"
            value={draft.model}
            aria-describedby="model-hint"
            onChange={(event) => onChange({ model: event.currentTarget.value })}
          >
            {[...names].map((name) => (
              <option key={name}>{name}</option>
            ))}
          </select>
        </Field>
      </div>
      {runs.length > 0 && <Source draft={draft} runs={runs} onChange={onChange} />}
      {!draft.like && (
        <RowsEditor
          source={draft.items}
          checked={checked}
          label={runs.length > 0 ? "New items" : "Items"}
          accept=".jsonl,.json,.ndjson,.txt"
          onChange={(items) => onChange({ items })}
        >
          One JSON object a line, with what the prompt and the grader read:{" "}
          <code>{'{"question": "…", "answer": "…"}'}</code>
        </RowsEditor>
      )}
      <div class="pair">
        <Field
          id="max"
          label="Answer length in tokens"
          hint={`Empty: ${draft.like ? "as of the earlier run" : "as the model is served"}.`}
        >
          <input
            id="max"
            type="number"
            min={1}
            value={draft.maxTokens}
            aria-describedby="max-hint"
            onInput={(event) => onChange({ maxTokens: event.currentTarget.value })}
          />
        </Field>
        <Prompt
          draft={draft}
          like={runs.find((run) => run.id === draft.like)}
          rows={draft.like ? [] : checked.rows}
          onChange={onChange}
        />
      </div>
    </>
  );
}

function Source({ draft, runs, onChange }: Omit<Props, "checked">) {
  const choose = (id: string) => onChange({ like: id, prompt: promptOf(runs.find((run) => run.id === id)) });
  return (
    <Field id="like" label="Items">
      <select id="like" value={draft.like} onChange={(event) => choose(event.currentTarget.value)}>
        {runs.map((run) => (
          <option key={run.id} value={run.id}>
            those of {run.name || run.id}
          </option>
        ))}
        <option value="">new ones</option>
      </select>
    </Field>
  );
}

interface PromptProps extends Pick<Props, "draft" | "onChange"> {
  like: EvalRun | undefined;
  rows: Row[];
}

function Prompt({ draft, like, rows, onChange }: PromptProps) {
  const names = fieldNames(rows);
  const fields = names.length > 0 ? `: ${names.map((name) => `{{item.${name}}}`).join(", ")}` : " as {{item.name}}";
  const otherwise = like?.data_source.input_messages ? "as the earlier run asks" : "the item's own messages";
  return (
    <Field id="prompt" label="Prompt" hint={`What the model is asked, with fields of the item${fields}. Empty: ${otherwise}.`}>
      <textarea
        id="prompt"
        rows={3}
        value={draft.prompt}
        aria-describedby="prompt-hint"
        onInput={(event) => onChange({ prompt: event.currentTarget.value })}
      />
      <MissingFields template={draft.prompt} rows={rows} />
    </Field>
  );
}

const SHOWN = 6; // names of fields

const fieldNames = (rows: Row[]): string[] =>
  [...new Set(rows.slice(0, 100).flatMap((row) => Object.keys(row)))].slice(0, SHOWN);

export const hasItems = ({ like, items }: RunDraft, { rows, problems }: Checked): boolean =>
  like !== "" || items.file !== null || (rows.length > 0 && problems.length === 0);

/** What a run asks, where that is a single text. */
export function promptOf(run: EvalRun | undefined): string {
  const template = run?.data_source.input_messages?.template ?? [];
  if (template.length !== 1 || template[0]!.role !== "user") return "";
  const { content } = template[0]!;
  return typeof content === "string" ? content : content.text;
}

/** Throws Error where the prompt names a field that no item has: every answer would be an error. */
function checkPrompt(prompt: string, rows: Row[]): void {
  const missing = missingFields(prompt, rows).find(({ lacking }) => lacking === rows.length);
  if (missing) throw new Error(`Prompt: no item has the field ${missing.name}.`);
}

/** What the model is asked. Throws Error where that is the items' own messages, and they have none. */
async function messagesOf(draft: RunDraft, rows: Row[], like: EvalRun | undefined): Promise<InputMessages> {
  if (draft.prompt.trim()) return { type: "template", template: [{ role: "user", content: draft.prompt }] };
  if (like?.data_source.input_messages) return like.data_source.input_messages;
  if (like?.data_source.source.type === "stored_completions") return COMPLETION_MESSAGES;
  const items = like ? (await listItems(like, "graded", PAGE)).data.map((item) => item.datasource_item) : rows;
  const isUnknown = like !== undefined && items.length === 0; // a run that graded nothing
  if (isUnknown || items.some(({ messages }) => messages === undefined))
    throw new Error("Prompt: write what the model is asked; there are items without messages of their own.");
  return ITEM_MESSAGES;
}

/** The run's request, once its new items are uploaded. Throws Error with what to change. */
export async function requestOf(draft: RunDraft, { rows }: Checked, like: EvalRun | undefined) {
  const input_messages = await messagesOf(draft, rows, like);
  if (!like) checkPrompt(draft.prompt, rows);
  const limit = draft.maxTokens ? { max_completion_tokens: Number(draft.maxTokens) } : {};
  const data_source: DataSource = {
    type: "completions",
    model: draft.model,
    source: like?.data_source.source ?? { type: "file_id", id: await uploadItems(draft.items) },
    input_messages,
    sampling_params: { ...like?.data_source.sampling_params, ...limit },
  };
  return { name: draft.name.trim() || undefined, data_source };
}

const TABLE = /\.(csv|parquet)$/i; // which the server reads
const REWRITTEN = 256_000_000; // bytes; a larger file is not read here

async function uploadItems({ text, file }: RowsSource): Promise<string> {
  if (file && (TABLE.test(file.name) || file.size > REWRITTEN)) return uploadFile(file, file.name, "evals");
  const lines = itemLines(file ? await utf8Text(file) : text);
  return uploadFile(new Blob([lines]), file?.name ?? "items.jsonl", "evals");
}
