// From rows and a grader to a job that runs.

import { useState } from "preact/hooks";
import { createEstimate, createJob, named, uploadFile, validateGrader } from "../api";
import { hasReplaced, keepDrafts, takeDraft, takeReplaced } from "../drafts";
import { useDraft } from "../hooks";
import { Field, Problem } from "../parts";
import { fromHere } from "../router";
import { EstimateView } from "./Estimate";
import type { StartedEstimate } from "./Estimate";
import { GraderForm } from "./GraderForm";
import { RowsEditor, useChecked } from "./RowsEditor";
import type { RowsSource } from "./RowsEditor";
import { ESTIMATE, FORM, PROBLEM } from "./again";
import { EXAMPLE_GRADER, EXAMPLE_OPTIONS, EXAMPLE_ROWS } from "./example";
import type { Draft } from "./graders";
import { merged } from "./json";
import { EMPTY, graderOf } from "./graders";
import type { Option, Options } from "./options";
import { FIRST, MORE, optionsIn, otherFields } from "./options";
import { checkedRow } from "./rows";

const OTHER_HINT = "What the fields above set goes before it. All fields: docs/hyperparameters.md.";
const NAME = "[A-Za-z0-9_.\\-]+";

export function NewJob({ base }: { base: string }) {
  const [text, setText] = useDraft("rows", "");
  const [file, setFile] = useState<File | null>(null);
  const [draft, setDraft] = useDraft<Draft>("grader", EMPTY);
  const [options, setOptions] = useDraft<Options>("options", {});
  const [busy, setBusy] = useState("");
  const [error, setError] = useState(problemBefore);
  const [estimate, setEstimate] = useDraft<StartedEstimate | null>(ESTIMATE, null);
  const source: RowsSource = { text, file };
  const setSource = (changed: RowsSource) => {
    setText(changed.text);
    setFile(changed.file);
  };
  /** `set`, after which an error and an estimate are of the form before. */
  const changing =
    <Value,>(set: (value: Value) => void) =>
    (value: Value) => {
      setError(null);
      setEstimate((last) => last && { ...last, outdated: true });
      set(value);
    };
  const checked = useChecked(text, checkedRow);
  const ready = file !== null || (checked.rows.length > 0 && checked.problems.length === 0);
  const send = async (what: "job" | "estimate") => {
    const goTo = fromHere();
    setError(null);
    setEstimate(null);
    try {
      setBusy("Checking the grader …");
      const grader = graderOf(draft);
      otherFields(options); // refused before rows are uploaded
      await validateGrader(grader);
      setBusy("Uploading rows …");
      const rows = file ?? new Blob([text.trimEnd(), "\n"]);
      const training_file = await uploadFile(rows, file?.name ?? "rows.jsonl", "fine-tune");
      setBusy(what === "job" ? "Starting …" : "Estimating …");
      const hyperparameters = optionsIn("hyperparameters", options);
      const method = {
        type: "reinforcement",
        reinforcement: { grader, hyperparameters, iro: optionsIn(undefined, options) },
      };
      const suffix = options.suffix ? { suffix: options.suffix } : {};
      const fields = { model: base, training_file, method, ...suffix, ...optionsIn("job", options) };
      const body = merged(otherFields(options), fields);
      if (what === "job") goTo(["jobs", (await createJob(body)).id]);
      else setEstimate({ id: (await createEstimate(body)).id, outdated: false });
      setBusy("");
    } catch (problem) {
      setError(problem as Error);
      setBusy("");
    }
  };
  const [canUndo, setCanUndo] = useState(hasReplaced);
  const undo = () => {
    const { rows, grader, options: before } = takeReplaced();
    setError(null);
    setEstimate(null);
    setSource({ text: (rows as string | null) ?? "", file: null });
    setDraft((grader as Draft | null) ?? EMPTY);
    setOptions((before as Options | null) ?? {});
    setCanUndo(false);
  };
  const fill = (rows: string, grader: Draft, chosen: Options) => {
    keepDrafts(FORM);
    setCanUndo(true);
    setError(null);
    setEstimate(null);
    setSource({ text: rows, file: null });
    setDraft(grader);
    setOptions(chosen);
  };
  return (
    <form
      onInvalidCapture={(event) => (event.target as Element).closest("details")?.setAttribute("open", "")}
      onSubmit={(event) => {
        event.preventDefault();
        void send("job");
      }}
    >
      <div class="title">
        <h1>New job</h1>
        <span class="actions">
          {canUndo && (
            <button type="button" class="quiet" title="Back to what the form held before" onClick={undo}>
              Undo
            </button>
          )}
          <button type="button" onClick={() => fill("", EMPTY, {})}>
            Clear the form
          </button>
          <button type="button" onClick={() => fill(EXAMPLE_ROWS, EXAMPLE_GRADER, EXAMPLE_OPTIONS)}>
            Fill in an example
          </button>
        </span>
      </div>
      <section class="card" aria-labelledby="step-rows">
        <h2 id="step-rows">1. Prompts</h2>
        <RowsEditor
          source={source}
          checked={checked}
          label="Training rows"
          accept=".jsonl,.json,.ndjson,.txt,.csv,.parquet"
          onChange={changing(setSource)}
        >
          One JSON object a line: <code>{'{"messages": [{"role": "user", "content": "…"}]}'}</code>, a conversation to
          answer, or <code>{'{"prompt": "…"}'}</code>, a text to continue. Other fields are for the grader.
        </RowsEditor>
      </section>
      <section class="card" aria-labelledby="step-grader">
        <h2 id="step-grader">2. Score</h2>
        <p class="faint small">The grader gives each answer a number. The job steers the model towards higher ones.</p>
        <GraderForm draft={draft} rows={checked.rows} base={base} onChange={changing(setDraft)} />
      </section>
      <section class="card" aria-labelledby="step-options">
        <h2 id="step-options">3. Options</h2>
        <OptionFields options={options} onChange={changing(setOptions)} />
      </section>
      {error && <Problem error={named(error)} />}
      {estimate && (
        <section class="card" aria-labelledby="estimate">
          <h2 id="estimate">Estimate</h2>
          {estimate.outdated && <p class="faint small">Of the form before it was changed: estimate again.</p>}
          <EstimateView key={estimate.id} id={estimate.id} />
        </section>
      )}
      <div class="start">
        <button type="button" disabled={!ready || busy !== ""} onClick={() => void send("estimate")}>
          Estimate first
        </button>
        <button class="main" disabled={!ready || busy !== ""}>
          Start the job
        </button>
        <span class="faint" role="status">
          {busy || (!ready && "It needs training rows that are all valid.")}
        </span>
      </div>
    </form>
  );
}

