// The grader, and what it gives for an answer.

import { useState } from "preact/hooks";
import type { Graded } from "../api";
import { runGrader } from "../api";
import { answerTo } from "../completion";
import { Field, Problem } from "../parts";
import type { Draft, Kind } from "./graders";
import { KINDS, METRICS, OPERATIONS, graderOf, templateOf } from "./graders";
import type { Row } from "./rows";
import { itemFields } from "./rows";
import { MissingFields } from "./MissingFields";

interface Props {
  draft: Draft;
  rows: Row[];
  base: string;
  onChange: (draft: Draft) => void;
}

export function GraderForm({ draft, rows, base, onChange }: Props) {
  const change = (fields: Partial<Draft>) => onChange({ ...draft, ...fields });
  const fields = itemFields(rows);
  return (
    <>
      <Field id="kind" label="Kind of grader">
        <select id="kind" value={draft.kind} onChange={(event) => change({ kind: event.currentTarget.value as Kind })}>
          {Object.entries(KINDS).map(([kind, name]) => (
            <option value={kind}>{name}</option>
          ))}
        </select>
      </Field>
      <Fields draft={draft} change={change} />
      {fields.length > 0 && draft.kind !== "python" && draft.kind !== "words" && (
        <p class="faint small">
          Fields of your rows:{" "}
          {fields.slice(0, 8).map((name) => (
            <code class="chip">{`{{item.${name}}}`}</code>
          ))}
        </p>
      )}
      <MissingFields template={templateOf(draft)} rows={rows} />
      <TryIt draft={draft} rows={rows} base={base} />
    </>
  );
}

function Fields({ draft, change }: { draft: Draft; change: (fields: Partial<Draft>) => void }) {
  if (draft.kind === "words") {
    return (
      <Field
        id="words"
        label="Words"
        hint="With commas between them. The reward is how many of them occur in the answer, also within longer words."
      >
        <input
          id="words"
          placeholder="great, beautiful"
          aria-describedby="words-hint"
          value={draft.words}
          onInput={(event) => change({ words: event.currentTarget.value })}
        />
      </Field>
    );
  }
  if (draft.kind === "python") {
    return (
      <Field
        id="source"
        label="Source"
        hint={'grade(sample, item) returns a number; sample["output_text"] is the answer, item the row. It runs in a sandbox.'}
      >
        <textarea
          id="source"
          class="code"
          rows={8}
          wrap="off"
          spellcheck={false}
          value={draft.source}
          aria-describedby="source-hint"
          onInput={(event) => change({ source: event.currentTarget.value })}
        />
      </Field>
    );
  }
  if (draft.kind === "json") {
    return (
      <Field
        id="json"
        label="Grader"
        hint="As in the API: string_check, text_similarity, python, score_model (with ranking it compares a prompt's answers), label_model or multi."
      >
        <textarea
          id="json"
          class="code"
          rows={12}
          wrap="off"
          spellcheck={false}
          value={draft.json}
          aria-describedby="json-hint"
          onInput={(event) => change({ json: event.currentTarget.value })}
        />
      </Field>
    );
  }
  return (
    <div class="pair">
      {draft.kind === "string_check" ? (
        <Field id="operation" label="The answer">
          <select
            id="operation"
            value={draft.operation}
            onChange={(event) => change({ operation: event.currentTarget.value })}
          >
            {Object.entries(OPERATIONS).map(([operation, name]) => (
              <option value={operation}>{name}</option>
            ))}
          </select>
        </Field>
      ) : (
        <Field id="metric" label="Measure">
          <select id="metric" value={draft.metric} onChange={(event) => change({ metric: event.currentTarget.value })}>
            {METRICS.map((metric) => (
              <option value={metric}>{metric}</option>
            ))}
          </select>
        </Field>
      )}
      <Field id="reference" label="Text" hint="May hold fields of the row.">
        <input
          id="reference"
          value={draft.reference}
          aria-describedby="reference-hint"
          onInput={(event) => change({ reference: event.currentTarget.value })}
        />
      </Field>
    </div>
  );
}

/** What the grader said, and the grader, answer and row that it is of. */
interface Outcome {
  input: string;
  graded?: Graded;
  error?: Error;
}

function TryIt({ draft, rows, base }: Omit<Props, "onChange">) {
  const [answer, setAnswer] = useState("");
  const [number, setNumber] = useState(1);
  const [outcome, setOutcome] = useState<Outcome | null>(null);
  const [busy, setBusy] = useState(false);
  const row = rows[Math.min(number, rows.length) - 1] ?? null;
  const input = JSON.stringify([draft, answer, row]);
  const { graded, error } = outcome?.input === input ? outcome : {};
  const attempt = async (work: () => Promise<Graded | void>) => {
    setBusy(true);
    setOutcome(null);
    try {
      const result = await work();
      if (result) setOutcome({ input, graded: result });
    } catch (problem) {
      setOutcome({ input, error: problem as Error });
    }
    setBusy(false);
  };
  const grade = () => attempt(async () => runGrader(graderOf(draft), answer, row ?? {}));
  const write = () => attempt(async () => setAnswer(await answerTo(base, row!)));
  return (
    <fieldset class="try">
      <legend>Try it on this answer</legend>
      <textarea
        aria-label="Answer to grade"
        rows={3}
        value={answer}
        onInput={(event) => setAnswer(event.currentTarget.value)}
      />
      <div class="below">
        {rows.length > 0 && (
          <label class="inline">
            to row{" "}
            <input
              type="number"
              min={1}
              max={rows.length}
              value={number}
              onInput={(event) => setNumber(Math.max(1, Math.round(Number(event.currentTarget.value))))}
            />
          </label>
        )}
        {row && (row.messages !== undefined || row.prompt !== undefined) && (
          <button type="button" disabled={busy} onClick={() => void write()}>
            Have the frozen model write one
          </button>
        )}
        <button type="button" disabled={busy} onClick={() => void grade()}>
          Grade it
        </button>
        <output aria-live="polite">
          {busy && "working …"}
          {graded && !graded.iro.error && (
            <>
              reward <b>{graded.reward}</b>
            </>
          )}
        </output>
      </div>
      {graded?.iro.error && <Problem error={new Error(graded.iro.error)} />}
      {error && <Problem error={error} />}
    </fieldset>
  );
}
