// Values that are read again and again.

import type { Dispatch, StateUpdater } from "preact/hooks";
import { useCallback, useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import type { Page } from "./api";
import { ApiError } from "./api";
import { draftOf, saveDraft } from "./drafts";

const HIDDEN = 5000; // milliseconds between reads of a page that nobody sees
const AFTER_ERROR = 2000; // milliseconds to the next read, at least
const PAUSE = 3000; // milliseconds from the end of a read to one of another version

/** A value that outlives the page's parts, until the tab is closed or another key is used (`forgetDrafts`). */
export function useDraft<Value>(name: string, initial: Value): [Value, Dispatch<StateUpdater<Value>>] {
  const [value, setValue] = useState<Value>(() => draftOf<Value>(name) ?? initial);
  useLayoutEffect(() => saveDraft(name, value), [name, value]); // before the next event, which may leave the page
  return [value, setValue];
}

interface Polled<Value> {
  key: string; // of which the others are
  value: Value | null;
  error: Error | null;
}

/**
 * What `read` gives, read again every `every` milliseconds while that is not null, and once `version` is another: a read
 * under way ends before that, and the last value stays until then. Another `key` ends the read and empties the value.
 * `again` reads at once. After an error the next read waits as long as the server says, and the last value stays.
 */
export function usePolled<Value>(
  read: (signal: AbortSignal) => Promise<Value>,
  every: number | null,
  key: string,
  version = "",
) {
  const [state, setState] = useState<Polled<Value>>({ key, value: null, error: null });
  const { value, error } = state.key === key ? state : { value: null, error: null };
  const [round, setRound] = useState(0);
  const latest = useRef({ read, version });
  latest.current = { read, version };
  const readVersion = useRef(() => {});
  useEffect(() => {
    const controller = new AbortController();
    let timer = 0;
    let isReading = false;
    let earliest = 0; // time of the next read because of another version
    const poll = async () => {
      const { read, version } = latest.current;
      let [wait, pause] = [every, PAUSE];
      isReading = true;
      try {
        const fresh = await read(controller.signal);
        if (controller.signal.aborted) return;
        setState({ key, value: fresh, error: null });
      } catch (problem) {
        if (controller.signal.aborted) return;
        setState((last) => ({ key, value: last.key === key ? last.value : null, error: problem as Error }));
        wait = waitAfter(problem, every);
        pause = Math.max(wait ?? 0, PAUSE);
      }
      isReading = false;
      const slowest = document.hidden ? HIDDEN : 0;
      earliest = performance.now() + Math.max(pause, slowest);
      if (wait !== null) timer = window.setTimeout(poll, Math.max(wait, slowest));
      if (latest.current.version !== version) readVersion.current();
    };
    readVersion.current = () => {
      if (isReading) return; // its end sees to it
      clearTimeout(timer);
      timer = window.setTimeout(poll, Math.max(0, earliest - performance.now()));
    };
    void poll();
    return () => {
      controller.abort();
      clearTimeout(timer);
    };
  }, [key, every, round]);
  useEffect(() => readVersion.current(), [version]);
  const again = useCallback(() => setRound((count) => count + 1), []);
  return { value, error, again };
}

/** Milliseconds to the next read after an error; null: none, because the server would refuse that too. */
function waitAfter(problem: unknown, every: number | null): number | null {
  if (!(problem instanceof ApiError)) return Math.max(every ?? 0, AFTER_ERROR);
  const { status, retryAfter } = problem;
  if (status >= 400 && status < 500 && status !== 429) return null;
  return Math.max(every ?? 0, AFTER_ERROR, retryAfter * 1000);
}

/** Whether the page's tab is in front. */
export function useShown(): boolean {
  const [isShown, setShown] = useState(!document.hidden);
  useEffect(() => {
    const changed = () => setShown(!document.hidden);
    document.addEventListener("visibilitychange", changed);
    return () => document.removeEventListener("visibilitychange", changed);
  }, []);
  return isShown;
}

/** A list, newest first: its first page read again every `every` milliseconds, older ones as they are asked for. */
export function useNewest<Row extends { id: string }>(
  list: (after: string | null, signal?: AbortSignal) => Promise<Page<Row>>,
  every: number,
  key: string,
) {
  const { value, error, again } = usePolled((signal) => list(null, signal), every, key);
  const [older, setOlder] = useState<Page<Row> | null>(null);
  const [olderError, setOlderError] = useState<Error | null>(null);
  const ids = new Set(value?.data.map(({ id }) => id));
  const rows = value && [...value.data, ...(older?.data ?? []).filter(({ id }) => !ids.has(id))];
  const showOlder = async () => {
    try {
      const page = await list(rows!.at(-1)!.id);
      setOlder({ data: [...rows!, ...page.data], has_more: page.has_more });
      setOlderError(null);
    } catch (problem) {
      setOlderError(problem as Error);
    }
  };
  return { rows, hasMore: (older ?? value)?.has_more ?? false, error, again, showOlder, olderError };
}
