// Rows of JSON, typed or from a file, checked by line.

import type { ComponentChildren } from "preact";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { count } from "../format";
import { Problem } from "../parts";
import type { Checked, Row } from "./rows";
import { EDITABLE, checkRows, utf8Text } from "./rows";

const LISTED = 5; // problems

export interface RowsSource {
  text: string;
  file: File | null; // one that is not edited here
}

interface Props {
  source: RowsSource;
  checked: Checked;
  label: string;
  accept: string; // suffixes of files
  children: ComponentChildren; // what a row holds
  onChange: (source: RowsSource) => void;
}

/** The rows of a text, each read by `check`; a long text is checked once it no longer changes. */
export function useChecked(text: string, check: (line: string) => Row): Checked {
  const [settled, setSettled] = useState(text);
  useEffect(() => {
    const timer = setTimeout(() => setSettled(text), text.length > 50_000 ? 300 : 0);
    return () => clearTimeout(timer);
  }, [text]);
  return useMemo(() => checkRows(settled, check), [settled]);
}

export function RowsEditor({ source, checked, label, accept, children, onChange }: Props) {
  const area = useRef<HTMLTextAreaElement>(null);
  const gutter = useRef<HTMLDivElement>(null);
  const [over, setOver] = useState(false);
  const [error, setError] = useState<Error | null>(null); // of a file that was not taken
  useEffect(() => setError(null), [source.text, source.file]);
  const wrong = new Set(checked.problems.map(({ line }) => line));
  const take = async (file: File | undefined) => {
    if (!file) return;
    const editable = file.size <= EDITABLE && /\.(jsonl?|ndjson|txt)$/i.test(file.name);
    setError(null);
    try {
      onChange(editable ? { text: await utf8Text(file), file: null } : { text: "", file });
    } catch (problem) {
      setError(problem as Error);
    }
  };
  const goTo = (line: number) => {
    const lines = source.text.split("\n");
    const start = lines.slice(0, line - 1).join("\n").length + (line > 1 ? 1 : 0);
    area.current!.focus();
    area.current!.setSelectionRange(start, start + lines[line - 1]!.length);
    area.current!.scrollTop = (line - 3) * parseFloat(getComputedStyle(area.current!).lineHeight);
  };
  return (
    <div
      class={over ? "drop over" : "drop"}
      onDragOver={(event) => {
        event.preventDefault();
        setOver(true);
      }}
      onDragLeave={() => setOver(false)}
      onDrop={(event) => {
        event.preventDefault();
        setOver(false);
        void take(event.dataTransfer?.files[0]);
      }}
    >
      <label for="rows">{label}</label>
      <p class="faint small" id="rows-hint">
        {children}
      </p>
      {source.file ? (
        <p class="file">
          <span class="text">
            {source.file.name}, {count(source.file.size)} bytes: checked when it is uploaded
          </span>
          <button type="button" onClick={() => onChange({ text: "", file: null })}>
            Remove
          </button>
        </p>
      ) : (
        <div class="lines">
          <div class="gutter" aria-hidden="true" ref={gutter}>
            {source.text.split("\n").map((_, i) => (
              <span class={wrong.has(i + 1) ? "wrong" : undefined}>{i + 1}</span>
            ))}
          </div>
          <textarea
            id="rows"
            class="code"
            ref={area}
            rows={9}
            wrap="off"
            spellcheck={false}
            value={source.text}
            aria-describedby="rows-hint rows-state"
            aria-invalid={checked.problems.length > 0}
            onInput={(event) => onChange({ text: event.currentTarget.value, file: null })}
            onScroll={(event) => (gutter.current!.scrollTop = event.currentTarget.scrollTop)}
          />
        </div>
      )}
      <div class="below">
        <span id="rows-state" aria-live="polite">
          {!source.file && <State checked={checked} />}
        </span>
        <label class="button">
          Choose a file
          <input
            class="hidden"
            type="file"
            accept={accept}
            onChange={(event) => {
              void take(event.currentTarget.files?.[0]);
              event.currentTarget.value = ""; // else the same file, once corrected, is no change
            }}
          />
        </label>
      </div>
      {error && <Problem error={error} />}
      {checked.problems.length > 0 && (
        <ul class="problems">
          {checked.problems.slice(0, LISTED).map(({ line, message }) => (
            <li key={line}>
              <button type="button" class="link" onClick={() => goTo(line)}>
                Line {line}
              </button>{" "}
              <span class="text">{message}</span>
            </li>
          ))}
          {checked.problems.length > LISTED && <li>and {checked.problems.length - LISTED} more</li>}
        </ul>
      )}
    </div>
  );
}

function State({ checked }: { checked: Checked }) {
  const { rows, problems } = checked;
  if (problems.length)
    return <span class="bad">{problems.length === 1 ? "1 line is" : `${problems.length} lines are`} wrong</span>;
  return rows.length ? (
    <span class="good">{rows.length === 1 ? "1 row" : `${count(rows.length)} rows`}, all valid</span>
  ) : (
    <span class="faint">no rows yet</span>
  );
}
