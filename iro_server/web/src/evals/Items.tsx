// Items by criteria: of one run, or of two whose scores and answers stand side by side.

import { useMemo, useState } from "preact/hooks";
import { count, number } from "../format";
import { usePolled } from "../hooks";
import { Problem } from "../parts";
import { sortedJson } from "../new/json";
import type { EvalRun, OutputItem } from "./api";
import { listItems } from "./api";

const SHOWN = 100; // rows at once
const READ = 1000; // items of a run at once
const FILTERS = { all: "all items", failures: "failures", changed: "items whose result differs" };
type Filter = keyof typeof FILTERS;

interface Row {
  items: (OutputItem | undefined)[]; // of the run, and of the other
}

export function Items({ run, other }: { run: EvalRun; other: EvalRun | undefined }) {
  const [filter, setFilter] = useState<Filter>("all");
  const [limit, setLimit] = useState(SHOWN);
  const [most, setMost] = useState(READ);
  const failed = run.result_counts.failed + run.result_counts.errored;
  const graded = run.result_counts.passed + failed;
  // of two runs all items are read: the other's answer to a failure may have passed
  const which = filter === "failures" && !other && graded > READ ? "failed" : "graded";
  const counts = [run, other].map((each) => each && Object.values(each.result_counts).join()).join(" ");
  const { value, error, again } = usePolled(
    (signal) => Promise.all((other ? [run, other] : [run]).map((each) => listItems(each, which, most, signal))),
    null,
    `${run.id} ${other?.id} ${which}`,
    counts,
  );
  const joined = useMemo(() => rowsOf((value ?? []).map(({ data }) => data)), [value]);
  const rows = joined.filter((row) => passes(row, filter));
  const read = Math.max(...(value ?? []).map(({ data }) => data.length));
  const hasUnread = (value ?? []).some(({ has_more }) => has_more);
  const isReading = hasUnread && read < most;
  const showMore = () => {
    setLimit(limit + SHOWN);
    if (rows.length > limit) return;
    setMost(most + READ);
    again();
  };
  const total = which === "failed" ? failed : graded;
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
          {value ? countText(rows.length, hasUnread, other ? null : total, read) : error ? "" : "Loading …"}
        </span>
      </div>
      {error && <Problem error={error} again={again} />}
      {other && value && !hasUnread && <Unmatched rows={joined} />}
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
                <ItemRow key={firstOf(row).id} row={row} criteria={criteria.length} compared={other !== undefined} />
              ))}
            </tbody>
          </table>
        </div>
      )}
      {(rows.length > limit || hasUnread) && (
        <button disabled={isReading} onClick={showMore}>
          More items
        </button>
      )}
    </section>
  );
}

/** `total`: of the run; null where two runs are compared. `read`: items of each run. */
function countText(rows: number, hasUnread: boolean, total: number | null, read: number): string {
  const items = rows === 1 ? "1 item" : `${rows} items`;
  if (!hasUnread) return items;
  if (total === null) return `${items}, of the first ${count(read)} of each run`;
  return `the first ${count(rows)} of ${count(total)} items`;
}

/** Items with the same content side by side; an item of one run alone has a row of its own. */
function rowsOf([items = [], others = []]: OutputItem[][]): Row[] {
  const unmatched = new Map<string, OutputItem[]>();
  for (const other of others) {
    const content = sortedJson(other.datasource_item);
    unmatched.set(content, unmatched.get(content) ?? []);
    unmatched.get(content)!.push(other);
  }
  const rows: Row[] = items.map((item) => ({ items: [item, unmatched.get(sortedJson(item.datasource_item))?.shift()] }));
  const rest = [...unmatched.values()].flat().map((other) => ({ items: [undefined, other] }));
  return [...rows, ...rest].sort((a, b) => firstOf(a).datasource_item_id - firstOf(b).datasource_item_id);
}

const firstOf = ({ items: [item, other] }: Row): OutputItem => (item ?? other)!;

/** Says how many items have no answer to compare. */
function Unmatched({ rows }: { rows: Row[] }) {
  const unmatched = rows.filter(({ items: [item, other] }) => !item || !other).length;
  if (unmatched === 0) return null;
  return (
    <p class="bad small text">
      {unmatched} of {rows.length} items are graded in one of the two runs only: there is no other answer to compare.
    </p>
  );
}

function passes({ items: [item, other] }: Row, filter: Filter): boolean {
  if (filter === "failures") return [item, other].some((each) => each && each.status !== "pass");
  return filter === "all" || (item !== undefined && other !== undefined && item.status !== other.status);
}

function ItemRow({ row, criteria, compared }: { row: Row; criteria: number; compared: boolean }) {
  const [item, other] = row.items;
  return (
    <tr>
      <td>
        <Text text={itemText(firstOf(row))} />
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