/** What the form that "Start again" opens could not be filled with. */
function problemBefore(): Error | null {
  const message = takeDraft<string>(PROBLEM);
  return message === null ? null : new Error(message);
}

function OptionFields({ options, onChange }: { options: Options; onChange: (options: Options) => void }) {
  const fields = (list: Option[]) =>
    list.map(({ name, label, hint, least, most, ...option }) => (
      <Field id={name} label={label} hint={hint}>
        <input
          id={name}
          type="number"
          min={least}
          max={most}
          placeholder={option.default}
          aria-describedby={`${name}-hint`}
          value={options[name] ?? ""}
          onInput={(event) => onChange({ ...options, [name]: event.currentTarget.value })}
        />
      </Field>
    ));
  return (
    <>
      <div class="grid">
        <Field id="suffix" label="Name" hint="Part of the aligned model's name.">
          <input
            id="suffix"
            maxLength={64}
            pattern={NAME}
            title="Letters, digits, - _ and ."
            placeholder="none"
            aria-describedby="suffix-hint"
            value={options.suffix ?? ""}
            onInput={(event) => onChange({ ...options, suffix: event.currentTarget.value })}
          />
        </Field>
        {fields(FIRST)}
      </div>
      <details open={Boolean(options.other)}>
        <summary>More options</summary>
        <div class="grid">{fields(MORE)}</div>
        <Field id="other" label="Other fields of the request, as JSON" hint={OTHER_HINT}>
          <textarea
            id="other"
            class="code"
            rows={4}
            spellcheck={false}
            placeholder={'{"method": {"reinforcement": {"iro": {"keep_unproven": true}}}}'}
            aria-describedby="other-hint"
            value={options.other ?? ""}
            onInput={(event) => onChange({ ...options, other: event.currentTarget.value })}
          />
        </Field>
      </details>
    </>
  );
}
