// Items by criteria: of one run, or of two whose scores and answers stand side by side.

import { useState } from "preact/hooks";
import { number } from "../format";
import { usePolled } from "../hooks";
import { Problem } from "../parts";
import type { EvalRun, OutputItem } from "./api";
import { listItems } from "./api";

const SHOWN = 100; // rows at once
const FILTERS = { all: "all items", failures: "failures", changed: "items whose result differs" };
type Filter = keyof typeof FILTERS;

interface Row {
  position: number;
  items: (OutputItem | undefined)[]; // of the run, and of the other
}

export function Items({ id, run, other }: { id: string; run: EvalRun; other: EvalRun | undefined }) {
  const [filter, setFilter] = useState<Filter>("all");
  const [limit, setLimit] = useState(SHOWN);
  const graded = [run, other].map((each) => each && Object.values(each.result_counts).join()).join(" ");
  const { value, error, again } = usePolled(
    (signal) => Promise.all([run, other].map((each) => (each ? listItems(id, each.id, signal) : []))),
    null,
    `${run.id} ${other?.id} ${graded}`,
  );
  const rows = rowsOf(value ?? []).filter((row) => passes(row, filter));
  const criteria = run.per_testing_criteria_results.map(({ testing_criteria }) => testing_criteria);
  const filters = (Object.keys(FILTERS) as Filter[]).filter((name) => other || name !== "changed");
  return (
    <section class="card" aria-labelledby="items">
      <div class="title">
        <h2 id="items">Items</h2>
        <label class="inline">
          Show{" "}
          <select value={filter} onChange={(event) => setFilter(event.currentTarget.value as Filter)}>
            {filters.map((name) => (
              <option value={name}>{FILTERS[name]}</option>
            ))}
          </select>
        </label>
        <span class="faint" role="status">
          {value ? `${rows.length} ${rows.length === 1 ? "item" : "items"}` : error ? "" : "Loading …"}
        </span>
      </div>
      {error && <Problem error={error} again={again} />}
      {rows.length > 0 && (
        <div class="scroll" tabIndex={0} role="region" aria-label="Table of items">
          <table class="items">
            <thead>
              <tr>
                <th scope="col">Item</th>
                <th scope="col">Answer</th>
                {other && <th scope="col">Other answer</th>}
                {criteria.map((name) => (
                  <th scope="col">
                    <span class="clip">{name}</span>
                  </th>
                ))}
              </tr>
            </thead>
            <tbody>
              {rows.slice(0, limit).map((row) => (
                <ItemRow key={row.position} row={row} criteria={criteria.length} compared={other !== undefined} />
              ))}
            </tbody>
          </table>
        </div>
      )}
      {rows.length > limit && <button onClick={() => setLimit(limit + SHOWN)}>More items</button>}
    </section>
  );
}

function rowsOf(runs: OutputItem[][]): Row[] {
  const rows = new Map<number, Row>();
  runs.forEach((items, place) => {
    for (const item of items) {
      const position = item.datasource_item_id;
      if (!rows.has(position)) rows.set(position, { position, items: [] });
      rows.get(position)!.items[place] = item;
    }
  });
  return [...rows.values()].sort((a, b) => a.position - b.position);
}

function passes({ items: [item, other] }: Row, filter: Filter): boolean {
  if (filter === "failures") return [item, other].some((each) => each && each.status !== "pass");
  return filter === "all" || item?.status !== other?.status;
}

function ItemRow({ row, criteria, compared }: { row: Row; criteria: number; compared: boolean }) {
  const [item, other] = row.items;
  return (
    <tr>
      <td>
        <Text text={itemText((item ?? other)!)} />
      </td>
      <td>
        <Answer item={item} />
      </td>
      {compared && (
        <td>
          <Answer item={other} />
        </td>
      )}
      {Array.from({ length: criteria }, (_, i) => (
        <td class="nowrap">
          <Score item={item} place={i} />
          {compared && (
            <>
              <span class="faint"> / </span>
              <Score item={other} place={i} />
            </>
          )}
        </td>
      ))}
    </tr>
  );
}

const Text = ({ text }: { text: string }) => (
  <div class="text cell" tabIndex={text.length > 400 ? 0 : undefined}>
    {text}
  </div>
);

/** The values of an item's fields; a single field without its name. */
function itemText({ datasource_item }: OutputItem): string {
  const fields = Object.entries(datasource_item);
  const write = (value: unknown) => (typeof value === "string" ? value : JSON.stringify(value));
  if (fields.length === 1) return write(fields[0]![1]);
  return fields.map(([name, value]) => `${name}: ${write(value)}`).join("\n");
}

function Answer({ item }: { item: OutputItem | undefined }) {
  if (!item) return <Text text="–" />;
  const { error, output } = item.sample;
  if (!error) return <Text text={(output ?? []).map(({ content }) => content).join("")} />;
  return (
    <div class="text cell bad">
      <strong>no answer:</strong> {error.message}
    </div>
  );
}

function Score({ item, place }: { item: OutputItem | undefined; place: number }) {
  const result = item?.results[place];
  if (!result) return <span class="faint">–</span>;
  if (result.error)
    return (
      <span class="bad" title={result.error}>
        error
      </span>
    );
  return (
    <span class={result.passed ? "good" : "bad"}>
      {result.passed ? "✓" : "✗"} {number(result.score, 2)}
    </span>
  );
}
