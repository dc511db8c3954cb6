// The frame of every page: who calls, where one is, and the page itself.

import { useEffect, useRef, useState } from "preact/hooks";
import { ApiError, listModels, saveKey, savedKey, watchRefusals } from "./api";
import { KeyForm } from "./KeyForm";
import { EvalList } from "./evals/EvalList";
import { EvalPage } from "./evals/EvalPage";
import { NewEval } from "./evals/NewEval";
import { NewEvalRun } from "./evals/NewEvalRun";
import { usePolled } from "./hooks";
import { JobList } from "./jobs/JobList";
import { JobPage } from "./jobs/JobPage";
import { NewJob } from "./new/NewJob";
import { Problem } from "./parts";
import { Playground } from "./playground/Playground";
import type { Route } from "./router";
import { useRoute } from "./router";
import { Compare } from "./job-runs/Compare";
import { NewRun } from "./job-runs/NewRun";
import { RunList } from "./job-runs/RunList";
import { RunPage } from "./job-runs/RunPage";

const PAGES = [
  { path: "jobs", name: "Jobs" },
  { path: "new", name: "New job" },
  { path: "playground", name: "Playground" },
  { path: "evals", name: "Evals" },
  { path: "runs", name: "Batch jobs" },
];

export function App() {
  const route = useRoute();
  usePageChanges(route.path);
  const [key, setKey] = useState(savedKey);
  const models = usePolled(listModels, null, key);
  const [isRefused, setRefused] = useState(false);
  useEffect(() => watchRefusals(() => setRefused(true)), []);
  const changeKey = (secret: string) => {
    saveKey(secret);
    setKey(secret);
    setRefused(false);
    models.again();
  };
  const base = models.value?.data[0]?.id;
  const current = route.path[0] ?? "jobs";
  const isForbidden = models.error instanceof ApiError && models.error.status === 403; // a key of another scope
  return (
    <>
      <a class="skip" href="#main" onClick={toMain}>
        Skip to content
      </a>
      <header class="bar">
        <a class="brand" href="#/jobs" aria-label="Iro, jobs">
          Iro
        </a>
        <nav aria-label="Pages">
          {PAGES.map(({ path, name }) => (
            <a href={`#/${path}`} aria-current={current === path ? "page" : undefined}>
              {name}
            </a>
          ))}
        </nav>
        <span class="model" title={base}>
          {base}
        </span>
        {key && (
          <button class="quiet" onClick={() => changeKey("")}>
            Forget key
          </button>
        )}
      </header>
      <main id="main" tabIndex={-1}>
        {isRefused ? (
          <KeyForm refusal={key && "The server does not accept this key."} onKey={changeKey} />
        ) : isForbidden && current === "runs" ? (
          <Body key={key} route={route} base="" />
        ) : isForbidden ? (
          <KeyForm key={key} refusal={models.error!.message} onKey={changeKey} />
        ) : models.error ? (
          <Problem error={models.error} again={models.again} />
        ) : base ? (
          <Body key={key} route={route} base={base} />
        ) : (
          <p class="faint">Loading …</p>
        )}
      </main>
    </>
  );
}

/** Names each page in the title, and gives it the focus that the page before took with it. */
function usePageChanges(path: string[]): void {
  const isFirst = useRef(true);
  useEffect(() => {
    document.title = titleOf(path);
    if (!isFirst.current && document.activeElement === document.body) document.getElementById("main")!.focus();
    isFirst.current = false;
  }, [path.join("/")]);
}

function titleOf([page = "jobs", ...parts]: string[]): string {
  const name = PAGES.find(({ path }) => path === page)?.name ?? "No such page";
  return [...parts.toReversed(), name, "Iro"].join(" · ");
}

function Body({ route, base }: { route: Route; base: string }) {
  const [page = "jobs", id] = route.path;
  if (page === "jobs") return id ? <JobPage key={id} id={id} /> : <JobList />;
  if (page === "evals") return <Evals path={route.path.slice(1)} base={base} />;
  if (page === "runs") return <Runs id={id} query={route.query} />;
  if (page === "new") return <NewJob base={base} />;
  if (page === "playground") return <Playground key={route.query.toString()} base={base} query={route.query} />;
  return (
    <section>
      <h1>No such page</h1>
      <p>
        <a href="#/jobs">Jobs</a>
      </p>
    </section>
  );
}

function Evals({ path: [id, part], base }: { path: string[]; base: string }) {
  if (!id) return <EvalList />;
  if (id === "new") return <NewEval base={base} />;
  return part === "new" ? <NewEvalRun key={id} id={id} base={base} /> : <EvalPage key={id} id={id} base={base} />;
}

function Runs({ id, query }: { id?: string; query: URLSearchParams }) {
  if (!id) return <RunList />;
  if (id === "new") return <NewRun key={query.toString()} query={query} />;
  if (id === "compare") return <Compare key={query.toString()} query={query} />;
  return <RunPage key={id} id={id} />;
}

function toMain(event: Event): void {
  event.preventDefault(); // the address after "#" is the page's
  document.getElementById("main")!.focus();
}
