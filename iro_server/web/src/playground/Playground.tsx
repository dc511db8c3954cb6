// One prompt, answered by several models side by side.

import { useEffect, useRef, useState } from "preact/hooks";
import { isChat } from "../completion";
import { draftOf, saveDraft } from "../drafts";
import { graderTitle } from "../format";
import { useDraft } from "../hooks";
import { Problem } from "../parts";
import { AnswerView } from "./AnswerView";
import { ColumnForm } from "./ColumnForm";
import { PickGrader } from "./PickGrader";
import type { Prompt } from "./PromptForm";
import { PromptForm, rowOf } from "./PromptForm";
import type { Answer } from "./answer";
import { answer } from "./answer";
import { ColouringForm } from "./ColouringForm";
import type { Colouring } from "./tokens";
import type { Column } from "./search";
import { searchOf } from "./search";
import type { Subject } from "./subject";
import { loadSubject } from "./subject";

const MOST = 6; // columns

/** An answer, and the prompt and settings that it is of. */
interface Answered {
  answer: Answer;
  request: string;
}

export function Playground({ base, query }: { base: string; query: URLSearchParams }) {
  const [subject, setSubject] = useState<Subject | null>(null);
  const [error, setError] = useState<Error | null>(null);
  useEffect(() => {
    const controller = new AbortController();
    loadSubject(base, query, controller.signal).then(
      setSubject,
      (problem: Error) => controller.signal.aborted || setError(problem),
    );
    return () => controller.abort();
  }, []);
  if (error) return <Problem error={error} />;
  return subject ? <Columns base={base} {...subject} /> : <p class="faint">Loading …</p>;
}

/** The answers by column, which stay for this tab once all of them have ended. */
function useAnswers(name: string) {
  const state = useState<Record<number, Answered>>(() => draftOf<Record<number, Answered>>(name) ?? {});
  const [answers] = state;
  const streaming = Object.values(answers).some(({ answer }) => answer.state === "streaming");
  useEffect(() => {
    if (!streaming) saveDraft(name, answers);
  }, [name, answers, streaming]);
  return state;
}

const requestOf = (prompt: Prompt, column: Column): string => JSON.stringify([prompt, column]);

function Columns({ base, models, aligned, jobs, grader, graderJob, ...first }: Subject & { base: string }) {
  const [prompt, setPrompt] = useDraft(`${first.name} prompt`, first.prompt);
  const [columns, setColumns] = useDraft(`${first.name} columns`, first.columns);
  const [answers, setAnswers] = useAnswers(`${first.name} answers`);
  const [colouring, setColouring] = useDraft<Colouring>("playground colouring", "none");
  const [running, setRunning] = useState(false);
  const controller = useRef<AbortController | null>(null);
  useEffect(() => () => controller.current?.abort(), []);
  const generate = async () => {
    controller.current = new AbortController();
    const { signal } = controller.current;
    setAnswers({});
    setRunning(true);
    const row = rowOf(prompt);
    const show = (column: Column) => {
      const request = requestOf(prompt, column);
      return (state: Answer) =>
        (signal.aborted && state.state === "streaming") ||
        setAnswers((all) => ({ ...all, [column.id]: { answer: state, request } }));
    };
    await Promise.all(
      columns.map((column) => {
        const options = optionsOf(prompt, column, row, aligned);
        return answer({ model: column.model, row, options, grader, logprobs: colouring !== "none" }, signal, show(column));
      }),
    );
    setRunning(false);
  };
  const rewards = columns.flatMap(({ id }) => answers[id]?.answer.reward ?? []);
  const highest = Math.max(...rewards);
  const distinct = new Set(rewards).size > 1;
  const change = (column: Column) =>
    setColumns((all) => all.map((other) => (other.id === column.id ? column : other)));
  const remove = (id: number) => setColumns((all) => all.filter((column) => column.id !== id));
  const add = () => {
    const id = Math.max(...columns.map((column) => column.id), ...Object.keys(answers).map(Number)) + 1;
    setColumns((all) => [...all, { id, model: models.at(-1)!, mode: "served", n: 16, settings: {}, weights: {} }]);
  };
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
            <div>
              <ColumnForm column={column} models={models} aligned={aligned} base={base} onChange={change} />
              {column.mode === "best_of_n" && grader && jobs[column.model] && jobs[column.model] !== graderJob && (
                <PickGrader job={jobs[column.model]!} grader={grader} />
              )}
            </div>
            <div>
              {answers[column.id] && answers[column.id]!.request !== requestOf(prompt, column) && (
                <p class="faint small">To the prompt or with the settings before: generate again.</p>
              )}
              {answers[column.id] && (
                <AnswerView
                  answer={answers[column.id]!.answer}
                  label={`Answer ${index + 1}`}
                  colouring={colouring}
                  best={distinct && answers[column.id]!.answer.reward === highest}
                  grader={grader ? graderTitle(grader) : ""}
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
