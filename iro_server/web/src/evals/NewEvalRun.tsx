// A run of an eval: a model, and the items of an earlier run or new ones.

import { useState } from "preact/hooks";
import { named } from "../api";
import { usePolled } from "../hooks";
import { Problem } from "../parts";
import { address, fromHere } from "../router";
import { useChecked } from "../new/RowsEditor";
import { checkedItem } from "../new/rows";
import type { Eval, EvalRun } from "./api";
import { PAGE, createRun, getEval, listRuns } from "./api";
import { RunFields, emptyDraft, hasItems, promptOf, requestOf } from "./RunFields";

export function NewEvalRun({ id, base }: { id: string; base: string }) {
  const { value, error, again } = usePolled(
    async (signal) => {
      const [evaluation, runs] = await Promise.all([getEval(id, signal), listRuns(id, PAGE, signal)]);
      return { evaluation, runs: runs.data };
    },
    null,
    `new run of ${id}`,
  );
  if (!value) return error ? <Problem error={error} again={again} /> : <p class="faint">Loading …</p>;
  return <RunForm {...value} base={base} />;
}

function RunForm({ evaluation, runs, base }: { evaluation: Eval; runs: EvalRun[]; base: string }) {
  const newest = runs[0];
  const start = { ...emptyDraft(base), like: newest?.id ?? "", prompt: promptOf(newest) };
  const [draft, setDraft] = useState(start);
  const [error, setError] = useState<Error | null>(null);
  const [busy, setBusy] = useState(false);
  const checked = useChecked(draft.items.text, checkedItem);
  const submit = async (event: Event) => {
    event.preventDefault();
    const goTo = fromHere();
    setBusy(true);
    setError(null);
    try {
      const like = runs.find((run) => run.id === draft.like);
      await createRun(evaluation.id, await requestOf(draft, checked, like));
      goTo(["evals", evaluation.id]);
    } catch (problem) {
      setError(problem as Error);
      setBusy(false);
    }
  };
  return (
    <section>
      <p class="crumb">
        <a href="#/evals">Evals</a> / <a href={address(["evals", evaluation.id])}>{evaluation.name || evaluation.id}</a>
      </p>
      <div class="title">
        <h1>New run</h1>
      </div>
      <form class="card" onSubmit={(event) => void submit(event)}>
        <RunFields
          draft={draft}
          runs={runs}
          checked={checked}
          onChange={(fields) => setDraft({ ...draft, ...fields })}
        />
        {error && <Problem error={named(error)} />}
        <div class="start">
          <button class="main" disabled={busy || !hasItems(draft, checked)}>
            Start the run
          </button>
          <span class="faint small" role="status">
            {!hasItems(draft, checked) && "It needs items that are all valid."}
          </span>
        </div>
      </form>
    </section>
  );
}
