// All evals, newest first.

import { useState } from "preact/hooks";
import { date } from "../format";
import { usePolled } from "../hooks";
import { Problem } from "../parts";
import { address } from "../router";
import { PAGE, listEvals } from "./api";

export function EvalList() {
  const [most, setMost] = useState(PAGE);
  const { value, error, again } = usePolled((signal) => listEvals(most, signal), null, "evals");
  const readMore = () => {
    setMost(most + PAGE);
    again();
  };
  return (
    <section>
      <div class="title">
        <h1>Evals</h1>
        <a class="button main" href="#/evals/new">
          New eval
        </a>
      </div>
      {error && <Problem error={error} again={again} />}
      {!value && !error && <p class="faint">Loading …</p>}
      {value?.data.length === 0 && (
        <div class="card empty">
          <h2>No evals yet</h2>
          <p>
            An eval grades the answers of models to items. Create one here, one of several criteria with{" "}
            <code>POST /v1/evals</code>, or take one over with <code>iro evals import FILE</code>; its runs are compared
            here.
          </p>
          <a class="button main" href="#/evals/new">
            Create an eval
          </a>
        </div>
      )}
      {value && value.data.length > 0 && (
        <div class="scroll" tabIndex={0} role="region" aria-label="Table of evals">
          <table>
            <thead>
              <tr>
                <th scope="col">Eval</th>
                <th scope="col">Criteria</th>
                <th scope="col">Created</th>
              </tr>
            </thead>
            <tbody>
              {value.data.map((evaluation) => (
                <tr key={evaluation.id}>
                  <td>
                    <a class="clip" href={address(["evals", evaluation.id])}>
                      {evaluation.name || evaluation.id}
                    </a>
                  </td>
                  <td>
                    <span class="clip">
                      {evaluation.testing_criteria.map(({ name, type }) => name ?? type).join(", ")}
                    </span>
                  </td>
                  <td class="nowrap">{date(evaluation.created_at)}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
      {value?.has_more && <button onClick={readMore}>More evals</button>}
    </section>
  );
}
