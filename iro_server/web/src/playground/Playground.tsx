// One prompt, answered by several models side by side.

import { useEffect, useRef, useState } from "preact/hooks";
import type { Grader } from "../api";
import { ApiError, firstRow, getJob, listModels } from "../api";
import { isChat } from "../completion";
import { Problem } from "../parts";
import { AnswerView } from "./AnswerView";
import { ColumnForm } from "./ColumnForm";
import type { Prompt } from "./PromptForm";
import { PromptForm, promptOf, rowOf } from "./PromptForm";
import type { Answer } from "./answer";
import { answer } from "./answer";
import { ColouringForm } from "./ColouringForm";
import type { Colouring } from "./tokens";
import type { Column } from "./search";
import { searchOf } from "./search";

const MOST = 6; // columns

interface Subject {
  models: string[];
  aligned: string[]; // those of them that can be mixed: final models, not checkpoints
  columns: Column[];
  grader: Grader | null;
  prompt: Prompt;
}

export function Playground({ base, query }: { base: string; query: URLSearchParams }) {
  const [subject, setSubject] = useState<Subject | null>(null);
  const [error, setError] = useState<Error | null>(null);
  useEffect(() => {
    const controller = new AbortController();
    load(base, query, controller.signal).then(
      setSubject,
      (problem: Error) => controller.signal.aborted || setError(problem),
    );
    return () => controller.abort();
  }, []);
  if (error) return <Problem error={error} />;
  return subject ? <Columns base={base} {...subject} /> : <p class="faint">Loading …</p>;
}

/** The model that the address names, or the newest aligned one; its grader, and the first of its training rows. */
async function load(base: string, query: URLSearchParams, signal: AbortSignal): Promise<Subject> {
  const { data } = await listModels(signal);
  const aligned = query.get("model") ?? data.filter((model) => model.iro).at(-1)?.id ?? null;
  const jobId = query.get("job") ?? data.find((model) => model.id === aligned)?.iro?.job ?? null;
  const names = new Set([...data.map((model) => model.id), ...(aligned ? [aligned] : [])]);
  const { grader, row } = jobId ? await jobOf(jobId, signal) : { grader: null, row: null };
  const column = { n: 16, settings: {}, weights: {}, mode: "served" as const };
  const columns: Column[] = [{ ...column, id: 0, model: base }];
  if (aligned)
    columns.push({ ...column, id: 1, model: aligned, mode: "best_of_n" }, { ...column, id: 2, model: aligned });
  const maxTokens = data.find((model) => jobId && model.iro?.job === jobId)?.iro?.max_tokens;
  const mixable = data.filter((model) => model.iro).map((model) => model.id);
  return { models: [...names], aligned: mixable, columns, grader, prompt: promptOf(row, maxTokens) };
}

async function jobOf(id: string, signal: AbortSignal) {
  try {
    const job = await getJob(id, signal);
    const row = await firstRow(job.training_file, signal).catch(orGone(null));
    return { grader: job.method.reinforcement.grader, row };
  } catch (error) {
    return orGone({ grader: null, row: null })(error);
  }
}

/** `value` for what was deleted, is another project's, or is not for this key to read. */
const orGone =
  <Value,>(value: Value) =>
  (error: unknown): Value => {
    if (error instanceof ApiError && (error.status === 404 || error.status === 403)) return value;
    throw error;
  };

function Columns({ base, models, aligned, grader, ...first }: Subject & { base: string }) {
  const [prompt, setPrompt] = useState(first.prompt);
  const [columns, setColumns] = useState(first.columns);
  const [answers, setAnswers] = useState<Record<number, Answer>>({});
  const [colouring, setColouring] = useState<Colouring>("none");
  const [outdated, setOutdated] = useState<number[]>([]); // columns that were changed since they answered
  const [running, setRunning] = useState(false);
  const controller = useRef<AbortController | null>(null);
  const nextId = useRef(first.columns.length);
  useEffect(() => () => controller.current?.abort(), []);
  const generate = async () => {
    controller.current = new AbortController();
    const { signal } = controller.current;
    setAnswers({});
    setOutdated([]);
    setRunning(true);
    const row = rowOf(prompt);
    const show = (id: number) => (state: Answer) =>
      (signal.aborted && state.state === "streaming") || setAnswers((all) => ({ ...all, [id]: state }));
    await Promise.all(
      columns.map((column) => {
        const options = optionsOf(prompt, column, row, aligned);
        return answer({ model: column.model, row, options, grader, logprobs: colouring !== "none" }, signal, show(column.id));
      }),
    );
    setRunning(false);
  };
  const rewards = Object.values(answers).flatMap(({ reward }) => reward ?? []);
  const highest = Math.max(...rewards);
  const distinct = new Set(rewards).size > 1;
  const change = (column: Column) => {
    setColumns((all) => all.map((other) => (other.id === column.id ? column : other)));
    setOutdated((ids) => [...ids, column.id]);
  };
  const remove = (id: number) => setColumns((all) => all.filter((column) => column.id !== id));
  const add = () =>
    setColumns((all) => [...all, { id: nextId.current++, model: models.at(-1)!, mode: "served", n: 16, settings: {}, weights: {} }]);
  return (
    <section>
      <div class="title">
        <h1>Playground</h1>
      </div>
      {models.length === 1 && (
        <p class="faint">
          Only the frozen model answers so far. <a href="#/new">Start a job</a> to compare it with an aligned one.
        </p>
      )}
      <PromptForm
        prompt={prompt}
        running={running}
        graded={grader !== null}
        onChange={setPrompt}
        onGenerate={() => void generate()}
        onStop={() => controller.current?.abort()}
      />
      <ColouringForm colouring={colouring} onChange={setColouring} />
      <div class="columns">
        {columns.map((column, index) => (
          <section class="card column" key={column.id} aria-label={`Column ${index + 1}`}>
            <ColumnForm column={column} models={models} aligned={aligned} base={base} onChange={change} />
            <div>
              {answers[column.id] && outdated.includes(column.id) && (
                <p class="faint small">With the settings before: generate again.</p>
              )}
              {answers[column.id] && (
                <AnswerView
                  answer={answers[column.id]!}
                  label={`Answer ${index + 1}`}
                  colouring={colouring}
                  best={distinct && answers[column.id]!.reward === highest}
                />
              )}
            </div>
            {columns.length > 1 && (
              <button class="quiet remove" aria-label={`Remove column ${index + 1}`} onClick={() => remove(column.id)}>
                ×
              </button>
            )}
          </section>
        ))}
      </div>
      {columns.length < MOST && <button onClick={add}>Add a column</button>}
    </section>
  );
}

function optionsOf(
  prompt: Prompt,
  column: Column,
  row: Record<string, unknown>,
  aligned: string[],
): Record<string, unknown> {
  const options: Record<string, unknown> = {};
  if (prompt.maxTokens) options[isChat(row) ? "max_completion_tokens" : "max_tokens"] = Number(prompt.maxTokens);
  if (prompt.temperature) options.temperature = Number(prompt.temperature);
  if (prompt.seed) options.seed = Number(prompt.seed);
  const search = searchOf(column, aligned);
  if (search) options.search = search;
  if (column.mode === "best_of_n") options.item = row;
  return options;
}
