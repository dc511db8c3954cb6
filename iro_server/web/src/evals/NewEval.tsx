// An eval: items, a criterion, and the model of its first run.

import { useState } from "preact/hooks";
import { named } from "../api";
import { Field, Problem } from "../parts";
import { address } from "../router";
import { GraderForm } from "../new/GraderForm";
import { useChecked } from "../new/RowsEditor";
import type { Draft } from "../new/graders";
import { EMPTY, graderOf } from "../new/graders";
import type { Row } from "../new/rows";
import { checkedItem } from "../new/rows";
import { createEval, createRun, deleteEval } from "./api";
import { RunFields, emptyDraft, hasItems, requestOf } from "./RunFields";

export function NewEval({ base }: { base: string }) {
  const [name, setName] = useState("");
  const [draft, setDraft] = useState(emptyDraft(base));
  const [grader, setGrader] = useState<Draft>(EMPTY);
  const [threshold, setThreshold] = useState("0.5");
  const [error, setError] = useState<Error | null>(null);
  const [busy, setBusy] = useState(false);
  const checked = useChecked(draft.items.text, checkedItem);
  const submit = async (event: Event) => {
    event.preventDefault();
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
      location.hash = address(["evals", id]);
    } catch (problem) {
      setError(problem as Error);
      setBusy(false);
    }
  };
  return (
    <form onSubmit={(event) => void submit(event)}>
      <p class="crumb">
        <a href="#/evals">Evals</a>
      </p>
      <div class="title">
        <h1>New eval</h1>
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
