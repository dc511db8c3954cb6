// An eval: items, a criterion, and the model of its first run.

import { useState } from "preact/hooks";
import { named } from "../api";
import { useDraft } from "../hooks";
import { Field, Problem } from "../parts";
import { fromHere } from "../router";
import { GraderForm } from "../new/GraderForm";
import { useChecked } from "../new/RowsEditor";
import type { Draft } from "../new/graders";
import { EMPTY, graderOf } from "../new/graders";
import type { Row } from "../new/rows";
import { checkedItem } from "../new/rows";
import { createEval, createRun, deleteEval } from "./api";
import type { RunDraft } from "./RunFields";
import { RunFields, emptyDraft, hasItems, requestOf } from "./RunFields";

const THRESHOLD = "0.5";

/** The run's fields, which stay for this tab; a file that is not edited here does not. */
function useRunDraft(base: string): [RunDraft, (draft: RunDraft) => void] {
  const [fields, setFields] = useDraft("eval run", emptyDraft(base));
  const [file, setFile] = useState<File | null>(null);
  const change = (draft: RunDraft) => {
    setFile(draft.items.file);
    setFields({ ...draft, items: { ...draft.items, file: null } });
  };
  return [{ ...fields, items: { ...fields.items, file } }, change];
}

export function NewEval({ base }: { base: string }) {
  const [name, setName] = useDraft("eval name", "");
  const [draft, setDraft] = useRunDraft(base);
  const [grader, setGrader] = useDraft<Draft>("eval grader", EMPTY);
  const [threshold, setThreshold] = useDraft("eval threshold", THRESHOLD);
  const [error, setError] = useState<Error | null>(null);
  const [busy, setBusy] = useState(false);
  const checked = useChecked(draft.items.text, checkedItem);
  const submit = async (event: Event) => {
    event.preventDefault();
    const goTo = fromHere();
    setBusy(true);
    setError(null);
    try {
      const criterion = { ...graderOf(grader), pass_threshold: Number(threshold) };
      const request = await requestOf(draft, checked, undefined);
      const data_source_config = { type: "custom", item_schema: schemaOf(checked.rows), include_sample_schema: true };
      const { id } = await createEval({ name: name.trim(), data_source_config, testing_criteria: [criterion] });
      await createRun(id, request).catch(async (problem: unknown) => {
        await deleteEval(id); // it would be made again by the next attempt
        throw problem;
      });
      goTo(["evals", id]);
    } catch (problem) {
      setError(problem as Error);
      setBusy(false);
    }
  };
  const clear = () => {
    setName("");
    setDraft(emptyDraft(base));
    setGrader(EMPTY);
    setThreshold(THRESHOLD);
    setError(null);
  };
  return (
    <form onSubmit={(event) => void submit(event)}>
      <p class="crumb">
        <a href="#/evals">Evals</a>
      </p>
      <div class="title">
        <h1>New eval</h1>
        <span class="actions">
          <button type="button" onClick={clear}>
            Clear the form
          </button>
        </span>
      </div>
      <section class="card" aria-labelledby="step-items">
        <h2 id="step-items">1. Items and first run</h2>
        <Field id="name" label="Name of the eval">
          <input
            id="name"
            required
            maxLength={512}
            value={name}
            onInput={(event) => setName(event.currentTarget.value)}
          />
        </Field>
        <RunFields draft={draft} runs={[]} checked={checked} onChange={(fields) => setDraft({ ...draft, ...fields })} />
      </section>
      <section class="card" aria-labelledby="step-criterion">
        <h2 id="step-criterion">2. Criterion</h2>
        <GraderForm draft={grader} rows={checked.rows} base={base} onChange={setGrader} />
        <Field id="threshold" label="Passes from" hint="An answer passes whose score is at least this.">
          <input
            id="threshold"
            type="number"
            step="any"
            required
            value={threshold}
            aria-describedby="threshold-hint"
            onInput={(event) => setThreshold(event.currentTarget.value)}
          />
        </Field>
      </section>
      {error && <Problem error={named(error)} />}
      <div class="start">
        <button class="main" disabled={busy || !hasItems(draft, checked)}>
          Create the eval and run it
        </button>
        <span class="faint" role="status">
          {!hasItems(draft, checked) && "It needs items that are all valid."}
        </span>
      </div>
    </form>
  );
}

/** What the items have in common, as a JSON schema: fields that every item has are required. */
function schemaOf(rows: Row[]) {
  const names = [...new Set(rows.flatMap((row) => Object.keys(row)))];
  const required = names.filter((name) => rows.every((row) => name in row));
  return { type: "object", properties: Object.fromEntries(names.map((name) => [name, {}])), required };
}
